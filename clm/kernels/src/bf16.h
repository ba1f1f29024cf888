// bf16, the upper half of a float32, and how values are rounded to it: colours on their way to the rasteriser to nearest,
// Adam's moments stochastically, from a counter.
//
// Moments: rounding to nearest would freeze exp_avg_sq: a step without gradient takes 0.001 of it (1 - beta2), and half the gap to
// the next bf16 is 0.002 to 0.004 of it. So a value between two neighbours goes to the upper one with a probability equal
// to how far it has come from the lower one, in steps of 2^-16: the expectation is the value itself.
// The random bits are a pure function of (row's identity, stamp, column, which moment), where stamp is the step that the written
// moments belong to: no state, hence the same bits for any thread count, placement and interruption. A hash of (identity, stamp)
// gives the starts and the slope of arithmetic progressions over the columns: every number is uniform, any two of a row are
// independent (so a sum over columns has the variance that independent numbers would give it), and one more column costs
// two additions. Slow twin: tests/optim/slow_adam.py.
#pragma once
#include "simd.h"

namespace clm {

struct bf16 {
    uint16_t bits;
};


// As many 32-bit and 16-bit words as V has lanes.
template <class V>
struct words;
template <>
struct words<f4> {
    typedef uint32_t full __attribute__((vector_size(16)));
    typedef uint16_t half __attribute__((vector_size(8)));
};
template <>
struct words<f8> {
    typedef uint32_t full __attribute__((vector_size(32)));
    typedef uint16_t half __attribute__((vector_size(16)));
};
template <>
struct words<f16> {
    typedef uint32_t full __attribute__((vector_size(64)));
    typedef uint16_t half __attribute__((vector_size(32)));
};

CLM_INLINE f16 square_root(f16 x) { return vsqrt(x); }
CLM_INLINE f8 square_root(f8 x) { return vsqrt(x); }
CLM_INLINE f4 square_root(f4 x) {
#ifdef CLM_AVX2
    return (f4)_mm_sqrt_ps((__m128)x);
#else
    return sqrt_(x);
#endif
}

CLM_INLINE float widen(float x) { return x; }
CLM_INLINE float widen(bf16 x) { return bits<float>(uint32_t(x.bits) << 16); }

template <class V>
CLM_INLINE V load_wide(const float* p) {
    return load<V>(p);
}
template <class V>
CLM_INLINE V load_wide(const bf16* p) {
    typedef typename words<V>::full W;
#ifdef CLM_AVX512
    if constexpr (sizeof(V) == 64) return (V)((W)_mm512_maskz_cvtepu16_epi32(0xffff, load<__m256i>(p)) << 16);
#endif
#ifdef CLM_AVX2  // compilers convert halves and join them
    if constexpr (sizeof(V) == 32) return (V)((W)_mm256_cvtepu16_epi32(load<__m128i>(p)) << 16);
#endif
#ifdef __SSE2__
    if constexpr (sizeof(V) == 16)
        return (V)_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#endif
    return bits<V>(__builtin_convertvector(load<typename words<V>::half>(p), W) << 16);
}

#ifdef CLM_AVX512
typedef uint16_t words16 __attribute__((vector_size(64)));
#endif

// The upper halves of a's lanes to a_at, of b's lanes to b_at.
template <class V>
CLM_INLINE void store_upper(bf16* a_at, bf16* b_at, typename words<V>::full a, typename words<V>::full b) {
    typedef typename words<V>::half H;
#ifdef CLM_AVX512
    if constexpr (sizeof(V) == 64) {
        H upper_of_both[2];
        const words16 odd = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                             33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
        store(upper_of_both, _mm512_permutex2var_epi16((__m512i)a, (__m512i)odd, (__m512i)b));
        store(a_at, upper_of_both[0]);
        store(b_at, upper_of_both[1]);
        return;
    }
#endif
#ifdef CLM_AVX2
    if constexpr (sizeof(V) == 32) {
        const __m256i pairs = _mm256_packus_epi32((__m256i)(a >> 16), (__m256i)(b >> 16));
        const __m256i packed = _mm256_permute4x64_epi64(pairs, 0xd8);
        store(a_at, _mm256_castsi256_si128(packed));
        store(b_at, _mm256_extracti128_si256(packed, 1));
        return;
    }
#endif
    store(a_at, __builtin_convertvector(a >> 16, H));
    store(b_at, __builtin_convertvector(b >> 16, H));
}

// Bits (U) of a float, or of a vector of them, so that the upper half is the nearest bf16, ties to even; the lower half is
// to be dropped. Beyond the largest bf16 lies infinity; NaN is left out of the sum, which would carry into the exponent
// or the sign. Slow twin: tests/optim/slow_adam.py.
template <class U, class V>
CLM_INLINE U nearest_bf16(V value) {
    const U x = bits<U>(value), nearest = x + 0x7fffu + ((x >> 16) & 1u), quiet = x | 0x400000u;
    return value != value ? quiet : nearest;
}

// The upper halves, as floats that have nothing below them or packed.
template <class V>
CLM_INLINE void store_upper(float* at, typename words<V>::full x) {
    store(at, x & 0xffff0000u);
}
template <class V>
CLM_INLINE void store_upper(bf16* at, typename words<V>::full x) {
    store(at, __builtin_convertvector(x >> 16, typename words<V>::half));
}
CLM_INLINE void store_upper(float* at, uint32_t x) { *at = bits<float>(x & 0xffff0000u); }
CLM_INLINE void store_upper(bf16* at, uint32_t x) { at->bits = uint16_t(x >> 16); }

// What one row's write has of random numbers: column c takes the upper half of start + c slope (mod 2^32).
struct RowDither {
    uint32_t m_start, v_start, slope;
};

// The finaliser of SplitMix64 (Steele, Lea and Flood 2014) over one counter value per (row, stamp). identity: the float
// that carries bits of the row's key (clm/store/identity.py), so that the place of a row changes nothing.
inline RowDither row_dither(float identity, int32_t stamp) {
    uint64_t z = (uint64_t(bits<uint32_t>(identity)) << 32 | uint32_t(stamp)) + 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return {uint32_t(z >> 48) << 16, uint32_t(z >> 32) << 16, uint32_t(z)};
}

// Both moments of V's columns, the first of which is `column`: geometry is 0 to 11, colour 12 to 59. Zero stays zero,
// infinity stays infinite, the hardware's NaN (0x7fc00000) stays NaN.
template <class V>
CLM_INLINE void store_moments(bf16* m_at, bf16* v_at, V m, V v, const RowDither& d, int column) {
    typedef typename words<V>::full W;
    W lane;
    for (unsigned i = 0; i < sizeof(V) / 4; ++i) lane[i] = i;
    const W progress = lane * d.slope + uint32_t(column) * d.slope;
    store_upper<V>(m_at, v_at, bits<W>(m) + ((progress + d.m_start) >> 16), bits<W>(v) + ((progress + d.v_start) >> 16));
}
template <class V>
CLM_INLINE void store_moments(float* m_at, float* v_at, V m, V v, const RowDither&, int) {
    store(m_at, m);
    store(v_at, v);
}

}  // namespace clm
