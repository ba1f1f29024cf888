// From projected Gaussians to one depth-ordered list per tile: sort the rows once, then a counting sort into tiles.
//
// The order is that of sorting (tile, depth, row) keys, without ever sorting pairs, and only tiles that the ellipse
// alpha = 1/255 touches are listed. The result does not depend on how the depth order is cut into chunks.
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

// In row order, where records lie side by side.
void find_tile_rows(Workspace& ws) {
    constexpr int64_t kChunk = 4096;
    const int64_t rows = ws.view.rows;
    ws.tile_rows.need(rows);
    parallel((rows + kChunk - 1) / kChunk, [&](int64_t chunk, int) {
        int64_t end = (chunk + 1) * kChunk < rows ? (chunk + 1) * kChunk : rows;
        for (int64_t i = chunk * kChunk; i < end; ++i) {
            if (ws.radii[2 * i] == 0) continue;
            const Record& g = ws.records[i];
            float top = std::sqrt(g.top2);
            ws.tile_rows[i] = tile_range(g.my - top, g.my + top, ws.view.tiles_y);
        }
    });
}

struct Slice {
    int64_t begin, end;
};
inline Slice slice(int64_t total, int64_t chunk) {
    return {total * chunk / kListChunks, total * (chunk + 1) / kListChunks};
}

// Spans of one slice of the depth order; counts pairs per tile and per row.
void count_slice(Workspace& ws, int64_t chunk) {
    const int tiles_x = ws.view.tiles_x;
    const int64_t tiles = int64_t(tiles_x) * ws.view.tiles_y;
    int64_t* counts = ws.cursor.data() + chunk * tiles;
    std::memset(counts, 0, size_t(tiles) * sizeof(int64_t));
    Slice s = slice(ws.drawn, chunk);
    for (int64_t i = s.begin; i < s.end; ++i) {
        if (i + 8 < s.end) __builtin_prefetch(&ws.records[ws.order[i + 8].row]);
        uint32_t row = ws.order[i].row;
        const Record& g = ws.records[row];
        int64_t pairs = 0;
        int tile_row = ws.tile_rows[row].begin;
        for (int64_t k = ws.span_begin[i]; k < ws.span_begin[i + 1]; ++k, ++tile_row) {
            Span span = tile_columns(g, tile_row, tiles_x);
            ws.spans[k] = span;
            pairs += span.end - span.begin;
            int64_t* at = counts + int64_t(tile_row) * tiles_x;
            for (int32_t x = span.begin; x < span.end; ++x) ++at[x];
        }
        ws.pair_count[row] = pairs;
    }
}

void scatter_slice(Workspace& ws, int64_t chunk) {
    const int tiles_x = ws.view.tiles_x;
    int64_t* cursor = ws.cursor.data() + chunk * int64_t(tiles_x) * ws.view.tiles_y;
    Slice s = slice(ws.drawn, chunk);
    for (int64_t i = s.begin; i < s.end; ++i) {
        Pair pair{ws.order[i].row, 0};
        int tile_row = ws.tile_rows[pair.row].begin;
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
    const int64_t rows = ws.view.rows, tiles = int64_t(ws.view.tiles_x) * ws.view.tiles_y;
    ws.pair_begin.need(rows + 1);
    ws.tile_begin.need(tiles + 1);
    int64_t at = 0;
    for (int64_t i = 0; i < rows; ++i) {
        ws.pair_begin[i] = at;
        if (ws.radii[2 * i] > 0) at += ws.pair_count[i];
    }
    ws.pair_begin[rows] = ws.pairs = at;
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

}  // namespace

// Stable radix sort on the bits of z: positive floats order as their bits, ties stay in row order.
void sort_by_depth(Workspace& ws) {
    constexpr int kBits = 11, kBuckets = 1 << kBits, kPasses = 3;
    const int64_t rows = ws.view.rows;
    Keyed* from = ws.keyed.need(rows);
    Keyed* to = ws.keyed2.need(rows);
    static thread_local int64_t counts[kPasses][kBuckets];
    std::memset(counts, 0, sizeof counts);
    int64_t drawn = 0;
    for (int64_t i = 0; i < rows; ++i) {
        if (ws.radii[2 * i] == 0) continue;
        uint32_t key;
        std::memcpy(&key, &ws.records[i].z, 4);
        from[drawn++] = {key, uint32_t(i)};
        for (int pass = 0; pass < kPasses; ++pass) ++counts[pass][(key >> (kBits * pass)) & (kBuckets - 1)];
    }
    ws.drawn = drawn;
    for (int pass = 0; pass < kPasses && drawn; ++pass) {
        int64_t* count = counts[pass];
        if (count[(from[0].key >> (kBits * pass)) & (kBuckets - 1)] == drawn) continue;
        int64_t at = 0;
        for (int b = 0; b < kBuckets; ++b) {
            int64_t c = count[b];
            count[b] = at;
            at += c;
        }
        for (int64_t i = 0; i < drawn; ++i) to[count[(from[i].key >> (kBits * pass)) & (kBuckets - 1)]++] = from[i];
        Keyed* swap = from;
        from = to;
        to = swap;
    }
    ws.order = from;
}

void build_lists(Workspace& ws) {
    const int64_t tiles = int64_t(ws.view.tiles_x) * ws.view.tiles_y;
    find_tile_rows(ws);
    ws.cursor.need(kListChunks * tiles);
    ws.span_begin.need(ws.drawn + 1);
    ws.pair_count.need(ws.view.rows);
    int64_t at = 0;
    for (int64_t i = 0; i < ws.drawn; ++i) {
        Span rows = ws.tile_rows[ws.order[i].row];
        ws.span_begin[i] = at;
        at += rows.end - rows.begin;
    }
    ws.span_begin[ws.drawn] = at;
    ws.spans.need(at);
    parallel(kListChunks, [&](int64_t chunk, int) { count_slice(ws, chunk); });
    scan(ws);
    ws.list.need(ws.pairs);
    parallel(kListChunks, [&](int64_t chunk, int) { scatter_slice(ws, chunk); });
}

}  // namespace clm
