// Two-level culling: block boxes first, then the 16-byte cull entries of the blocks that no plane rejects.
//
// A plane (nx, ny, nz, d) rejects a ball (centre p, radius r) when n.p + d + r < 0. Boxes are tested with the same
// expression in the same order of operations, each term replaced by its bound over the box. Rounding is monotone, so
// a box is rejected only when every row in it would be, and taken whole only when every row in it would pass: the
// result is bitwise that of testing every row. A NaN compares false, so a broken row is kept, never lost in silence.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "numbers.h"
#include "pool.h"

namespace {

constexpr int kPlanes = 6;
constexpr int64_t kTile = 64;  // rows per mask word

enum : uint8_t { kOutside = 0, kPartial = 1, kInside = 2 };

inline float larger(float a, float b) { return a > b ? a : b; }
inline float smaller(float a, float b) { return a < b ? a : b; }

struct Margin {
    float growth, extra;
};

// Rows of a page: fill says how many are live, from the first on; null: all rows are, one page after the other.
inline int64_t live(const int32_t* fill, int64_t page, int64_t page_rows, int64_t rows) {
    if (fill) return fill[page];
    const int64_t left = rows - page * page_rows;
    return left < page_rows ? left : page_rows;
}

uint8_t classify(const float* box, const float* camera, Margin margin) {
    const float *lo = box, *hi = box + 4;
    float far_sum = 0.f;
    for (int a = 0; a < 3; ++a) far_sum += larger(std::fabs(lo[a]), std::fabs(hi[a]));
    const float t = camera[4 * kPlanes];
    const float most = (box[3] * margin.growth + margin.extra) + clm::kCullSlack * (far_sum + t);
    const float least = margin.extra + clm::kCullSlack * t;
    bool inside = true;
    for (int p = 0; p < kPlanes; ++p) {
        const float* n = camera + 4 * p;
        const float a0 = n[0] * lo[0], a1 = n[1] * lo[1], a2 = n[2] * lo[2];
        const float b0 = n[0] * hi[0], b1 = n[1] * hi[1], b2 = n[2] * hi[2];
        if ((((larger(a0, b0) + larger(a1, b1)) + larger(a2, b2)) + n[3]) + most < 0.f) return kOutside;
        inside &= (((smaller(a0, b0) + smaller(a1, b1)) + smaller(a2, b2)) + n[3]) + least >= 0.f;
    }
    return inside ? kInside : kPartial;
}

struct Tile {
    float x[kTile], y[kTile], z[kTile], sum[kTile], radius[kTile];
};

void read_tile(const float* entries, int64_t count, Margin margin, Tile& tile) {
    if (count < kTile) std::memset(&tile, 0, sizeof tile);
    for (int64_t i = 0; i < count; ++i) {
        tile.x[i] = entries[4 * i];
        tile.y[i] = entries[4 * i + 1];
        tile.z[i] = entries[4 * i + 2];
        tile.radius[i] = entries[4 * i + 3] * margin.growth + margin.extra;
    }
    for (int64_t i = 0; i < kTile; ++i) tile.sum[i] = (std::fabs(tile.x[i]) + std::fabs(tile.y[i])) + std::fabs(tile.z[i]);
}

// Bit i is set when no plane rejects row i. Rows past `count` are masked away by the caller.
uint64_t test_tile(const Tile& tile, const float* camera) {
    float reach[kTile];
    int32_t rejected[kTile];
    for (int64_t i = 0; i < kTile; ++i) {
        reach[i] = tile.radius[i] + clm::kCullSlack * (tile.sum[i] + camera[4 * kPlanes]);
        rejected[i] = 0;
    }
    for (int p = 0; p < kPlanes; ++p) {
        const float n0 = camera[4 * p], n1 = camera[4 * p + 1], n2 = camera[4 * p + 2], d = camera[4 * p + 3];
        for (int64_t i = 0; i < kTile; ++i) {
            const float v = (((n0 * tile.x[i] + n1 * tile.y[i]) + n2 * tile.z[i]) + d) + reach[i];
            rejected[i] |= v < 0.f ? 1 : 0;
        }
    }
    uint64_t word = 0;
    for (int64_t i = 0; i < kTile; ++i) word |= uint64_t(uint32_t(rejected[i])) << i;
    return ~word;
}

}  // namespace

// bounds[b] = (min xyz, max R, max xyz, 0) of the live rows of page b, which begins at row b * page_rows. blocks NULL means all.
CLM_API void clm_block_bounds(const float* entries, int64_t rows, int64_t page_rows, const int32_t* fill, const int32_t* blocks,
                              int64_t count, float* bounds) {
    constexpr int64_t group = 16;
    constexpr float inf = std::numeric_limits<float>::infinity();
    clm::parallel((count + group - 1) / group, [&](int64_t chunk, int) {
        for (int64_t i = chunk * group; i < count && i < (chunk + 1) * group; ++i) {
            const int64_t block = blocks ? blocks[i] : i;
            const int64_t first = block * page_rows;
            const int64_t last = first + live(fill, block, page_rows, rows);
            float lo[4] = {inf, inf, inf, 0.f}, hi[4] = {-inf, -inf, -inf, 0.f};
            float broken[4] = {0.f, 0.f, 0.f, 0.f};
            for (int64_t r = first; r < last; ++r) {
                for (int a = 0; a < 4; ++a) {
                    const float v = entries[4 * r + a];
                    lo[a] = smaller(v, lo[a]);
                    hi[a] = larger(v, hi[a]);
                    broken[a] += v - v;  // 0 for finite values, NaN otherwise
                }
            }
            const bool wide = !(broken[0] == 0.f && broken[1] == 0.f && broken[2] == 0.f && broken[3] == 0.f);
            float* box = bounds + 8 * block;
            for (int a = 0; a < 3; ++a) {
                box[a] = wide ? -inf : lo[a];
                box[4 + a] = wide ? inf : hi[a];
            }
            box[3] = wide ? inf : hi[3];
            box[7] = 0.f;
        }
    });
}

// classes[b, c] = 0: no row of block b can be seen by camera c, 1: test its rows, 2: all its rows pass.
CLM_API void clm_cull_blocks(const float* bounds, int64_t blocks, const int32_t* fill, const float* cameras, int64_t count,
                             float growth, float extra, uint8_t* classes) {
    constexpr int64_t group = 64;
    clm::parallel((blocks + group - 1) / group, [&](int64_t chunk, int) {
        for (int64_t b = chunk * group; b < blocks && b < (chunk + 1) * group; ++b)
            for (int64_t c = 0; c < count; ++c)
                classes[b * count + c] =
                    fill && fill[b] == 0 ? kOutside : classify(bounds + 8 * b, cameras + clm::kCameraFloats * c, {growth, extra});
    });
}

// Pairs are (block, camera), sorted by block; run k covers pairs [runs[k], runs[k + 1]), all of one block.
// bits[p] gets one bit per row of a partial pair's block (words of 64 rows), counts[p] the rows that pass.
CLM_API void clm_cull_rows(const float* entries, int64_t rows, int64_t page_rows, const int32_t* fill, const int64_t* runs, int64_t run_count,
                           const int32_t* pair_block, const int32_t* pair_camera, const uint8_t* pair_class, const float* cameras,
                           float growth, float extra, uint64_t* bits, int64_t* counts) {
    const int64_t words = (page_rows + kTile - 1) / kTile;
    clm::parallel(run_count, [&](int64_t run, int) {
        const int64_t first = pair_block[runs[run]] * page_rows;
        const int64_t size = live(fill, pair_block[runs[run]], page_rows, rows);
        bool any_partial = false;
        for (int64_t p = runs[run]; p < runs[run + 1]; ++p) {
            counts[p] = pair_class[p] == kInside ? size : 0;
            any_partial |= pair_class[p] == kPartial;
        }
        if (!any_partial) return;
        Tile tile;
        for (int64_t w = 0; w * kTile < size; ++w) {
            const int64_t count = size - w * kTile < kTile ? size - w * kTile : kTile;
            const uint64_t valid = count == kTile ? ~uint64_t(0) : (uint64_t(1) << count) - 1;
            read_tile(entries + 4 * (first + w * kTile), count, {growth, extra}, tile);
            for (int64_t p = runs[run]; p < runs[run + 1]; ++p) {
                if (pair_class[p] != kPartial) continue;
                const uint64_t word = test_tile(tile, cameras + clm::kCameraFloats * pair_camera[p]) & valid;
                bits[p * words + w] = word;
                counts[p] += __builtin_popcountll(word);
            }
        }
    });
}

// Writes the row ids of pair p, ascending, to ids[offsets[p] ...].
CLM_API void clm_cull_ids(int64_t page_rows, const int64_t* runs, int64_t run_count, const int32_t* pair_block,
                          const uint8_t* pair_class, const uint64_t* bits, const int64_t* counts, const int64_t* offsets,
                          int32_t* ids) {
    const int64_t words = (page_rows + kTile - 1) / kTile;
    clm::parallel(run_count, [&](int64_t run, int) {
        for (int64_t p = runs[run]; p < runs[run + 1]; ++p) {
            int32_t* out = ids + offsets[p];
            const int32_t first = int32_t(pair_block[p] * page_rows);
            if (pair_class[p] == kInside) {
                for (int64_t i = 0; i < counts[p]; ++i) out[i] = first + int32_t(i);
                continue;
            }
            const int32_t* end = out + counts[p];
            for (int64_t w = 0; out < end; ++w) {
                const int32_t base = first + int32_t(w * kTile);
                for (uint64_t word = bits[p * words + w]; word; word &= word - 1) *out++ = base + __builtin_ctzll(word);
            }
        }
    });
}
