// Projection, backward: gathers each row's moments over its tiles (in tile order) and adds to its gradient row.
//
// Formulas by reverse differentiation of project.h; the quaternion part is gsplat's quat_to_rotmat_vjp.
#include <cstring>

#include "project.h"

namespace clm {
namespace {

constexpr int64_t kChunk = 512;

// A row's moments.
struct Sums {
    f8 low{};
    f4 tail{}, deep{};

    void add(const Workspace& ws, const float* moments) {
        low += load<f8>(moments);
        tail += load<f4>(moments + 8);
        if (ws.moments_of > kMoments) deep += load<f4>(moments + kMoments);
    }
    // Those of a row's pairs, in tile order.
    void add_pairs(const Workspace& ws, int64_t row) {
        for (int64_t p = ws.pair_begin[row]; p < ws.pair_begin[row + 1]; ++p) add(ws, ws.moments.data() + p * ws.moments_of);
    }
    // Those of a row, wherever they are by now.
    void add_row(const Workspace& ws, int64_t row) {
        if (ws.summed)
            add(ws, ws.sums.data() + row * ws.moments_of);
        else
            add_pairs(ws, row);
    }
    void write(const Workspace& ws, float* moments) const {
        store(moments, low);
        store(moments + 8, tail);
        if (ws.moments_of > kMoments) store(moments + kMoments, deep);
    }
};

// Sums of the moments of eight rows: m[k] lane j = moment k of the view's row first + j; rows not drawn give zeros.
void gather8(const Workspace& ws, int64_t first, i8 drawn, f8 (&m)[16]) {
    f8 low[8], high[8];
    for (int j = 0; j < 8; ++j) {
        Sums sums;
        if (drawn[j]) sums.add_row(ws, first + j);
        low[j] = sums.low;
        high[j] = f8{sums.tail[0], sums.tail[1], sums.tail[2], sums.tail[3], sums.deep[0]};
    }
    transpose(low);
    transpose(high);
    for (int k = 0; k < 8; ++k) {
        m[k] = low[k];
        m[8 + k] = high[k];
    }
}

// Adds column k of `columns` at offset `first` of each drawn row.
CLM_INLINE void add_columns(float* table, int64_t stride, const Rows8& rows, uint32_t drawn, int first,
                            f8 (&columns)[8]) {
    transpose(columns);
    for (int j = 0; j < 8; ++j) {
        if (!(drawn >> j & 1)) continue;
        float* at = table + rows.slot[j] * stride + first;
        store(at, load<f8>(at) + columns[j]);
    }
}

// Colour: v_rgb -> SH coefficients (added to grad_colour) and, through the direction, the mean.
void colour_backward8(const View& v, const float* colour, const Rows8& rows, const Projected& o, uint32_t drawn, const f8* v_rgb,
                      float* grad_colour, f8 (&v_p)[3]) {
    f8 c[48], basis[16], d[3], inverse, t[16], rgb[3];
    load_colour(v.sh_degree, colour, rows, c);
    direction8(v, o, d, inverse);
    sh_basis(v.sh_degree, d, basis);
    const int count = (v.sh_degree + 1) * (v.sh_degree + 1);
    for (int ch = 0; ch < 3; ++ch) {
        f8 sum = splat<f8>(0.5f);
        for (int k = 0; k < count; ++k) sum = fma(basis[k], c[3 * k + ch], sum);
        rgb[ch] = keep(sum > f8{}, v_rgb[ch]);
    }
    for (int k = 0; k < count; ++k) {
        t[k] = fma(rgb[0], c[3 * k], fma(rgb[1], c[3 * k + 1], rgb[2] * c[3 * k + 2]));
        for (int ch = 0; ch < 3; ++ch) c[3 * k + ch] = basis[k] * rgb[ch];
    }
    for (int k = 3 * count; k < 8 * sh_groups(v.sh_degree); ++k) c[k] = f8{};
    for (int group = 0; group < sh_groups(v.sh_degree); ++group) {
        f8 columns[8];
        for (int k = 0; k < 8; ++k) columns[k] = c[8 * group + k];
        add_columns(grad_colour, 48, rows, drawn, 8 * group, columns);
    }
    f8 g[3] = {};
    sh_gradient(v.sh_degree, d, t, g);
    f8 along = dot3(d, g);
    for (int i = 0; i < 3; ++i) v_p[i] += (g[i] - d[i] * along) * inverse;
}

CLM_INLINE void quat_backward(const f8 (&q)[4], f8 q_inv, const f8 (&r)[3][3], f8 (&v_q)[4]) {
    f8 w = q[0], x = q[1], y = q[2], z = q[3];
    f8 a = r[2][1] - r[1][2], b = r[0][2] - r[2][0], c = r[1][0] - r[0][1];
    f8 d = r[0][1] + r[1][0], e = r[0][2] + r[2][0], f = r[1][2] + r[2][1];
    v_q[0] = 2.0f * (x * a + y * b + z * c);
    v_q[1] = 2.0f * (w * a + y * d + z * e) - 4.0f * x * (r[1][1] + r[2][2]);
    v_q[2] = 2.0f * (w * b + x * d + z * f) - 4.0f * y * (r[0][0] + r[2][2]);
    v_q[3] = 2.0f * (w * c + x * e + y * f) - 4.0f * z * (r[0][0] + r[1][1]);
    f8 along = q[0] * v_q[0] + q[1] * v_q[1] + q[2] * v_q[2] + q[3] * v_q[3];
    for (int i = 0; i < 4; ++i) v_q[i] = (v_q[i] - q[i] * along) * q_inv;
}

struct Screen {
    f8 mx, my, xx, xy, yy;  // cotangents of the mean and of the blurred covariance (xy: one entry of the pair)
    f8 logit;
};

// Moments -> cotangents in screen space. Conic [A B; B C]; dL/dSigma = -K G K with G = [vA, vB/2; vB/2, vC].
CLM_INLINE Screen screen_backward(const View& v, const Projected& o, const f8 (&m)[16]) {
    Screen s;
    f8 inv = 1.0f / o.det, a = o.yy * inv, b = -o.xy * inv, c = o.xx * inv;
    s.mx = -(a * m[1] + b * m[2]);
    s.my = -(b * m[1] + c * m[2]);
    f8 g00 = 0.5f * m[3], g01 = 0.5f * m[4], g11 = 0.5f * m[5];
    f8 t00 = a * g00 + b * g01, t01 = a * g01 + b * g11, t10 = b * g00 + c * g01, t11 = b * g01 + c * g11;
    s.xx = -(t00 * a + t01 * b);
    s.xy = -2.0f * (t00 * b + t01 * c);
    s.yy = -(t10 * b + t11 * c);
    s.logit = -m[0] * (1.0f - o.opacity);
    if (v.antialiased) {
        // ln(effective) = ln(opacity) + ln(det0 / det) / 2, and dL/dln(effective) = -m[0].
        f8 ratio = o.det0 * inv, scale = -0.5f * m[0] / vmax(o.det0, splat<f8>(1e-30f));
        s.xx += scale * (o.yy0 - ratio * o.yy);
        s.yy += scale * (o.xx0 - ratio * o.xx);
        s.xy += scale * -2.0f * o.xy * (1.0f - ratio);
    }
    return s;
}

// Covariance and Jacobian: cotangents of U = W R S and of the camera-space mean.
CLM_INLINE void footprint_backward(const View& v, const Projected& o, const Screen& s, f8 (&v_u)[3][3], f8 (&v_c)[3]) {
    f8 v_jx{}, v_jxz{}, v_jy{}, v_jyz{};
    for (int k = 0; k < 3; ++k) {
        f8 v0 = 2.0f * s.xx * o.p0[k] + s.xy * o.p1[k], v1 = 2.0f * s.yy * o.p1[k] + s.xy * o.p0[k];
        v_jx = fma(v0, o.u[0][k], v_jx);
        v_jxz = fma(v0, o.u[2][k], v_jxz);
        v_jy = fma(v1, o.u[1][k], v_jy);
        v_jyz = fma(v1, o.u[2][k], v_jyz);
        v_u[0][k] = o.jx * v0;
        v_u[1][k] = o.jy * v1;
        v_u[2][k] = o.jxz * v0 + o.jyz * v1;
    }
    f8 tx = o.pc[0] * o.rz, ty = o.pc[1] * o.rz;
    // mean2d = f t + c with t = x/z; J = [f/z, -f l/z] with l = clamped t.
    f8 v_tx = v.fx * s.mx - keep(o.free_x, o.jx * v_jxz), v_ty = v.fy * s.my - keep(o.free_y, o.jy * v_jyz);
    v_c[0] += v_tx * o.rz;
    v_c[1] += v_ty * o.rz;
    v_c[2] -= o.rz * (v_tx * tx + v_ty * ty + o.jx * v_jx + o.jxz * v_jxz + o.jy * v_jy + o.jyz * v_jyz);
}

void backward_eight(const Workspace& ws, const Piece& piece, int64_t at, float* grad_geometry, float* grad_colour) {
    const View& v = ws.view;
    const int64_t first = piece.first + at;
    i8 drawn_lanes{};
    for (int64_t j = 0; j < 8 && at + j < piece.rows; ++j) drawn_lanes[j] = ws.radii[2 * (first + j)] > 0 ? -1 : 0;
    uint32_t drawn = movemask(drawn_lanes);
    if (!drawn) return;
    f8 m[16];
    gather8(ws, first, drawn_lanes, m);
    Rows8 rows = rows_at(piece, at);
    Projected o;
    project8(v, piece.geometry, rows, o);
    Screen s = screen_backward(v, o, m);
    f8 v_u[3][3], v_c[3] = {f8{}, f8{}, m[12]}, v_p[3] = {}, v_r[3][3], v_s[3], v_q[4];
    footprint_backward(v, o, s, v_u, v_c);
    const f8 v_rgb[3] = {m[6], m[7], m[8]};
    colour_backward8(v, piece.colour, rows, o, drawn, v_rgb, grad_colour, v_p);
    const float* w = v.w2c;
    for (int j = 0; j < 3; ++j) v_p[j] += w[j] * v_c[0] + w[4 + j] * v_c[1] + w[8 + j] * v_c[2];
    for (int k = 0; k < 3; ++k) {
        v_s[k] = f8{};
        for (int j = 0; j < 3; ++j) {
            v_r[j][k] = o.s[k] * (w[j] * v_u[0][k] + w[4 + j] * v_u[1][k] + w[8 + j] * v_u[2][k]);
            v_s[k] = fma(v_r[j][k], o.r[j][k], v_s[k]);
        }
    }
    quat_backward(o.q, o.q_inv, v_r, v_q);
    f8 nx = (ws.absgrad ? kLn2 * m[10] : s.mx) * (0.5f * v.width);
    f8 ny = (ws.absgrad ? kLn2 * m[11] : s.my) * (0.5f * v.height);
    f8 low[8] = {v_p[0], v_p[1], v_p[2], v_q[0], v_q[1], v_q[2], v_q[3], v_s[0]};
    f8 high[8] = {v_s[1], v_s[2], s.logit, splat<f8>(1.0f), vsqrt(nx * nx + ny * ny), m[9], m[9] * m[9], f8{}};
    add_columns(grad_geometry, 16, rows, drawn, 0, low);
    add_columns(grad_geometry, 16, rows, drawn, 8, high);
}

}  // namespace

void clear_sums(Workspace& ws) {
    const int64_t floats = ws.rows * ws.moments_of, chunk_floats = kChunk * ws.moments_of;
    ws.sums.need(floats);
    parallel((floats + chunk_floats - 1) / chunk_floats, [&](int64_t chunk, int) {
        int64_t begin = chunk * chunk_floats, end = begin + chunk_floats < floats ? begin + chunk_floats : floats;
        std::memset(ws.sums.data() + begin, 0, size_t(end - begin) * sizeof(float));
    });
}

// Continues each row's sum with the pairs of the band: the additions of a view without bands, in their order.
void add_to_sums(Workspace& ws) {
    const int64_t rows = ws.rows;
    parallel((rows + kChunk - 1) / kChunk, [&](int64_t chunk, int) {
        int64_t end = (chunk + 1) * kChunk < rows ? (chunk + 1) * kChunk : rows;
        for (int64_t row = chunk * kChunk; row < end; ++row) {
            if (ws.pair_begin[row] == ws.pair_begin[row + 1]) continue;
            float* so_far = ws.sums.data() + row * ws.moments_of;
            Sums sums;
            sums.add(ws, so_far);
            sums.add_pairs(ws, row);
            sums.write(ws, so_far);
        }
    });
}

void row_moments(const Workspace& ws, int64_t row, float* out) {
    Sums sums;
    sums.add_row(ws, row);
    sums.write(ws, out);
}

void project_backward(Workspace& ws, const Piece& piece, float* grad_geometry, float* grad_colour) {
    const int64_t rows = piece.rows;
    parallel((rows + kChunk - 1) / kChunk, [&](int64_t chunk, int) {
        int64_t end = (chunk + 1) * kChunk < rows ? (chunk + 1) * kChunk : rows;
        for (int64_t at = chunk * kChunk; at < end; at += 8)
            backward_eight(ws, piece, at, grad_geometry, grad_colour);
    });
}

}  // namespace clm
