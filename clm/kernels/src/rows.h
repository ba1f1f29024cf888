// What the row kernels share: the layout of a row, one optimizer step's tables, and the closed form of missed steps.
//
// Deferred Adam: a row stores the step `stamp` of its last update. Steps with zero gradient only decay the moments, so the
// parameter's movement over steps s+1..T is  -m/(sqrt(v)+eps') * sum_k lr_k c_k r^(k-s)  with r = beta1/sqrt(beta2) and
// c_k = sqrt(1-beta2^k)/(1-beta1^k) (bias corrections). The sums telescope: drift[s] - r^(T-s) drift[T], drift tabulated
// per step and column group in float64 by clm/optim/adam.py. Every row is independent: any thread count, same bits.
// Moments are float32 or bf16; whoever needs one reads what is stored, so that all agree on where a row will drift.
#pragma once
#include <algorithm>
#include <cmath>

#include "bf16.h"
#include "numbers.h"
#include "pool.h"

namespace clm {

constexpr int kMeans = 0, kQuats = 3, kLogScales = 7, kOpacity = 10, kIdentity = 11, kGroups = 6;

// Mirrors clm.kernels.rows.AdamStep (ctypes.Structure): one optimizer step's constants and tables.
struct AdamStep {
    int32_t step;          // t: the step to apply; rows are caught up to t - 1 first
    int32_t table_steps;   // entries per group in drift
    float beta1, beta2, eps;
    float gradient_scale;  // 1 / views in the batch
    const double* drift;   // [6, table_steps] lr-weighted sum of all later zero-gradient steps
    const double* ratio_power;  // [table_steps] r^d
    const float* beta1_power;   // [table_steps] beta1^d
    const float* beta2_power;   // [table_steps]
    const float* eps_drift;     // [table_steps] eps scaled for the first missed step after s
    float rate[kGroups];        // lr_t * c_t
    float eps_step;             // eps * sqrt(1 - beta2^t)
    int32_t bf16_colours;       // fetched colours are rounded to bf16, wherever their row lives
    // What 3DGS-MCMC adds (stir.h); variance == nullptr: nothing.
    uint32_t noise_seed;
    const double* variance;     // [table_steps] sum over the steps up to one of the squared scale of their noise
    const double* rate_sums;    // [2, table_steps] sum over the steps up to one of lr_k c_k: log-scales, opacities
    const float* beta2_spent;   // [table_steps] 1 - beta2^d
    double variance_until;      // `variance` of the step after which cull entries are next made anew
    const float* growth;        // [table_steps] sum over j = 1 .. d of beta2^(-j/2)
    float scale_pull, opacity_pull;    // the regularisation's weight of one scale, of one opacity
    float scale_share, opacity_share;  // of g^2 that counts as v while a row misses steps
};

// Mirrors clm.kernels.rows.StoreView: the host arrays of a store.
struct StoreView {
    float *geometry, *colour;
    void *m_geometry, *v_geometry, *m_colour, *v_colour;  // float or bf16; null in a store that only renders
    int32_t* stamp;
    int32_t moment_bytes;  // 4: float, 2: bf16
};

// One row's moments as they are stored; T is float or bf16.
template <class T>
struct Moments {
    T *m_geometry, *v_geometry, *m_colour, *v_colour;
    Moments(const StoreView& s, int64_t row)
        : m_geometry(static_cast<T*>(s.m_geometry) + row * kGeometry),
          v_geometry(static_cast<T*>(s.v_geometry) + row * kGeometry),
          m_colour(static_cast<T*>(s.m_colour) + row * kColour),
          v_colour(static_cast<T*>(s.v_colour) + row * kColour) {}
};

// f(value of the type that the store's moments have).
template <class F>
void with_moments(const StoreView& s, F&& f) {
    if (s.moment_bytes == 2)
        f(bf16{});
    else
        f(float{});
}

// One value per column group, spread over a row's columns. Vectors are built in registers: written to memory by the
// float and read back as one vector, the read would wait until everything before it has retired.
struct PerColumn {
    f8 geometry_head;  // columns 0 to 7
    f4 geometry_tail;  // columns 8 to 11
    float sh0, shN;

    explicit PerColumn(const float g[kGroups])
        : geometry_head{g[0], g[0], g[0], g[1], g[1], g[1], g[1], g[2]},
          geometry_tail{g[2], g[2], g[3], 0.f},
          sh0(g[4]),
          shN(g[5]) {}

    // The first colour columns: sh0 in three of them.
    template <class V>
    V colour_head() const {
        const V is_sh0 = {1.f, 1.f, 1.f};
        return is_sh0 * sh0 + (1.f - is_sh0) * shN;
    }
};

// Movement over the zero-gradient steps from + 1 .. to, per unit of m / (sqrt(v) + eps).
inline PerColumn drift_between(const AdamStep& a, int from, int to) {
    float group[kGroups];
    const double decay = a.ratio_power[to - from];
    for (int g = 0; g < kGroups; ++g) {
        const double* table = a.drift + int64_t(g) * a.table_steps;
        group[g] = float(table[from] - decay * table[to]);
    }
    return PerColumn(group);
}

#ifdef CLM_AVX2
typedef f8 Narrow;
#else
typedef f4 Narrow;  // a vector of two registers would go through memory
#endif

template <class V, class T>
inline void move_columns(V drift, float eps, const T* m, const T* v, float* p) {
    store(p, load<V>(p) - drift * (load_wide<V>(m) / (square_root(load_wide<V>(v)) + eps)));
}

// Moves one row's parameters, wherever they are, along the drift of its stored moments; writes `columns` of colour.
template <class T>
inline void move_along(const PerColumn& drift, float eps, const Moments<T>& at, float* geometry, float* colour, int columns) {
    move_columns(drift.geometry_head, eps, at.m_geometry, at.v_geometry, geometry);
    move_columns(drift.geometry_tail, eps, at.m_geometry + 8, at.v_geometry + 8, geometry + 8);
    const T *m = at.m_colour, *v = at.v_colour;
    constexpr int step = sizeof(Narrow) / 4;
    int c = 0;
    for (Narrow here = drift.colour_head<Narrow>(); c + step <= columns; c += step, here = splat<Narrow>(drift.shN))
        move_columns(here, eps, m + c, v + c, colour + c);
    for (; c < columns; ++c)  // the next row may begin here
        colour[c] -= (c < 3 ? drift.sh0 : drift.shN) * (widen(m[c]) / (std::sqrt(widen(v[c])) + eps));
}

// Colours rounded to the nearest bf16: in place (T float), or packed into bf16.
template <class T>
inline void round_colours(const float* from, T* to, int columns) {
    constexpr int step = sizeof(Narrow) / 4;
    int c = 0;
    for (; c + step <= columns; c += step)
        store_upper<Narrow>(to + c, nearest_bf16<words<Narrow>::full>(load<Narrow>(from + c)));
    for (; c < columns; ++c) store_upper(to + c, nearest_bf16<uint32_t>(from[c]));
}

// Packed colours as floats again.
inline void expand_colours(const bf16* from, float* to, int columns) {
    constexpr int step = sizeof(Narrow) / 4;
    int c = 0;
    for (; c + step <= columns; c += step) store(to + c, load_wide<Narrow>(from + c));
    for (; c < columns; ++c) to[c] = widen(from[c]);
}

// Bound on where a row is drawn that has no pending steps.
inline void plain_entry(const float* p, float* entry) {
    const float radius = std::exp(std::max({p[kLogScales], p[kLogScales + 1], p[kLogScales + 2]}));
    for (int i = 0; i < 3; ++i) entry[i] = p[kMeans + i];
    entry[3] = kExtent * radius * 1.0001f;  // 1.0001: float32 rounding of this bound itself
}

inline void prefetch_row(const StoreView& s, int64_t row, int columns) {
    __builtin_prefetch(s.geometry + row * kGeometry);
    for (int i = 0; i < columns; i += 16) __builtin_prefetch(s.colour + row * kColour + i);
}

template <class T>
inline void prefetch_moments(const StoreView& s, int64_t row, int columns) {
    const Moments<T> at(s, row);
    __builtin_prefetch(at.m_geometry);
    __builtin_prefetch(at.v_geometry);
    for (int i = 0; i < columns; i += 64 / int(sizeof(T))) {
        __builtin_prefetch(at.m_colour + i);
        __builtin_prefetch(at.v_colour + i);
    }
}

constexpr int64_t kChunk = 512;   // rows per claimed piece of work
constexpr int64_t kAhead = 3;     // rows between prefetch and use

template <class F>
void over_rows(int64_t count, F&& body) {
    const int64_t chunks = (count + kChunk - 1) / kChunk;
    parallel(chunks, [&](int64_t chunk, int) {
        const int64_t begin = chunk * kChunk, end = std::min(count, begin + kChunk);
        body(begin, end);
    });
}

}  // namespace clm
