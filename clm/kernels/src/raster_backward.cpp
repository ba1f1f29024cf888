// Blending, backward: replay front to back with the instructions of the forward pass, one pair at a time.
//
// Per pixel it keeps T and one scalar S = v.(colour still to come) - v_alpha T_final + v_depth_sum (depth to come).
// With w = alpha T and g = v.c: S -= w g; dL/dsigma = S alpha / (1 - alpha) - w g. Sums of dL/dsigma times
// 1, dx, dy, dx^2, dx dy, dy^2 and of w v give all gradients of a Gaussian later, and sums of w over the pixels that the loss
// looks at how much of the image the Gaussian explains. Each pair owns its row of moments, so nothing is shared.
#include <cstring>

#include "raster_tile.h"

namespace clm {
namespace {

// One block's running state beside its cotangents: together, so that no two streams lie a multiple of 4 KB apart.
struct alignas(64) Replay {
    vf transmittance, s, red, green, blue, counted, depth;
};

// The tile's part of a planar image as blocks; zero outside the image.
void load_tile(const View& v, const float* plane, int x0, int y0, vf (&out)[kBlocks]) {
    alignas(64) float tile[kTile][kTile] = {};
    int columns = v.image_width - x0 < kTile ? v.image_width - x0 : kTile;
    int rows = v.image_height - y0 < kTile ? v.image_height - y0 : kTile;
    for (int row = 0; row < rows; ++row)
        copy_tile_row(tile[row], plane + int64_t(y0 + row) * v.image_width + x0, columns);
    for (int b = 0; b < kBlocks; ++b)
        for (int row = 0; row < kBlockHeight; ++row)
            std::memcpy(reinterpret_cast<float*>(&out[b]) + 4 * row,
                        &tile[(b >> 2) * kBlockHeight + row][(b & 3) * kBlockWidth], 16);
}

template <bool kDepth>
void start_replay(const Workspace& ws, const Cotangents& c, int64_t tile, int x0, int y0, const vf* px, const vf* py,
                  Replay* out) {
    const View& v = ws.view;
    const int64_t plane = int64_t(v.image_width) * v.image_height;
    vf red[kBlocks], green[kBlocks], blue[kBlocks], alpha[kBlocks] = {}, depth[kBlocks] = {};
    load_tile(v, c.rgb, x0, y0, red);
    load_tile(v, c.rgb + plane, x0, y0, green);
    load_tile(v, c.rgb + 2 * plane, x0, y0, blue);
    if (c.alpha) load_tile(v, c.alpha, x0, y0, alpha);
    if (kDepth) load_tile(v, c.depth, x0, y0, depth);
    for (int b = 0; b < kBlocks; ++b) {
        const BlockState& s = ws.state[tile * kBlocks + b];
        Replay& r = out[b];
        vf v_alpha = alpha[b];
        r.s = fma(red[b], s.red, fma(green[b], s.green, blue[b] * s.blue));
        if (kDepth) {
            // Expected depth = sum / max(alpha, 1e-10).
            vf coverage = 1.0f - s.transmittance, inv = 1.0f / vmax(coverage, splat<vf>(1e-10f));
            r.depth = depth[b] * inv;
            v_alpha -= keep(coverage > splat<vf>(1e-10f), r.depth * s.depth * inv);
            r.s = fma(r.depth, s.depth, r.s);
        }
        r.s = nfma(v_alpha, s.transmittance, r.s);
        r.red = red[b];
        r.green = green[b];
        r.blue = blue[b];
        r.counted = keep((red[b] != 0.0f) | (green[b] != 0.0f) | (blue[b] != 0.0f), splat<vf>(1.0f));
        r.transmittance = initial_transmittance(px[b], py[b], v.width, v.height);
    }
}

template <bool kDepth, bool kAbs, bool kCounted>
CLM_INLINE void replay_pair(const Record& record, uint32_t blocks, const vf* px, const vf* py, Replay* replay,
                            float* out) {
    const float* g = &record.mx;
    vf m[8] = {}, blue{}, pixels{}, abs_x{}, abs_y{}, depth{};
    for (; blocks; blocks &= blocks - 1) {
        int b = __builtin_ctz(blocks);
        Replay& r = replay[b];
        Alpha a = alpha_at(g, px[b], py[b]);
        vi reached;
        vf t = r.transmittance;
        vf w = advance(a, t, reached);
        r.transmittance = t;
        vf v = fma(r.red, splat<vf>(g[6]), fma(r.green, splat<vf>(g[7]), r.blue * splat<vf>(g[8])));
        if (kDepth) v = fma(r.depth, splat<vf>(g[9]), v);
        vf wv = w * v;
        vf s = r.s - wv;
        r.s = s;
        // The division does not wait for S.
        vf h = fma(s, a.alpha / (1.0f - a.alpha), -wv);
        h = keep(reached & (a.raw <= splat<vf>(kAlphaMax)), h);
        vf hx = h * a.dx, hy = h * a.dy;
        m[0] += h;
        m[1] += hx;
        m[2] += hy;
        m[3] = fma(hx, a.dx, m[3]);
        m[4] = fma(hx, a.dy, m[4]);
        m[5] = fma(hy, a.dy, m[5]);
        m[6] = fma(w, r.red, m[6]);
        m[7] = fma(w, r.green, m[7]);
        blue = fma(w, r.blue, blue);
        if (kCounted) pixels = fma(w, r.counted, pixels);
        if (kDepth) depth = fma(w, r.depth, depth);
        if (kAbs) {
            abs_x += vabs(fma(splat<vf>(2.0f * g[2]), hx, splat<vf>(g[3]) * hy));
            abs_y += vabs(fma(splat<vf>(2.0f * g[4]), hy, splat<vf>(g[3]) * hx));
        }
    }
    store(out, sums(m));
    out[8] = sum(blue);
    out[9] = kCounted ? sum(pixels) : 0.0f;
    out[10] = kAbs ? sum(abs_x) : 0.0f;
    out[11] = kAbs ? sum(abs_y) : 0.0f;
    if (kDepth) {
        store(out + 12, f4{sum(depth)});
    }
}

inline float* moments_of(const Workspace& ws, Pair pair) {
    return ws.moments.data() + (ws.pair_begin[pair.row] + pair.rank) * ws.moments_of;
}

template <bool kDepth, bool kAbs, bool kCounted>
void replay_tile(Workspace& ws, const Cotangents& c, int64_t tile) {
    static const BlockPixels pixels;
    const View& v = ws.view;
    const int x0 = int(tile % v.tiles_x) * kTile, y0 = (ws.band.begin + int(tile / v.tiles_x)) * kTile;
    const int64_t begin = ws.tile_begin[tile], end = ws.tile_begin[tile + 1];
    if (begin == end) return;
    vf px[kBlocks], py[kBlocks];
    for (int b = 0; b < kBlocks; ++b) {
        px[b] = pixels.x[b] + float(x0);
        py[b] = pixels.y[b] + float(y0);
    }
    Replay replay[kBlocks];
    start_replay<kDepth>(ws, c, tile, x0, y0, px, py, replay);
    for (int64_t at = begin; at < end; ++at) {
        if (at + 16 < end) __builtin_prefetch(&ws.pair_begin[ws.list[at + 16].row]);
        if (at + 8 < end) {
            Pair next = ws.list[at + 8];
            __builtin_prefetch(&ws.records[next.row]);
            __builtin_prefetch(moments_of(ws, next), 1);
        }
        Pair pair = ws.list[at];
        float* out = moments_of(ws, pair);
        uint32_t blocks = ws.coverage[at];
        if (blocks)
            replay_pair<kDepth, kAbs, kCounted>(ws.records[pair.row], blocks, px, py, replay, out);
        else
            std::memset(out, 0, size_t(ws.moments_of) * sizeof(float));
    }
}

using ReplayTile = void (*)(Workspace&, const Cotangents&, int64_t);

}  // namespace

void composite_backward(Workspace& ws, const Cotangents& v) {
    const int64_t tiles = ws.band_tiles();
    ws.moments.need(ws.band_pairs * ws.moments_of);
    static constexpr ReplayTile kReplays[2][2][2] = {
        {{replay_tile<false, false, false>, replay_tile<false, false, true>},
         {replay_tile<false, true, false>, replay_tile<false, true, true>}},
        {{replay_tile<true, false, false>, replay_tile<true, false, true>},
         {replay_tile<true, true, false>, replay_tile<true, true, true>}},
    };
    const ReplayTile replay = kReplays[v.depth != nullptr][v.absgrad][v.counted];
    parallel(tiles, [&](int64_t tile, int) { replay(ws, v, tile); });
}

}  // namespace clm
