// Float vectors for the kernels: f8 (8 lanes) everywhere, f16 under AVX-512; vf is the widest one and W its lanes.
//
// Built on the compilers' vector extensions, so that +, -, *, /, comparisons and ?: work on any target (SSE2, NEON);
// intrinsics only where the extension has no word for it. fma() is fused where the target fuses, and written out
// everywhere, because contraction is off: the forward and the backward pass must take bitwise equal decisions.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __SSE2__
#include <emmintrin.h>
#endif
#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define CLM_AVX2 1
#endif
#if defined(CLM_AVX2) && defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define CLM_AVX512 1
#endif

namespace clm {

typedef float f4 __attribute__((vector_size(16)));
typedef float f8 __attribute__((vector_size(32)));
typedef int32_t i8 __attribute__((vector_size(32)));
typedef float f16 __attribute__((vector_size(64)));
typedef int32_t i16 __attribute__((vector_size(64)));

template <class V>
struct lanes;
template <>
struct lanes<f8> {
    static constexpr int count = 8;
    typedef i8 ints;
};
template <>
struct lanes<f16> {
    static constexpr int count = 16;
    typedef i16 ints;
};

#if defined(CLM_AVX512) || defined(CLM_WIDE)  // CLM_WIDE: try the 16-lane layout on any machine
typedef f16 vf;
typedef i16 vi;
#else
typedef f8 vf;
typedef i8 vi;
#endif
constexpr int W = lanes<vf>::count;

#define CLM_INLINE static inline __attribute__((always_inline))
#define CLM_INLINE_MEMBER inline __attribute__((always_inline))

template <class V>
CLM_INLINE V load(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// Lanes from `k` before or behind one place of an array on, |k| <= lanes: at<k>() is load(p + k). Where p lies on a cache line, such
// loads would each touch two of them; 16 lanes are put together out of three aligned loads instead.
template <class V>
struct Neighbours {
    const float* p;
    explicit Neighbours(const float* place) : p(place) {}
    template <int k>
    CLM_INLINE_MEMBER V at() const {
        return load<V>(p + k);
    }
};
#ifdef CLM_AVX512
template <>
struct Neighbours<f16> {
    f16 before, here, behind;
    explicit Neighbours(const float* p) : before(load<f16>(p - 16)), here(load<f16>(p)), behind(load<f16>(p + 16)) {}
    template <int k>
    CLM_INLINE_MEMBER f16 at() const {
        if (k == 0) return here;
        const __m512i low = (__m512i)(k < 0 ? before : here), high = (__m512i)(k < 0 ? here : behind);
        return (f16)_mm512_alignr_epi32(high, low, k & 15);
    }
};
#endif

template <class V>
CLM_INLINE void store(void* p, V v) {
    std::memcpy(p, &v, sizeof v);
}
template <class V>
CLM_INLINE V splat(float x) {
    return x - V{};
}
template <class V>
CLM_INLINE V iota() {
    V v;
    for (int i = 0; i < lanes<V>::count; ++i) v[i] = float(i);
    return v;
}
template <class To, class From>
CLM_INLINE To bits(From v) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To out;
    std::memcpy(&out, &v, sizeof out);
    return out;
}

// Portable versions; the overloads below replace them where the target has an instruction.
template <class V>
CLM_INLINE V fma_(V a, V b, V c) {
#if defined(__ARM_FEATURE_FMA)
    V r;
    for (int i = 0; i < lanes<V>::count; ++i) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return r;
#else
    return a * b + c;
#endif
}
template <class V>
CLM_INLINE V sqrt_(V a) {
#ifdef __SSE2__
    __m128 r[sizeof(V) / 16];
    std::memcpy(r, &a, sizeof r);
    for (__m128& part : r) part = _mm_sqrt_ps(part);
#else
    float r[sizeof(V) / 4];  // compilers vectorise a loop over an array, but not one over a vector's lanes
    std::memcpy(r, &a, sizeof r);
    for (float& lane : r) lane = __builtin_sqrtf(lane);
#endif
    return load<V>(r);
}
template <class M>
CLM_INLINE uint32_t movemask_(M m) {
    uint32_t r = 0;
    for (unsigned i = 0; i < sizeof(M) / 4; ++i) r |= uint32_t(m[i] < 0) << i;
    return r;
}
template <class V>
CLM_INLINE float sum_(V a) {
    float r = 0;
    for (int i = 0; i < lanes<V>::count; ++i) r += a[i];
    return r;
}

#ifdef CLM_AVX2
CLM_INLINE f8 fma(f8 a, f8 b, f8 c) { return (f8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
CLM_INLINE f8 nfma(f8 a, f8 b, f8 c) { return (f8)_mm256_fnmadd_ps((__m256)a, (__m256)b, (__m256)c); }
CLM_INLINE f8 vmin(f8 a, f8 b) { return (f8)_mm256_min_ps((__m256)a, (__m256)b); }
CLM_INLINE f8 vmax(f8 a, f8 b) { return (f8)_mm256_max_ps((__m256)a, (__m256)b); }
CLM_INLINE f8 vsqrt(f8 a) { return (f8)_mm256_sqrt_ps((__m256)a); }
CLM_INLINE uint32_t movemask(i8 m) { return uint32_t(_mm256_movemask_ps((__m256)m)); }
CLM_INLINE i8 truncate(f8 a) { return (i8)_mm256_cvttps_epi32((__m256)a); }
CLM_INLINE f8 blend(i8 m, f8 a, f8 b) { return (f8)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)m); }
CLM_INLINE float sum(f8 a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128((__m256)a), _mm256_extractf128_ps((__m256)a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
#else
CLM_INLINE f8 fma(f8 a, f8 b, f8 c) { return fma_(a, b, c); }
CLM_INLINE f8 nfma(f8 a, f8 b, f8 c) { return fma_(-a, b, c); }
CLM_INLINE f8 vmin(f8 a, f8 b) { return a < b ? a : b; }
CLM_INLINE f8 vmax(f8 a, f8 b) { return a > b ? a : b; }
CLM_INLINE f8 vsqrt(f8 a) { return sqrt_(a); }
CLM_INLINE uint32_t movemask(i8 m) { return movemask_(m); }
CLM_INLINE i8 truncate(f8 a) { return __builtin_convertvector(a, i8); }
CLM_INLINE f8 blend(i8 m, f8 a, f8 b) { return bits<f8>((m & bits<i8>(a)) | (~m & bits<i8>(b))); }
CLM_INLINE float sum(f8 a) { return sum_(a); }
#endif

#ifdef CLM_AVX512
CLM_INLINE f16 fma(f16 a, f16 b, f16 c) { return (f16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
CLM_INLINE f16 nfma(f16 a, f16 b, f16 c) { return (f16)_mm512_fnmadd_ps((__m512)a, (__m512)b, (__m512)c); }
CLM_INLINE f16 vmin(f16 a, f16 b) { return (f16)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b); }
CLM_INLINE f16 vmax(f16 a, f16 b) { return (f16)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b); }
CLM_INLINE f16 vsqrt(f16 a) { return (f16)_mm512_maskz_sqrt_ps(0xffff, (__m512)a); }
CLM_INLINE uint32_t movemask(i16 m) { return _mm512_movepi32_mask((__m512i)m); }
CLM_INLINE i16 truncate(f16 a) { return (i16)_mm512_maskz_cvttps_epi32(0xffff, (__m512)a); }
CLM_INLINE f16 blend(i16 m, f16 a, f16 b) {
    return (f16)_mm512_mask_blend_ps(_mm512_movepi32_mask((__m512i)m), (__m512)b, (__m512)a);
}
#else
CLM_INLINE f16 fma(f16 a, f16 b, f16 c) { return fma_(a, b, c); }
CLM_INLINE f16 nfma(f16 a, f16 b, f16 c) { return fma_(-a, b, c); }
CLM_INLINE f16 vmin(f16 a, f16 b) { return a < b ? a : b; }
CLM_INLINE f16 vmax(f16 a, f16 b) { return a > b ? a : b; }
CLM_INLINE f16 vsqrt(f16 a) { return sqrt_(a); }
CLM_INLINE uint32_t movemask(i16 m) { return movemask_(m); }
CLM_INLINE i16 truncate(f16 a) { return __builtin_convertvector(a, i16); }
CLM_INLINE f16 blend(i16 m, f16 a, f16 b) { return bits<f16>((m & bits<i16>(a)) | (~m & bits<i16>(b))); }
#endif

CLM_INLINE f8 halves(f8 a) { return a; }
CLM_INLINE f8 halves(f16 a) {
    f8 h[2];
    std::memcpy(h, &a, sizeof a);
    return h[0] + h[1];
}
CLM_INLINE float sum(f16 a) { return sum(halves(a)); }

template <class V>
CLM_INLINE V clamp(V a, V low, V high) {
    return vmin(vmax(a, low), high);
}
template <class V>
CLM_INLINE V vabs(V a) {
    typedef typename lanes<V>::ints I;
    return bits<V>(bits<I>(a) & 0x7fffffff);
}
// a where the mask is set, else +0.
template <class M, class V>
CLM_INLINE V keep(M m, V a) {
    return bits<V>(bits<M>(a) & m);
}

// 2^x for x in [-126, 126]: nearest integer by the 1.5*2^23 trick, degree-5 polynomial, relative error 7.5e-8.
template <class V>
CLM_INLINE V exp2(V x) {
    typedef typename lanes<V>::ints I;
    const V magic = splat<V>(12582912.0f);
    V shifted = x + magic;
    V f = x - (shifted - magic);
    V p = splat<V>(1.327647152e-3f);
    p = fma(p, f, splat<V>(9.675541331e-3f));
    p = fma(p, f, splat<V>(5.550713275e-2f));
    p = fma(p, f, splat<V>(2.402211972e-1f));
    p = fma(p, f, splat<V>(6.931469671e-1f));
    p = fma(p, f, splat<V>(1.000000072f));
    return bits<V>(bits<I>(p) + (bits<I>(shifted) << 23));
}

// e^x, clamped to [e^-87, e^87], by two-part reduction: relative error about 1e-7 (exp2(x log2 e) would lose |x| ulp).
template <class V>
CLM_INLINE V vexp(V x) {
    typedef typename lanes<V>::ints I;
    x = clamp(x, splat<V>(-87.0f), splat<V>(87.0f));
    const V magic = splat<V>(12582912.0f);
    V shifted = fma(x, splat<V>(1.44269504f), magic);
    V n = shifted - magic;
    V r = nfma(n, splat<V>(0.693359375f), x);
    r = nfma(n, splat<V>(-2.12194440e-4f), r);
    V p = splat<V>(1.9875691500e-4f);
    p = fma(p, r, splat<V>(1.3981999507e-3f));
    p = fma(p, r, splat<V>(8.3334519073e-3f));
    p = fma(p, r, splat<V>(4.1665795894e-2f));
    p = fma(p, r, splat<V>(1.6666665459e-1f));
    p = fma(p, r, splat<V>(5.0000001201e-1f));
    p = fma(p, r * r, r) + 1.0f;
    return bits<V>(bits<I>(p) + (bits<I>(shifted) << 23));
}

// log2 of a normal positive number: 2 atanh((m-1)/(m+1)) / ln 2 with m in [sqrt(1/2), sqrt 2).
template <class V>
CLM_INLINE V log2(V x) {
    typedef typename lanes<V>::ints I;
    I raw = bits<I>(x) - 0x3f3504f3;
    I exponent = raw >> 23;
    V m = bits<V>((raw & 0x007fffff) + 0x3f3504f3);
    V s = (m - 1.0f) / (m + 1.0f), s2 = s * s;
    V p = splat<V>(0.32059889f);              // 2 / (9 ln 2)
    p = fma(p, s2, splat<V>(0.41219858f));    // 2 / (7 ln 2)
    p = fma(p, s2, splat<V>(0.57707802f));    // 2 / (5 ln 2)
    p = fma(p, s2, splat<V>(0.96179669f));    // 2 / (3 ln 2)
    p = fma(p, s2, splat<V>(2.88539008f));    // 2 / ln 2
    return fma(p, s, __builtin_convertvector(exponent, V));
}

// Row i of the 8x8 block becomes lane i.
CLM_INLINE void transpose(f8 (&r)[8]) {
#ifdef CLM_AVX2
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps((__m256)r[i], (__m256)r[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps((__m256)r[i], (__m256)r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
            b[i + 2 * j] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
            b[i + 2 * j + 1] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0xee);
        }
    for (int i = 0; i < 4; ++i) {
        r[i] = (f8)_mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        r[i + 4] = (f8)_mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
#else
    f8 t[8];
    for (int i = 0; i < 8; ++i)
        for (int j = 0; j < 8; ++j) t[i][j] = r[j][i];
    for (int i = 0; i < 8; ++i) r[i] = t[i];
#endif
}

// Lane i of the result is the sum of all lanes of r[i].
template <class V>
CLM_INLINE f8 sums(const V (&r)[8]) {
    f8 t[8];
    for (int i = 0; i < 8; ++i) t[i] = halves(r[i]);
#ifdef CLM_AVX2
    __m256 p[4];
    for (int i = 0; i < 4; ++i) p[i] = _mm256_hadd_ps((__m256)t[2 * i], (__m256)t[2 * i + 1]);
    __m256 lo = _mm256_hadd_ps(p[0], p[1]), hi = _mm256_hadd_ps(p[2], p[3]);
    return (f8)_mm256_add_ps(_mm256_permute2f128_ps(lo, hi, 0x20), _mm256_permute2f128_ps(lo, hi, 0x31));
#else
    f8 out;
    for (int i = 0; i < 8; ++i) out[i] = sum_(t[i]);
    return out;
#endif
}

}  // namespace clm
