// What the stages of the rasteriser share: the workspace of one view and the layout of its buffers.
//
// project (of one piece after the other) | sort -> lists -> forward | backward | project_backward (of a piece). Every stage
// is parallel over chunks that write only their own part, and every sum has a fixed order, so results are bitwise equal for
// any thread count, any cut of the view into pieces, and any bands of tile rows that lists are built for at a time.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "numbers.h"
#include "pool.h"
#include "simd.h"

namespace clm {

constexpr float kLog2E = 1.44269504088896f, kLn2 = 0.693147180559945f;
constexpr float kExponentMin = -7.99435343685886f;  // log2(1/255): below it a Gaussian does not touch a pixel

constexpr int kBlockWidth = 4;               // px: the 256 pixels of a tile lie in blocks of one vector each
constexpr int kBlockHeight = W / kBlockWidth;
constexpr int kBlockRows = kTile / kBlockHeight;
constexpr int kBlocks = 4 * kBlockRows;      // 32 (f8) or 16 (f16): a tile's coverage fits a uint32
constexpr int kMoments = 12;  // sums of a pair: see raster_backward.cpp
constexpr int kDeepMoments = 16;  // with a gradient of depths, which are the thirteenth; the rest is padding
constexpr int kListChunks = 16;

// Memory that grows and never shrinks but by `release`.
template <class T>
class Buffer {
  public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { std::free(data_); }
    // Room for `count`; growing keeps the first `kept` and forgets the rest.
    T* need(int64_t count, int64_t kept = 0) {
        if (count > capacity_) grow(count, kept);
        if (count > used_) used_ = count;
        return data_;
    }
    void release() {
        std::free(data_);
        data_ = nullptr;
        capacity_ = used_ = 0;
    }
    // The part that was ever asked for: what lies behind it was never touched, so it takes no memory.
    int64_t bytes() const { return used_ * int64_t(sizeof(T)); }
    T* data() const { return data_; }
    T& operator[](int64_t i) const { return data_[i]; }

  private:
    void grow(int64_t count, int64_t kept) {
        // A product of counts that is past all memory must not wrap around to a small one.
        if (count > (int64_t(1) << 62) / int64_t(sizeof(T))) throw std::bad_alloc();
        if (!kept) release();  // before, not beside
        int64_t room = count + count / 4 + 64;
        size_t bytes = (size_t(room) * sizeof(T) + 63) / 64 * 64;
        T* grown = static_cast<T*>(std::aligned_alloc(64, bytes));
        if (!grown) throw std::bad_alloc();
        if (kept) std::memcpy(static_cast<void*>(grown), data_, size_t(kept) * sizeof(T));
        std::free(data_);
        data_ = grown;
        capacity_ = room;
        used_ = kept;
    }

    T* data_ = nullptr;
    int64_t capacity_ = 0, used_ = 0;
};

// One projected Gaussian. alpha = min(0.999, exp2(l + a dx^2 + b dx dy + c dy^2)) with d = pixel - mean.
struct alignas(64) Record {
    float mx, my;      // px
    float a, b, c, l;  // conic and log2(opacity), log2(e) folded in
    float red, green, blue;
    float z;  // camera depth
    // The ellipse alpha = 1/255: its x range at height y is slope*y +- sqrt(spread*(top2 - y^2)); rightmost at peak.
    float slope, spread, top2, peak;
    uint32_t identity;  // bits of the geometry's last column: what orders rows of equal depth
    float unused;
};
static_assert(sizeof(Record) == 64, "one cache line");

struct Pair {
    uint32_t row;   // index into records
    uint32_t rank;  // number of this pair among the row's pairs
};

struct Span {
    int32_t begin, end;  // tile columns, or tile rows
};

struct TileRows {  // those that a row's ellipse touches; kTile * 65535 px is the largest image
    uint16_t begin, end;
};

struct Keyed {
    union {
        uint32_t key;        // the bits of z; once the order stands,
        TileRows tile_rows;  // where the row is listed
    };
    uint32_t row;
};
static_assert(sizeof(Keyed) == 8, "what the radix sort moves");

// Per block of a tile, what the forward pass leaves for the backward pass: W values each.
struct alignas(64) BlockState {
    vf red, green, blue, depth, transmittance;
};

// Some of a view's rows, where they lie in the arena now.
struct Piece {
    const float* geometry;  // [*, 12]
    const float* colour;    // [*, 48]
    const int32_t* slots;   // [rows]
    int64_t rows;
    int64_t first;  // number of its first row in the view
};

struct View {
    float w2c[12], fx, fy, cx, cy, width, height, centre[3];
    int sh_degree;
    bool antialiased, has_depth;
    float near, far, radius_clip, background[3];
    int image_width, image_height, tiles_x, tiles_y;
};

enum Stage { kProject, kSort, kLists, kForward, kBackward, kProjectBackward, kStages };

struct Workspace {
    View view{};
    int64_t rows = 0, drawn = 0;   // of the view so far
    int64_t pairs = 0;             // of all bands
    int64_t band_bytes = -1;       // what lists of one band may take, if one tile row allows; below 0: no limit
    bool identified = false;       // whether any row has an identity
    bool sorted = false;
    bool absgrad = false;          // whether the moments hold sums of absolute values too
    int moments_of = kMoments;     // floats of a pair's moments
    bool summed = false;           // whether gradients are in `sums` (several bands) or still in `moments`
    Buffer<Record> records;        // [rows]
    Buffer<int32_t> radii;         // [rows, 2]
    Buffer<TileRows> tile_rows;    // [rows]
    Buffer<Keyed> keyed, keyed2;   // [drawn] in depth order after sort
    Keyed* order = nullptr;        // whichever of the two holds the result
    Buffer<int64_t> span_begin;    // [drawn + 1] in depth order
    Buffer<int64_t> pair_begin;    // [rows + 1] where a row's moments begin
    Buffer<float> sums;            // [rows, moments_of] of the bands so far
    std::vector<Span> bands;       // tile rows, ascending
    // Of the band that was listed last:
    Span band{};
    int64_t band_pairs = 0;
    Buffer<Span> spans;
    Buffer<int64_t> cursor;        // [kListChunks, tiles]
    Buffer<int64_t> tile_begin;    // [tiles + 1]
    Buffer<Pair> list;             // [pairs] by tile, then depth
    Buffer<uint32_t> coverage;     // [pairs] blocks to which the pair contributes
    Buffer<BlockState> state;      // [tiles, kBlocks]
    Buffer<float> moments;         // [pairs, moments_of] by row, then tile
    double seconds[kStages] = {};

    int64_t band_tiles() const { return int64_t(view.tiles_x) * (band.end - band.begin); }
    int64_t splat_bytes() const {
        return records.bytes() + radii.bytes() + tile_rows.bytes() + keyed.bytes() + keyed2.bytes() +
               span_begin.bytes() + pair_begin.bytes() + sums.bytes();
    }
    int64_t list_bytes() const {
        return spans.bytes() + cursor.bytes() + tile_begin.bytes() + list.bytes() + coverage.bytes() + state.bytes() +
               moments.bytes();
    }
    void release_lists() {
        spans.release();
        cursor.release();
        tile_begin.release();
        list.release();
        coverage.release();
        state.release();
        moments.release();
    }
};

int64_t project(Workspace& ws, const Piece& piece);  // appends; returns how many of its rows are drawn
void sort_by_depth(Workspace& ws);
void choose_bands(Workspace& ws);
void build_lists(Workspace& ws, Span band);
void composite(Workspace& ws, float* rgb, float* alpha, float* depth, bool has_depth);  // rgb null: the state alone

struct Cotangents {
    const float *rgb, *alpha, *depth;  // [3, H, W], [H, W] or null, [H, W] or null
    bool absgrad, counted;
};
void composite_backward(Workspace& ws, const Cotangents& v);
void clear_sums(Workspace& ws);
void add_to_sums(Workspace& ws);
void row_moments(const Workspace& ws, int64_t row, float* out);  // of one row [moments_of], summed in tile order
void project_backward(Workspace& ws, const Piece& piece, float* grad_geometry, float* grad_colour);

}  // namespace clm
