// Blending, forward: per tile, batches of 64 Gaussians; per block of pixels one 64-bit word says which touch it.
//
// Colour and transmittance of a block stay in registers while its word is walked. The blocks that a pair really reached
// are written down, so that the backward pass visits no others.
#include <cstring>

#include "raster_tile.h"

namespace clm {
namespace {

constexpr int kBatch = 64;

// A 32x32 bit matrix: bit b of m[i] becomes bit i of m[b].
#ifdef CLM_AVX2
void transpose_bits(uint32_t (&m)[32]) {
    // Bytes of one significance side by side in row order, then one movemask per bit.
    const __m128i group = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m256i v[4], u[4];
    for (int k = 0; k < 4; ++k) {
        __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(m + 4 * k));
        __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(m + 16 + 4 * k));
        v[k] = _mm256_set_m128i(_mm_shuffle_epi8(high, group), _mm_shuffle_epi8(low, group));
    }
    for (int k = 0; k < 2; ++k) {
        u[2 * k] = _mm256_unpacklo_epi32(v[2 * k], v[2 * k + 1]);
        u[2 * k + 1] = _mm256_unpackhi_epi32(v[2 * k], v[2 * k + 1]);
    }
    const __m256i bytes[4] = {_mm256_unpacklo_epi64(u[0], u[2]), _mm256_unpackhi_epi64(u[0], u[2]),
                              _mm256_unpacklo_epi64(u[1], u[3]), _mm256_unpackhi_epi64(u[1], u[3])};
    for (int k = 0; k < 4; ++k) {
        __m256i x = bytes[k];
        for (int bit = 7; bit >= 0; --bit, x = _mm256_add_epi8(x, x))
            m[8 * k + bit] = uint32_t(_mm256_movemask_epi8(x));
    }
}
#else
// Warren, Hacker's Delight 7-3, mirrored.
void transpose_bits(uint32_t (&m)[32]) {
    uint32_t mask = 0x0000ffff;
    for (int j = 16; j; j >>= 1, mask ^= mask << j)
        for (int k = 0; k < 32; k = (k + j + 1) & ~j) {
            uint32_t t = ((m[k] >> j) ^ m[k + j]) & mask;
            m[k] ^= t << j;
            m[k + j] ^= t;
        }
}
#endif

// Blocks of the tile at (x0, y0) that the ellipse alpha = 1/255 touches: its x range in each band of block rows.
CLM_INLINE uint32_t coverage_of(const Record& g, float x0, float y0) {
    constexpr float slop = 0.004f;
    const f8 band = iota<f8>() * float(kBlockHeight) + 0.5f;
    f8 top = band + (y0 - g.my), bottom = top + float(kBlockHeight - 1);
    f8 peak = splat<f8>(g.peak), top2 = splat<f8>(g.top2), slope = splat<f8>(g.slope), zero = f8{};
    f8 right_y = clamp(peak, top, bottom), left_y = clamp(-peak, top, bottom);
    f8 right2 = nfma(right_y, right_y, top2), left2 = nfma(left_y, left_y, top2);
    f8 right = fma(slope, right_y, vsqrt(vmax(right2, zero) * g.spread)) + (g.mx - x0 + 3.5f + slop);
    f8 left = fma(slope, left_y, -vsqrt(vmax(left2, zero) * g.spread)) + (g.mx - x0 - 19.5f - slop);
    f8 four = splat<f8>(4.0f);
    i8 end = truncate(clamp(right * 0.25f, zero, four)), begin = 4 - truncate(clamp(left * -0.25f, zero, four));
    i8 one = i8{} + 1;
    i8 row = ((one << end) - (one << begin)) & (end > begin) & (right2 >= -slop * top2);
    const i8 shift = {0, 4, 8, 12, 16, 20, 24, 28};
    row <<= shift;
    uint32_t out = 0;
    for (int i = 0; i < kBlockRows; ++i) out |= uint32_t(row[i]);
    return out;
}

struct Batch {
    alignas(64) Record records[kBatch];
    uint64_t touched[kBlocks];  // per block: which of the batch may touch it
    uint64_t reached[kBlocks];  // and which did
};

void load_batch(const Workspace& ws, int64_t begin, int count, float x0, float y0, Batch& batch) {
    uint32_t halves[2][32] = {};
    for (int i = 0; i < count; ++i) {
        if (i + 8 < count) __builtin_prefetch(&ws.records[ws.list[begin + i + 8].row]);
        batch.records[i] = ws.records[ws.list[begin + i].row];
        halves[i >> 5][i & 31] = coverage_of(batch.records[i], x0, y0);
    }
    transpose_bits(halves[0]);
    if (count > 32) transpose_bits(halves[1]);
    for (int b = 0; b < kBlocks; ++b) batch.touched[b] = halves[0][b] | uint64_t(halves[1][b]) << 32;
}

void store_coverage(const Batch& batch, int count, uint32_t* out) {
    for (int half = 0; half * 32 < count; ++half) {
        uint32_t m[32] = {};
        for (int b = 0; b < kBlocks; ++b) m[b] = uint32_t(batch.reached[b] >> (32 * half));
        transpose_bits(m);
        int n = count - 32 * half < 32 ? count - 32 * half : 32;
        std::memcpy(out + 32 * half, m, size_t(n) * sizeof(uint32_t));
    }
}

// Walks one block through a batch; true when all its pixels are finished.
template <bool kDepth>
CLM_INLINE bool blend_block(const Batch& batch, uint64_t word, vf px, vf py, BlockState& state,
                            uint64_t& reached_word) {
    vf red = state.red, green = state.green, blue = state.blue, depth = state.depth, t = state.transmittance;
    uint64_t reached_bits = 0;
    bool finished = false;
    while (word) {
        int k = __builtin_ctzll(word);
        word &= word - 1;
        const float* g = &batch.records[k].mx;
        Alpha a = alpha_at(g, px, py);
        vi reached;
        vf w = advance(a, t, reached);
        red = fma(w, splat<vf>(g[6]), red);
        green = fma(w, splat<vf>(g[7]), green);
        blue = fma(w, splat<vf>(g[8]), blue);
        if (kDepth) depth = fma(w, splat<vf>(g[9]), depth);
        reached_bits |= uint64_t(movemask(reached) != 0) << k;
        if (movemask(bits<vi>(t)) == kAllLanes) {
            finished = true;
            break;
        }
    }
    state.red = red;
    state.green = green;
    state.blue = blue;
    if (kDepth) state.depth = depth;
    state.transmittance = t;
    reached_word = reached_bits;
    return finished;
}

void write_tile(const Workspace& ws, const BlockState* state, int x0, int y0, float* rgb, float* alpha, float* depth) {
    const View& v = ws.view;
    const int64_t width = v.image_width, plane = width * v.image_height;
    alignas(64) float tile[5][kTile][kTile];
    for (int b = 0; b < kBlocks; ++b) {
        const BlockState& s = state[b];
        vf a = 1.0f - s.transmittance;
        const vf out[5] = {s.red, s.green, s.blue, a, s.depth / vmax(a, splat<vf>(1e-10f))};
        int x = (b & 3) * kBlockWidth, y = (b >> 2) * kBlockHeight;
        for (int c = 0; c < 5; ++c)
            for (int row = 0; row < kBlockHeight; ++row)
                std::memcpy(&tile[c][y + row][x], reinterpret_cast<const float*>(&out[c]) + 4 * row, 16);
    }
    int columns = v.image_width - x0 < kTile ? v.image_width - x0 : kTile;
    int rows = v.image_height - y0 < kTile ? v.image_height - y0 : kTile;
    float* planes[5] = {rgb, rgb + plane, rgb + 2 * plane, alpha, depth};
    for (int c = 0; c < (depth ? 5 : 4); ++c)
        for (int row = 0; row < rows; ++row)
            copy_tile_row(planes[c] + (y0 + row) * width + x0, tile[c][row], columns);
}

template <bool kDepth>
void blend_tile(Workspace& ws, int64_t tile, float* rgb, float* alpha, float* depth) {
    static const BlockPixels pixels;
    const View& v = ws.view;
    const int x0 = int(tile % v.tiles_x) * kTile, y0 = (ws.band.begin + int(tile / v.tiles_x)) * kTile;
    BlockState* state = ws.state.data() + tile * kBlocks;
    uint32_t live = 0;
    vf px[kBlocks], py[kBlocks];
    for (int b = 0; b < kBlocks; ++b) {
        px[b] = pixels.x[b] + float(x0);
        py[b] = pixels.y[b] + float(y0);
        state[b].red = state[b].green = state[b].blue = state[b].depth = vf{};
        state[b].transmittance = initial_transmittance(px[b], py[b], v.width, v.height);
        if (movemask(bits<vi>(state[b].transmittance)) != kAllLanes) live |= 1u << b;
    }
    Batch batch;
    int64_t at = ws.tile_begin[tile], end = ws.tile_begin[tile + 1];
    for (; at < end && live; at += kBatch) {
        int count = int(end - at < kBatch ? end - at : kBatch);
        load_batch(ws, at, count, float(x0), float(y0), batch);
        for (int b = 0; b < kBlocks; ++b) {
            batch.reached[b] = 0;
            if (!(live >> b & 1) || !batch.touched[b]) continue;
            if (blend_block<kDepth>(batch, batch.touched[b], px[b], py[b], state[b], batch.reached[b]))
                live &= ~(1u << b);
        }
        store_coverage(batch, count, ws.coverage.data() + at);
    }
    if (at < end) std::memset(ws.coverage.data() + at, 0, size_t(end - at) * sizeof(uint32_t));
    for (int b = 0; b < kBlocks; ++b) {
        BlockState& s = state[b];
        s.transmittance = vabs(s.transmittance);
        s.red = fma(s.transmittance, splat<vf>(v.background[0]), s.red);
        s.green = fma(s.transmittance, splat<vf>(v.background[1]), s.green);
        s.blue = fma(s.transmittance, splat<vf>(v.background[2]), s.blue);
    }
    if (rgb) write_tile(ws, state, x0, y0, rgb, alpha, depth);
}

}  // namespace

void composite(Workspace& ws, float* rgb, float* alpha, float* depth, bool has_depth) {
    const int64_t tiles = ws.band_tiles();
    ws.state.need(tiles * kBlocks);
    ws.coverage.need(ws.band_pairs);
    parallel(tiles, [&](int64_t tile, int) {
        if (has_depth)
            blend_tile<true>(ws, tile, rgb, alpha, depth);
        else
            blend_tile<false>(ws, tile, rgb, alpha, depth);
    });
}

}  // namespace clm
