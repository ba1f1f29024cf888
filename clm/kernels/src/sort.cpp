// The order of rows in space: keys of radius class and Morton code, and a stable parallel radix sort of (key, row id).
#include <cstring>
#include <vector>

#include "pool.h"

namespace {

constexpr int kBits = 20;           // of a Morton code, per axis
constexpr int kClassEdges = 3;
constexpr int kDigit = 11;          // bits per pass: 2048 open lines of 64 bytes fit the L2 cache
constexpr int64_t kBuckets = 1 << kDigit;
constexpr int64_t kPiece = 1 << 16;

// Two zero bits between the bits of a 20-bit integer.
inline uint64_t spread(uint64_t x) {
    x = (x | x << 32) & 0x001F00000000FFFFu;
    x = (x | x << 16) & 0x001F0000FF0000FFu;
    x = (x | x << 8) & 0x100F00F00F00F00Fu;
    x = (x | x << 4) & 0x10C30C30C30C30C3u;
    return (x | x << 2) & 0x1249249249249249u;
}

// NaN counts as the lower face.
inline uint64_t cell(float at, double low, double span) {
    const double x = (double(at) - low) / span;
    return uint64_t((x > 0.0 ? x < 1.0 ? x : 1.0 : 0.0) * ((1 << kBits) - 1));
}

struct Passes {
    uint64_t* keys[2];
    int32_t* ids[2];
};

}  // namespace

// keys[i] = Morton code of row i's centre in the box (low, span) [3] each, below the number of edges [3] under its radius.
CLM_API void clm_sort_keys(const float* entries, int64_t rows, const double* low, const double* span, const float* edges,
                           uint64_t* keys) {
    clm::parallel((rows + kPiece - 1) / kPiece, [&](int64_t piece, int) {
        for (int64_t i = piece * kPiece; i < rows && i < (piece + 1) * kPiece; ++i) {
            const float* entry = entries + 4 * i;
            uint64_t key = 0, above = 0;
            for (int axis = 0; axis < 3; ++axis) key |= spread(cell(entry[axis], low[axis], span[axis])) << axis;
            for (int edge = 0; edge < kClassEdges; ++edge) above += !(entry[3] <= edges[edge]) && edges[edge] == edges[edge];
            keys[i] = above << 3 * kBits | key;
        }
    });
}

// ids [rows] become the rows in ascending order of their keys, equal keys in ascending order of rows. Least significant
// digit first: every pass counts digits per piece of rows, and writes each piece behind the earlier ones of its digit.
// keys and the scratch arrays [rows] are overwritten. Returns 1 where there is no memory for the counts.
CLM_API int32_t clm_sort_rows(uint64_t* keys, int32_t* ids, uint64_t* key_scratch, int32_t* id_scratch, int64_t rows) try {
    const int64_t least = int64_t(1) << 12, wanted = 4 * clm::thread_count();
    const int64_t pieces = rows < least * wanted ? (rows + least - 1) / least : wanted;
    if (rows == 0) return 0;
    const int64_t size = (rows + pieces - 1) / pieces;
    const auto end = [&](int64_t piece) { return (piece + 1) * size < rows ? (piece + 1) * size : rows; };
    std::vector<int64_t> places(pieces * kBuckets);
    Passes at{{keys, key_scratch}, {ids, id_scratch}};
    clm::parallel(pieces, [&](int64_t piece, int) {
        for (int64_t i = piece * size; i < end(piece); ++i) ids[i] = int32_t(i);
    });
    int from = 0;
    for (int shift = 0; shift < 64; shift += kDigit) {
        const uint64_t* key = at.keys[from];
        clm::parallel(pieces, [&](int64_t piece, int) {
            int64_t* count = &places[piece * kBuckets];
            std::memset(count, 0, sizeof(int64_t) * kBuckets);
            for (int64_t i = piece * size; i < end(piece); ++i) ++count[key[i] >> shift & (kBuckets - 1)];
        });
        int64_t before = 0, used = 0;
        for (int64_t bucket = 0; bucket < kBuckets; ++bucket) {
            const int64_t first = before;
            for (int64_t piece = 0; piece < pieces; ++piece) {
                const int64_t count = places[piece * kBuckets + bucket];
                places[piece * kBuckets + bucket] = before;
                before += count;
            }
            used += before != first;
        }
        if (used == 1) continue;  // all keys have the same digit
        clm::parallel(pieces, [&](int64_t piece, int) {
            int64_t* place = &places[piece * kBuckets];
            const int32_t* id = at.ids[from];
            uint64_t* key_to = at.keys[from ^ 1];
            int32_t* id_to = at.ids[from ^ 1];
            for (int64_t i = piece * size; i < end(piece); ++i) {
                const int64_t to = place[key[i] >> shift & (kBuckets - 1)]++;
                key_to[to] = key[i];
                id_to[to] = id[i];
            }
        });
        from ^= 1;
    }
    if (from)
        clm::parallel(pieces, [&](int64_t piece, int) {
            std::memcpy(ids + piece * size, id_scratch + piece * size, sizeof(int32_t) * (end(piece) - piece * size));
        });
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
