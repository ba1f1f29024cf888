// Projection of eight Gaussians at a time, shared by the forward and the backward pass (which recomputes it).
//
// Activations, EWA projection (Zwicker et al. 2002, as in gsplat 1.5.3) and spherical harmonics. The projected
// covariance is P P^T with P = J W R S (2x3), so its determinant is |p0 x p1|^2: never negative, no cancellation.
#pragma once
#include "raster.h"

namespace clm {

constexpr float kHuge = 1e30f;  // an overflowing footprint is culled

struct Rows8 {
    int64_t slot[8];
    i8 real;  // lanes below the number of rows
};

// Eight rows from the piece's row `at` on.
CLM_INLINE Rows8 rows_at(const Piece& piece, int64_t at) {
    Rows8 rows;
    for (int j = 0; j < 8; ++j) {
        int64_t i = at + j < piece.rows ? at + j : piece.rows - 1;
        rows.slot[j] = piece.slots[i];
        rows.real[j] = at + j < piece.rows ? -1 : 0;
    }
    return rows;
}

// out[k] = column first + k of the eight rows.
CLM_INLINE void load_columns(const float* table, int64_t stride, const Rows8& rows, int first, f8 (&out)[8]) {
    for (int j = 0; j < 8; ++j) out[j] = load<f8>(table + rows.slot[j] * stride + first);
    transpose(out);
}

CLM_INLINE f8 dot3(const f8* a, const f8* b) { return fma(a[0], b[0], fma(a[1], b[1], a[2] * b[2])); }

struct Projected {
    f8 p[3], pc[3], rz;        // world and camera position, 1/z
    f8 q[4], q_inv;            // unit quaternion, 1/norm
    f8 r[3][3], s[3];          // rotation, scales
    f8 u[3][3];                // W R S
    f8 jx, jxz, jy, jyz;       // Jacobian: [jx 0 jxz; 0 jy jyz]
    f8 lx, ly;                 // clamped x/z, y/z
    i8 free_x, free_y;         // not clamped
    f8 p0[3], p1[3];           // rows of J W R S
    f8 xx0, yy0, xy, xx, yy;   // covariance before and after the blur
    f8 det0, det;
    f8 opacity, effective;     // after sigmoid; after compensation
    f8 mx, my;
    f8 identity;  // bits, not a number
};

CLM_INLINE void project8(const View& v, const float* geometry, const Rows8& rows, Projected& o) {
    f8 low[8], high[8];
    load_columns(geometry, 12, rows, 0, low);
    load_columns(geometry, 12, rows, 4, high);
    const float* m = v.w2c;
    for (int i = 0; i < 3; ++i) o.p[i] = low[i];
    for (int i = 0; i < 3; ++i)
        o.pc[i] = fma(splat<f8>(m[4 * i]), o.p[0],
                      fma(splat<f8>(m[4 * i + 1]), o.p[1],
                          fma(splat<f8>(m[4 * i + 2]), o.p[2], splat<f8>(m[4 * i + 3]))));
    o.rz = 1.0f / o.pc[2];

    f8 norm2 = low[3] * low[3] + low[4] * low[4] + low[5] * low[5] + low[6] * low[6];
    o.q_inv = 1.0f / vsqrt(vmax(norm2, splat<f8>(1e-24f)));
    for (int i = 0; i < 4; ++i) o.q[i] = low[3 + i] * o.q_inv;
    f8 w = o.q[0], x = o.q[1], y = o.q[2], z = o.q[3];
    o.r[0][0] = 1.0f - 2.0f * (y * y + z * z);
    o.r[0][1] = 2.0f * (x * y - w * z);
    o.r[0][2] = 2.0f * (x * z + w * y);
    o.r[1][0] = 2.0f * (x * y + w * z);
    o.r[1][1] = 1.0f - 2.0f * (x * x + z * z);
    o.r[1][2] = 2.0f * (y * z - w * x);
    o.r[2][0] = 2.0f * (x * z - w * y);
    o.r[2][1] = 2.0f * (y * z + w * x);
    o.r[2][2] = 1.0f - 2.0f * (x * x + y * y);
    o.s[0] = vexp(low[7]);
    o.s[1] = vexp(high[4]);
    o.s[2] = vexp(high[5]);
    o.identity = high[7];
    for (int i = 0; i < 3; ++i)
        for (int k = 0; k < 3; ++k)
            o.u[i][k] = o.s[k] * fma(splat<f8>(m[4 * i]), o.r[0][k],
                                     fma(splat<f8>(m[4 * i + 1]), o.r[1][k], m[4 * i + 2] * o.r[2][k]));

    f8 tx = o.pc[0] * o.rz, ty = o.pc[1] * o.rz;
    float margin_x = 0.15f * v.width / v.fx, margin_y = 0.15f * v.height / v.fy;
    o.lx = clamp(tx, splat<f8>(-(v.cx / v.fx + margin_x)), splat<f8>((v.width - v.cx) / v.fx + margin_x));
    o.ly = clamp(ty, splat<f8>(-(v.cy / v.fy + margin_y)), splat<f8>((v.height - v.cy) / v.fy + margin_y));
    o.free_x = o.lx == tx;
    o.free_y = o.ly == ty;
    o.jx = v.fx * o.rz;
    o.jy = v.fy * o.rz;
    o.jxz = -o.jx * o.lx;
    o.jyz = -o.jy * o.ly;
    o.mx = fma(splat<f8>(v.fx), tx, splat<f8>(v.cx));
    o.my = fma(splat<f8>(v.fy), ty, splat<f8>(v.cy));
    for (int k = 0; k < 3; ++k) {
        o.p0[k] = fma(o.jx, o.u[0][k], o.jxz * o.u[2][k]);
        o.p1[k] = fma(o.jy, o.u[1][k], o.jyz * o.u[2][k]);
    }
    o.xx0 = dot3(o.p0, o.p0);
    o.xy = dot3(o.p0, o.p1);
    o.yy0 = dot3(o.p1, o.p1);
    f8 cross[3] = {o.p0[1] * o.p1[2] - o.p0[2] * o.p1[1], o.p0[2] * o.p1[0] - o.p0[0] * o.p1[2],
                   o.p0[0] * o.p1[1] - o.p0[1] * o.p1[0]};
    o.det0 = dot3(cross, cross);
    o.det = o.det0 + fma(splat<f8>(kBlur), o.xx0 + o.yy0, splat<f8>(kBlur * kBlur));
    o.xx = o.xx0 + kBlur;
    o.yy = o.yy0 + kBlur;
    o.opacity = keep(high[6] == high[6], 1.0f / (1.0f + vexp(-high[6])));  // of a NaN 0: it culls
    o.effective = v.antialiased ? o.opacity * vsqrt(o.det0 / o.det) : o.opacity;
}

// Unit direction from the camera to the Gaussian and the inverse distance.
CLM_INLINE void direction8(const View& v, const Projected& o, f8 (&d)[3], f8& inverse) {
    for (int i = 0; i < 3; ++i) d[i] = o.p[i] - v.centre[i];
    inverse = 1.0f / vsqrt(vmax(dot3(d, d), splat<f8>(1e-24f)));
    for (int i = 0; i < 3; ++i) d[i] *= inverse;
}

constexpr float kSh0 = 0.28209479177387814f, kSh1 = 0.4886025119029199f;
constexpr float kSh2[5] = {1.0925484305920792f, -1.0925484305920792f, 0.31539156525252005f, -1.0925484305920792f,
                           0.5462742152960396f};
constexpr float kSh3[7] = {-0.5900435899266435f, 2.890611442640554f,  -0.4570457994644658f, 0.3731763325901154f,
                           -0.4570457994644658f, 1.445305721320277f, -0.5900435899266435f};

// Real spherical harmonics with INRIA's signs.
CLM_INLINE void sh_basis(int degree, const f8 (&d)[3], f8 (&b)[16]) {
    f8 x = d[0], y = d[1], z = d[2];
    b[0] = splat<f8>(kSh0);
    if (degree < 1) return;
    b[1] = -kSh1 * y;
    b[2] = kSh1 * z;
    b[3] = -kSh1 * x;
    if (degree < 2) return;
    f8 xx = x * x, yy = y * y, zz = z * z;
    b[4] = kSh2[0] * x * y;
    b[5] = kSh2[1] * y * z;
    b[6] = kSh2[2] * (2.0f * zz - xx - yy);
    b[7] = kSh2[3] * x * z;
    b[8] = kSh2[4] * (xx - yy);
    if (degree < 3) return;
    b[9] = kSh3[0] * y * (3.0f * xx - yy);
    b[10] = kSh3[1] * x * y * z;
    b[11] = kSh3[2] * y * (4.0f * zz - xx - yy);
    b[12] = kSh3[3] * z * (2.0f * zz - 3.0f * (xx + yy));
    b[13] = kSh3[4] * x * (4.0f * zz - xx - yy);
    b[14] = kSh3[5] * z * (xx - yy);
    b[15] = kSh3[6] * x * (xx - 3.0f * yy);
}

// g += sum_k t[k] * gradient of basis k.
CLM_INLINE void sh_gradient(int degree, const f8 (&d)[3], const f8 (&t)[16], f8 (&g)[3]) {
    f8 x = d[0], y = d[1], z = d[2];
    if (degree < 1) return;
    g[0] -= kSh1 * t[3];
    g[1] -= kSh1 * t[1];
    g[2] += kSh1 * t[2];
    if (degree < 2) return;
    f8 t4 = kSh2[0] * t[4], t5 = kSh2[1] * t[5], t6 = 2.0f * kSh2[2] * t[6];
    f8 t7 = kSh2[3] * t[7], t8 = 2.0f * kSh2[4] * t[8];
    g[0] += t4 * y - t6 * x + t7 * z + t8 * x;
    g[1] += t4 * x + t5 * z - t6 * y - t8 * y;
    g[2] += t5 * y + 2.0f * t6 * z + t7 * x;
    if (degree < 3) return;
    f8 xx = x * x, yy = y * y, zz = z * z, xy = x * y, xz = x * z, yz = y * z;
    f8 t9 = 3.0f * kSh3[0] * t[9], t10 = kSh3[1] * t[10], t11 = kSh3[2] * t[11], t12 = 3.0f * kSh3[3] * t[12];
    f8 t13 = kSh3[4] * t[13], t14 = kSh3[5] * t[14], t15 = 3.0f * kSh3[6] * t[15];
    g[0] += 2.0f * t9 * xy + t10 * yz - 2.0f * t11 * xy - 2.0f * t12 * xz + t13 * (4.0f * zz - 3.0f * xx - yy) +
            2.0f * t14 * xz + t15 * (xx - yy);
    g[1] += t9 * (xx - yy) + t10 * xz + t11 * (4.0f * zz - xx - 3.0f * yy) - 2.0f * t12 * yz - 2.0f * t13 * xy -
            2.0f * t14 * yz - 2.0f * t15 * xy;
    g[2] += t10 * xy + 8.0f * t11 * yz + t12 * (2.0f * zz - xx - yy) + 8.0f * t13 * xz + t14 * (xx - yy);
}

constexpr int sh_floats(int degree) { return 3 * (degree + 1) * (degree + 1); }
constexpr int sh_groups(int degree) { return (sh_floats(degree) + 7) / 8; }

CLM_INLINE void load_colour(int sh_degree, const float* colour, const Rows8& rows, f8 (&c)[48]) {
    for (int group = 0; group < sh_groups(sh_degree); ++group) {
        f8 columns[8];
        load_columns(colour, 48, rows, 8 * group, columns);
        for (int k = 0; k < 8; ++k) c[8 * group + k] = columns[k];
    }
}

}  // namespace clm
