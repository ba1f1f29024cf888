// What the forward and the backward pass must do identically, bit for bit: coverage, alpha, transmittance.
#pragma once
#include <cstring>

#include "raster.h"

namespace clm {

// Pixel centres of every block of a tile, relative to its first pixel.
struct BlockPixels {
    vf x[kBlocks], y[kBlocks];
    BlockPixels() {
        for (int b = 0; b < kBlocks; ++b)
            for (int i = 0; i < W; ++i) {
                x[b][i] = float((b & 3) * kBlockWidth + i % kBlockWidth) + 0.5f;
                y[b][i] = float((b >> 2) * kBlockHeight + i / kBlockWidth) + 0.5f;
            }
    }
};

struct Alpha {
    vf dx, dy, raw, alpha;  // raw = before the clamp
    vi valid;
};

CLM_INLINE Alpha alpha_at(const float* g, vf px, vf py) {
    Alpha o;
    o.dx = px - splat<vf>(g[0]);
    o.dy = py - splat<vf>(g[1]);
    vf l = splat<vf>(g[5]);
    vf e = fma(splat<vf>(g[4]) * o.dy, o.dy, l);
    e = fma(o.dx, fma(splat<vf>(g[2]), o.dx, splat<vf>(g[3]) * o.dy), e);
    o.valid = (e >= splat<vf>(kExponentMin)) & (e <= l);
    o.raw = exp2(e);
    o.alpha = vmin(o.raw, splat<vf>(kAlphaMax));
    return o;
}

// Blends one Gaussian: returns its weight and the lanes it reached. A pixel that is finished carries -T.
CLM_INLINE vf advance(const Alpha& a, vf& transmittance, vi& reached) {
    // The chain from T to T is what a block waits for: one fused step, one comparison, one blend. A lane that is not
    // valid has alpha 0 and keeps its T; a finished one has T < 0 and stays below the limit.
    vf alpha = keep(a.valid, a.alpha);
    vf after = nfma(transmittance, alpha, transmittance);
    vi alive = after > splat<vf>(kTransmittanceMin);
    vf w = keep(alive, alpha * transmittance);
    transmittance = blend(alive, after, bits<vf>(bits<vi>(transmittance) | int32_t(0x80000000)));
    reached = a.valid & alive;
    return w;
}

// Floats of one row of a tile, all of them but at the right edge of an image: then the copy is two instructions, not a call.
CLM_INLINE void copy_tile_row(float* to, const float* from, int columns) {
    if (columns == kTile)
        std::memcpy(to, from, kTile * sizeof(float));
    else
        std::memcpy(to, from, size_t(columns) * sizeof(float));
}

constexpr uint32_t kAllLanes = uint32_t((uint64_t(1) << W) - 1);

// -1 in lanes outside the image (they start finished), +1 inside.
CLM_INLINE vf initial_transmittance(vf px, vf py, float width, float height) {
    vi inside = (px < splat<vf>(width)) & (py < splat<vf>(height));
    return blend(inside, splat<vf>(1.0f), splat<vf>(-1.0f));
}

}  // namespace clm
