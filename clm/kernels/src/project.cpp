// Projection, forward: raw rows of a piece -> records in screen space, radii, appended to the view's; rows that draw nothing
// get radii 0.
#include "project.h"

namespace clm {
namespace {

constexpr int64_t kChunk = 512;

void colours8(const View& v, const float* colour, const Rows8& rows, const Projected& o, f8 (&rgb)[3]) {
    f8 c[48], basis[16], d[3], inverse;
    load_colour(v.sh_degree, colour, rows, c);
    direction8(v, o, d, inverse);
    sh_basis(v.sh_degree, d, basis);
    int count = (v.sh_degree + 1) * (v.sh_degree + 1);
    for (int ch = 0; ch < 3; ++ch) {
        f8 sum = splat<f8>(0.5f);
        for (int k = 0; k < count; ++k) sum = fma(basis[k], c[3 * k + ch], sum);
        rgb[ch] = vmax(sum, splat<f8>(0.0f));
    }
}

// The culls of gsplat 1.5.3. Comparisons are written so that a NaN culls.
i8 cull8(const View& v, const Projected& o, f8 q, f8& rx, f8& ry) {
    f8 k = vmin(splat<f8>(kExtent), vsqrt(vmax(q, splat<f8>(0.0f))));
    f8 limit = splat<f8>(1e9f);
    f8 ex = vmin(k * vsqrt(o.xx), limit), ey = vmin(k * vsqrt(o.yy), limit);
    rx = __builtin_convertvector(truncate(ex), f8);
    ry = __builtin_convertvector(truncate(ey), f8);
    rx += keep(rx < ex, splat<f8>(1.0f));
    ry += keep(ry < ey, splat<f8>(1.0f));
    i8 drawn = (o.pc[2] >= splat<f8>(v.near)) & (o.pc[2] <= splat<f8>(v.far));
    drawn &= (o.effective >= splat<f8>(1.0f / 255.0f)) & (o.det > splat<f8>(0.0f)) & (o.det < splat<f8>(kHuge));
    drawn &= (o.mx + rx > splat<f8>(0.0f)) & (o.mx - rx < splat<f8>(v.width));
    drawn &= (o.my + ry > splat<f8>(0.0f)) & (o.my - ry < splat<f8>(v.height));
    return drawn & ((rx > splat<f8>(v.radius_clip)) | (ry > splat<f8>(v.radius_clip)));
}

void store_records(Workspace& ws, int64_t first, int64_t count, f8 (&low)[8], f8 (&high)[8]) {
    transpose(low);
    transpose(high);
    for (int64_t j = 0; j < count; ++j) {
        float* out = reinterpret_cast<float*>(&ws.records[first + j]);
        store(out, low[j]);
        store(out + 8, high[j]);
    }
}

struct Seen {
    int drawn;
    bool identified;
};

Seen project_eight(Workspace& ws, const Piece& piece, int64_t at) {
    const View& v = ws.view;
    Rows8 rows = rows_at(piece, at);
    Projected o;
    project8(v, piece.geometry, rows, o);
    // exp2(l) is the opacity; 2 ln(255 opacity) = q is the squared radius, in sigmas, of the ellipse alpha = 1/255.
    f8 l = log2(vmax(o.effective, splat<f8>(1e-30f)));
    f8 q = 2.0f * kLn2 * (l - kExponentMin);
    f8 rx, ry;
    i8 drawn = cull8(v, o, q, rx, ry) & rows.real;
    const int64_t count = piece.rows - at < 8 ? piece.rows - at : 8, first = piece.first + at;
    i8 radius_x = truncate(keep(drawn, rx)), radius_y = truncate(keep(drawn, ry));
    for (int64_t j = 0; j < count; ++j) {
        ws.radii[2 * (first + j)] = radius_x[j];
        ws.radii[2 * (first + j) + 1] = radius_y[j];
    }
    const uint32_t mask = movemask(drawn);
    f8 rgb[3] = {};
    if (mask) colours8(v, piece.colour, rows, o, rgb);
    f8 inv = 1.0f / o.det;
    // A little generous, so that rounding never drops a pixel; the pixel test itself is exact.
    f8 reach = fma(q, splat<f8>(1.0002f), splat<f8>(1e-4f));
    f8 inv_yy = 1.0f / o.yy;
    f8 low[8] = {o.mx, o.my, (-0.5f * kLog2E) * (o.yy * inv), kLog2E * (o.xy * inv), (-0.5f * kLog2E) * (o.xx * inv),
                 l, rgb[0], rgb[1]};
    f8 high[8] = {rgb[2], o.pc[2], o.xy * inv_yy, o.det * inv_yy * inv_yy, o.yy * reach, o.xy * vsqrt(reach / o.xx),
                  o.identity, f8{}};
    store_records(ws, first, count, low, high);
    return {__builtin_popcount(mask), movemask(bits<i8>(o.identity) != 0) != 0};
}

}  // namespace

int64_t project(Workspace& ws, const Piece& piece) {
    const int64_t rows = piece.rows, after = piece.first + rows;
    ws.records.need(after, piece.first);
    ws.radii.need(2 * after, 2 * piece.first);
    std::atomic<int64_t> drawn{0};
    std::atomic<bool> identified{false};
    parallel((rows + kChunk - 1) / kChunk, [&](int64_t chunk, int) {
        int64_t end = (chunk + 1) * kChunk < rows ? (chunk + 1) * kChunk : rows;
        Seen all{0, false};
        for (int64_t at = chunk * kChunk; at < end; at += 8) {
            Seen seen = project_eight(ws, piece, at);
            all = {all.drawn + seen.drawn, all.identified || seen.identified};
        }
        drawn.fetch_add(all.drawn, std::memory_order_relaxed);
        if (all.identified) identified.store(true, std::memory_order_relaxed);
    });
    ws.rows = after;
    ws.drawn += drawn.load();
    ws.identified = ws.identified || identified.load();
    ws.sorted = false;
    return drawn.load();
}

}  // namespace clm
