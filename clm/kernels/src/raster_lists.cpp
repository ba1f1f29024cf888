// From projected Gaussians to one depth-ordered list per tile: sort the rows once, then a counting sort into tiles.
//
// The order is that of sorting (tile, depth, identity, row) keys, without ever sorting pairs, and only tiles that the ellipse
// alpha = 1/255 touches are listed. The result does not depend on how the depth order is cut into chunks. Lists are built for
// a band of tile rows; a band is the whole image unless its lists would exceed `band_bytes`.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "raster.h"

namespace clm {
namespace {

constexpr float kSlop = 0.004f;  // px, covers the rounding of means far from the origin

// std::fmin and std::fmax are calls into libm.
inline float least(float a, float b) { return a < b ? a : b; }
inline float most(float a, float b) { return a > b ? a : b; }

// Tiles cut by [low, high] along one axis, where low and high bound pixel centres: [begin, end) within [0, tiles).
inline Span tile_range(float low, float high, int tiles) {
    float begin = std::ceil((low - kSlop - (kTile - 0.5f)) * (1.0f / kTile));
    float end = std::floor((high + kSlop - 0.5f) * (1.0f / kTile)) + 1.0f;
    begin = least(most(begin, 0.0f), float(tiles));
    end = least(most(end, 0.0f), float(tiles));
    return {int32_t(begin), int32_t(end < begin ? begin : end)};
}

inline Span tile_columns(const Record& g, int tile_row, int tiles_x) {
    float top = float(tile_row * kTile) + 0.5f - g.my, bottom = top + float(kTile - 1);
    float right_y = least(most(g.peak, top), bottom), left_y = least(most(-g.peak, top), bottom);
    float right2 = most(g.top2 - right_y * right_y, 0.0f), left2 = most(g.top2 - left_y * left_y, 0.0f);
    float right = g.slope * right_y + std::sqrt(g.spread * right2);
    float left = g.slope * left_y - std::sqrt(g.spread * left2);
    return tile_range(g.mx + left, g.mx + right, tiles_x);
}

constexpr int kBits = 11, kBuckets = 1 << kBits, kPasses = 3;
using Digits = std::array<std::array<int64_t, kBuckets>, kPasses>;

// Depths and rows of what is drawn, [drawn] in the order of rows, and where each is listed; returns how often each digit of
// the depths occurs.
Digits list_drawn(Workspace& ws, Keyed* out) {
    constexpr int64_t kChunk = 4096;
    const int64_t rows = ws.rows, chunks = (rows + kChunk - 1) / kChunk;
    const auto end = [&](int64_t chunk) { return (chunk + 1) * kChunk < rows ? (chunk + 1) * kChunk : rows; };
    ws.tile_rows.need(rows);
    std::vector<int64_t> begins(size_t(chunks) + 1, 0);
    parallel(chunks, [&](int64_t chunk, int) {
        int64_t count = 0;
        for (int64_t i = chunk * kChunk; i < end(chunk); ++i) count += ws.radii[2 * i] != 0;
        begins[size_t(chunk) + 1] = count;
    });
    for (size_t c = 0; c < size_t(chunks); ++c) begins[c + 1] += begins[c];
    std::vector<Digits> counts(size_t(thread_count()), Digits{});
    parallel(chunks, [&](int64_t chunk, int thread) {
        Keyed* at = out + begins[size_t(chunk)];
        Digits& count = counts[size_t(thread)];
        for (int64_t i = chunk * kChunk; i < end(chunk); ++i) {
            if (ws.radii[2 * i] == 0) continue;
            const Record& g = ws.records[i];
            const float top = std::sqrt(g.top2);
            const Span tiles = tile_range(g.my - top, g.my + top, ws.view.tiles_y);
            std::memcpy(&at->key, &g.z, 4);
            at->row = uint32_t(i);
            ws.tile_rows[i] = {uint16_t(tiles.begin), uint16_t(tiles.end)};
            for (int pass = 0; pass < kPasses; ++pass) ++count[pass][(at->key >> (kBits * pass)) & (kBuckets - 1)];
            ++at;
        }
    });
    for (size_t t = 1; t < counts.size(); ++t)
        for (int pass = 0; pass < kPasses; ++pass)
            for (int b = 0; b < kBuckets; ++b) counts[0][pass][b] += counts[t][pass][b];
    return counts[0];
}

struct Slice {
    int64_t begin, end;
};
inline Slice slice(int64_t total, int64_t chunk) {
    return {total * chunk / kListChunks, total * (chunk + 1) / kListChunks};
}

// The part of a row's tile rows that lies in the band; empty where end <= begin.
inline Span within(TileRows rows, Span band) {
    return {rows.begin > band.begin ? rows.begin : band.begin, rows.end < band.end ? rows.end : band.end};
}
inline bool touches(TileRows rows, Span band) { return rows.begin < band.end && rows.end > band.begin; }

// Spans of one slice of the depth order; counts pairs per tile and per row.
void count_slice(Workspace& ws, int64_t chunk) {
    const int tiles_x = ws.view.tiles_x;
    const int64_t tiles = ws.band_tiles();
    const Span band = ws.band;
    int64_t* counts = ws.cursor.data() + chunk * tiles;
    std::memset(counts, 0, size_t(tiles) * sizeof(int64_t));
    Slice s = slice(ws.drawn, chunk);
    for (int64_t i = s.begin; i < s.end; ++i) {
        if (i + 8 < s.end && touches(ws.order[i + 8].tile_rows, band))
            __builtin_prefetch(&ws.records[ws.order[i + 8].row]);
        const uint32_t row = ws.order[i].row;
        const Record& g = ws.records[row];
        int64_t pairs = 0;
        int tile_row = within(ws.order[i].tile_rows, band).begin;
        for (int64_t k = ws.span_begin[i]; k < ws.span_begin[i + 1]; ++k, ++tile_row) {
            Span span = tile_columns(g, tile_row, tiles_x);
            ws.spans[k] = span;
            pairs += span.end - span.begin;
            int64_t* at = counts + int64_t(tile_row - band.begin) * tiles_x;
            for (int32_t x = span.begin; x < span.end; ++x) ++at[x];
        }
        ws.pair_begin[row] = pairs;  // a count, until `scan`
    }
}

void scatter_slice(Workspace& ws, int64_t chunk) {
    const int tiles_x = ws.view.tiles_x;
    int64_t* cursor = ws.cursor.data() + chunk * ws.band_tiles();
    Slice s = slice(ws.drawn, chunk);
    for (int64_t i = s.begin; i < s.end; ++i) {
        Pair pair{ws.order[i].row, 0};
        int tile_row = within(ws.order[i].tile_rows, ws.band).begin - ws.band.begin;
        for (int64_t k = ws.span_begin[i]; k < ws.span_begin[i + 1]; ++k, ++tile_row) {
            int64_t* at = cursor + int64_t(tile_row) * tiles_x;
            for (int32_t x = ws.spans[k].begin; x < ws.spans[k].end; ++x) {
                ws.list[at[x]++] = pair;
                ++pair.rank;
            }
        }
    }
}

// Where each row's moments, each tile's list and each slice's share of it begin.
void scan(Workspace& ws) {
    const int64_t rows = ws.rows, tiles = ws.band_tiles();
    int64_t at = 0;
    for (int64_t i = 0; i < rows; ++i) {
        int64_t count = ws.radii[2 * i] > 0 ? ws.pair_begin[i] : 0;
        ws.pair_begin[i] = at;
        at += count;
    }
    ws.pair_begin[rows] = ws.band_pairs = at;
    ws.tile_begin.need(tiles + 1);
    at = 0;
    for (int64_t t = 0; t < tiles; ++t) {
        ws.tile_begin[t] = at;
        for (int chunk = 0; chunk < kListChunks; ++chunk) {
            int64_t& cell = ws.cursor[chunk * tiles + t];
            int64_t count = cell;
            cell = at;
            at += count;
        }
    }
    ws.tile_begin[tiles] = at;
}

// Runs of rows at one depth, which the sort left in row order, in the order of their identities.
void order_ties(Workspace& ws) {
    constexpr int64_t kChunk = 8192;
    const int64_t drawn = ws.drawn, chunks = (drawn + kChunk - 1) / kChunk;
    Keyed* order = ws.order;
    std::vector<int64_t> begins(size_t(chunks) + 1, drawn);  // no run is cut
    for (int64_t c = 0, at = 0; c < chunks; ++c) {
        at = at > c * kChunk ? at : c * kChunk;
        while (at && at < drawn && order[at - 1].key == order[at].key) ++at;
        begins[size_t(c)] = at;
    }
    parallel(chunks, [&](int64_t chunk, int) {
        const int64_t end = begins[size_t(chunk) + 1];
        for (int64_t i = begins[size_t(chunk)], stop; i < end; i = stop) {
            for (stop = i + 1; stop < end && order[stop].key == order[i].key;) ++stop;
            if (i + 9 < end && order[i + 8].key == order[i + 9].key) {
                __builtin_prefetch(&ws.records[order[i + 8].row].identity);
                __builtin_prefetch(&ws.records[order[i + 9].row].identity);
            }
            if (stop == i + 1) continue;
            // Not stable_sort: it would allocate for each of many short runs.
            std::sort(order + i, order + stop, [&](const Keyed& a, const Keyed& b) {
                uint32_t first = ws.records[a.row].identity, second = ws.records[b.row].identity;
                return first != second ? first < second : a.row < b.row;
            });
        }
    });
}

// Pairs and spans per tile row, [tiles_y] each, without listing any.
void count_tile_rows(Workspace& ws, std::vector<int64_t>& pairs, std::vector<int64_t>& spans) {
    const int tiles_x = ws.view.tiles_x, tiles_y = ws.view.tiles_y;
    std::vector<int64_t> counts(size_t(kListChunks) * 2 * size_t(tiles_y), 0);
    parallel(kListChunks, [&](int64_t chunk, int) {
        int64_t* at = counts.data() + chunk * 2 * tiles_y;
        Slice s = slice(ws.drawn, chunk);
        for (int64_t i = s.begin; i < s.end; ++i) {
            if (i + 8 < s.end) __builtin_prefetch(&ws.records[ws.order[i + 8].row]);
            const TileRows rows = ws.order[i].tile_rows;
            for (int y = rows.begin; y < rows.end; ++y) {
                Span span = tile_columns(ws.records[ws.order[i].row], y, tiles_x);
                at[2 * y] += span.end - span.begin;
                at[2 * y + 1] += 1;
            }
        }
    });
    pairs.assign(size_t(tiles_y), 0);
    spans.assign(size_t(tiles_y), 0);
    for (int chunk = 0; chunk < kListChunks; ++chunk)
        for (int y = 0; y < tiles_y; ++y) {
            pairs[size_t(y)] += counts[size_t((chunk * tiles_y + y) * 2)];
            spans[size_t(y)] += counts[size_t((chunk * tiles_y + y) * 2 + 1)];
        }
}

}  // namespace

// Stable radix sort on the bits of z: positive floats order as their bits, ties go by identity, then row.
void sort_by_depth(Workspace& ws) {
    const int64_t drawn = ws.drawn;
    Keyed* from = ws.keyed.need(drawn);
    Keyed* to = ws.keyed2.need(drawn);
    Digits digits = list_drawn(ws, from);
    for (int pass = 0; pass < kPasses && drawn; ++pass) {
        int64_t* count = digits[pass].data();
        if (count[(from[0].key >> (kBits * pass)) & (kBuckets - 1)] == drawn) continue;
        int64_t at = 0;
        for (int b = 0; b < kBuckets; ++b) {
            int64_t c = count[b];
            count[b] = at;
            at += c;
        }
        for (int64_t i = 0; i < drawn; ++i) to[count[(from[i].key >> (kBits * pass)) & (kBuckets - 1)]++] = from[i];
        std::swap(from, to);
    }
    ws.order = from;
    if (ws.identified) order_ties(ws);
    parallel(kListChunks, [&](int64_t chunk, int) {
        const Slice s = slice(drawn, chunk);
        for (int64_t i = s.begin; i < s.end; ++i) from[i].tile_rows = ws.tile_rows[from[i].row];
    });
    ws.sorted = true;
}

// Cuts the image into the fewest bands of tile rows whose lists stay within `band_bytes`, from the top; a tile row that does
// not is a band of its own.
void choose_bands(Workspace& ws) {
    const int tiles_x = ws.view.tiles_x, tiles_y = ws.view.tiles_y;
    ws.bands.clear();
    if (ws.band_bytes < 0) {
        ws.bands.push_back({0, tiles_y});
        return;
    }
    std::vector<int64_t> pairs, spans;
    count_tile_rows(ws, pairs, spans);
    constexpr int64_t pair_bytes = sizeof(Pair) + sizeof(uint32_t) + kMoments * sizeof(float);
    constexpr int64_t tile_bytes = kBlocks * sizeof(BlockState) + (kListChunks + 1) * sizeof(int64_t);
    int64_t taken = 0;
    for (int y = 0; y < tiles_y; ++y) {
        const int64_t more = pairs[size_t(y)] * pair_bytes + spans[size_t(y)] * int64_t(sizeof(Span)) +
                             tiles_x * tile_bytes;
        if (ws.bands.empty() || taken + more > ws.band_bytes) {
            ws.bands.push_back({y, y});
            taken = 0;
        }
        ws.bands.back().end = y + 1;
        taken += more;
    }
}

void build_lists(Workspace& ws, Span band) {
    ws.band = band;
    ws.cursor.need(kListChunks * ws.band_tiles());
    ws.span_begin.need(ws.drawn + 1);
    ws.pair_begin.need(ws.rows + 1);
    int64_t at = 0;
    for (int64_t i = 0; i < ws.drawn; ++i) {
        Span rows = within(ws.order[i].tile_rows, band);
        ws.span_begin[i] = at;
        at += rows.end > rows.begin ? rows.end - rows.begin : 0;
    }
    ws.span_begin[ws.drawn] = at;
    ws.spans.need(at);
    parallel(kListChunks, [&](int64_t chunk, int) { count_slice(ws, chunk); });
    scan(ws);
    ws.list.need(ws.band_pairs);
    parallel(kListChunks, [&](int64_t chunk, int) { scatter_slice(ws, chunk); });
}

}  // namespace clm
