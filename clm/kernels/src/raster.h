// What the stages of the rasteriser share: the workspace of one view and the layout of its buffers.
//
// project -> sort | lists -> forward | backward | project_backward. Every stage is parallel over chunks that write
// only their own part, and every sum has a fixed order, so results are bitwise equal for any thread count.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>

#include "pool.h"
#include "simd.h"

namespace clm {

constexpr float kLog2E = 1.44269504088896f, kLn2 = 0.693147180559945f;
constexpr float kExponentMin = -7.99435343685886f;  // log2(1/255): below it a Gaussian does not touch a pixel
constexpr float kAlphaMax = 0.999f;
constexpr float kTransmittanceMin = 1e-4f;
constexpr float kBlur = 0.3f;  // px^2 on the diagonal of the projected covariance

constexpr int kTile = 16;                    // px; 256 pixels in blocks of one vector each
constexpr int kBlockWidth = 4;               // px
constexpr int kBlockHeight = W / kBlockWidth;
constexpr int kBlockRows = kTile / kBlockHeight;
constexpr int kBlocks = 4 * kBlockRows;      // 32 (f8) or 16 (f16): a tile's coverage fits a uint32
constexpr int kMoments = 12;
constexpr int kListChunks = 16;

// Memory that grows and never shrinks; growing forgets the content.
template <class T>
class Buffer {
  public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { std::free(data_); }
    T* need(int64_t count) {
        if (count > capacity_) {
            std::free(data_);
            data_ = nullptr;
            capacity_ = 0;
            int64_t room = count + count / 4 + 64;
            size_t bytes = (size_t(room) * sizeof(T) + 63) / 64 * 64;
            data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
            if (!data_) throw std::bad_alloc();
            capacity_ = room;
            used_ = 0;
        }
        if (count > used_) used_ = count;
        return data_;
    }
    // The part that was ever asked for: what lies behind it was never touched, so it takes no memory.
    int64_t bytes() const { return used_ * int64_t(sizeof(T)); }
    T* data() const { return data_; }
    T& operator[](int64_t i) const { return data_[i]; }

  private:
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
    float unused[2];
};
static_assert(sizeof(Record) == 64, "one cache line");

struct Pair {
    uint32_t row;   // index into records
    uint32_t rank;  // number of this pair among the row's pairs
};

struct Span {
    int32_t begin, end;  // tile columns, or tile rows
};

struct Keyed {
    uint32_t key, row;
};

// Per block of a tile, what the forward pass leaves for the backward pass: W values each.
struct alignas(64) BlockState {
    vf red, green, blue, depth, transmittance;
};

struct View {
    const float* geometry;  // [*, 12]
    const float* colour;    // [*, 48]
    const int32_t* slots;   // [rows]
    int64_t rows;
    float w2c[12], fx, fy, cx, cy, width, height, centre[3];
    int sh_degree;
    bool antialiased, has_depth;
    float near, far, radius_clip, background[3];
    int image_width, image_height, tiles_x, tiles_y;
};

enum Stage { kProject, kSort, kLists, kForward, kBackward, kProjectBackward, kStages };

struct Workspace {
    View view{};
    int64_t drawn = 0, pairs = 0;
    bool absgrad = false;          // whether the moments hold sums of absolute values too
    Buffer<Record> records;        // [rows]
    Buffer<int32_t> radii;         // [rows, 2]
    Buffer<Keyed> keyed, keyed2;   // [drawn] in depth order after sort
    Keyed* order = nullptr;        // whichever of the two holds the result
    Buffer<Span> tile_rows;        // [rows] tile rows that a drawn row's ellipse touches
    Buffer<int64_t> span_begin;    // [drawn + 1] in depth order
    Buffer<Span> spans;
    Buffer<int64_t> pair_count;    // [rows], then
    Buffer<int64_t> pair_begin;    // [rows + 1] where a row's moments begin
    Buffer<int64_t> cursor;        // [kListChunks, tiles]
    Buffer<int64_t> tile_begin;    // [tiles + 1]
    Buffer<Pair> list;             // [pairs] by tile, then depth
    Buffer<uint32_t> coverage;     // [pairs] blocks to which the pair contributes
    Buffer<BlockState> state;      // [tiles, kBlocks]
    Buffer<float> moments;         // [pairs, kMoments] by row, then tile
    double seconds[kStages] = {};

    int64_t bytes() const {
        return records.bytes() + radii.bytes() + keyed.bytes() + keyed2.bytes() + tile_rows.bytes() +
               span_begin.bytes() + spans.bytes() + pair_count.bytes() + pair_begin.bytes() + cursor.bytes() +
               tile_begin.bytes() + list.bytes() + coverage.bytes() + state.bytes() + moments.bytes();
    }
};

void project(Workspace& ws);
void sort_by_depth(Workspace& ws);
void build_lists(Workspace& ws);
void composite(Workspace& ws, float* rgb, float* alpha, float* depth);

struct Cotangents {
    const float *rgb, *alpha, *depth;  // [3, H, W], [H, W] or null, [H, W] or null
    bool absgrad;
};
void composite_backward(Workspace& ws, const Cotangents& v);
void project_backward(Workspace& ws, float* grad_geometry, float* grad_colour);

}  // namespace clm
