// Rows in motion: deferred Adam, catch up + gather, arena placement, gradient send-back.
//
// Deferred Adam: a row stores the step `stamp` of its last update. Steps with zero gradient only decay the moments, so the
// parameter's movement over steps s+1..T is  -m/(sqrt(v)+eps') * sum_k lr_k c_k r^(k-s)  with r = beta1/sqrt(beta2) and
// c_k = sqrt(1-beta2^k)/(1-beta1^k) (bias corrections). The sums telescope: drift[s] - r^(T-s) drift[T], drift tabulated
// per step and column group in float64 by clm/optim/adam.py. Every row is independent: any thread count, same bits.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "pool.h"
#include "simd.h"

namespace {

constexpr int kGeometry = 12, kColour = 48, kGradGeometry = 16;
constexpr int kMeans = 0, kQuats = 3, kLogScales = 7, kOpacity = 10, kGroups = 6;
constexpr int kDrawnColumn = 11, kScreenGradColumn = 12;
constexpr float kExtent = 3.33f;  // the rasteriser draws at most 3.33 sigma (RASTER.md, radii)

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
};

// Mirrors clm.kernels.rows.StoreView: the host arrays of a store.
struct StoreView {
    float *geometry, *colour;
    float *m_geometry, *v_geometry, *m_colour, *v_colour;
    int32_t* stamp;
};

struct Drift {
    float geometry[kGeometry];
    float sh0, shN, eps;
};

inline void spread(const float group[kGroups], float out[kGeometry]) {
    for (int i = 0; i < 3; ++i) out[kMeans + i] = group[0];
    for (int i = 0; i < 4; ++i) out[kQuats + i] = group[1];
    for (int i = 0; i < 3; ++i) out[kLogScales + i] = group[2];
    out[kOpacity] = group[3];
    out[kOpacity + 1] = 0.f;
}

inline Drift drift_between(const AdamStep& a, int from, int to) {
    float group[kGroups];
    const double decay = a.ratio_power[to - from];
    for (int g = 0; g < kGroups; ++g) {
        const double* table = a.drift + int64_t(g) * a.table_steps;
        group[g] = float(table[from] - decay * table[to]);
    }
    Drift d;
    spread(group, d.geometry);
    d.sh0 = group[4];
    d.shN = group[5];
    d.eps = a.eps_drift[from];
    return d;
}

template <int N>
inline void move(float* __restrict p, const float* __restrict m, const float* __restrict v, const float* __restrict s, float eps) {
    for (int i = 0; i < N; ++i) p[i] -= s[i] * (m[i] / (std::sqrt(v[i]) + eps));
}

inline void move_colour(float* __restrict p, const float* __restrict m, const float* __restrict v, float s0, float sN, float eps, int columns) {
    for (int i = 0; i < 3; ++i) p[i] -= s0 * (m[i] / (std::sqrt(v[i]) + eps));
    for (int i = 3; i < columns; ++i) p[i] -= sN * (m[i] / (std::sqrt(v[i]) + eps));
}

inline void prefetch_row(const StoreView& s, int64_t row, bool moments, int columns) {
    __builtin_prefetch(s.geometry + row * kGeometry);
    for (int i = 0; i < columns; i += 16) __builtin_prefetch(s.colour + row * kColour + i);
    if (!moments) return;
    __builtin_prefetch(s.m_geometry + row * kGeometry);
    __builtin_prefetch(s.v_geometry + row * kGeometry);
    for (int i = 0; i < columns; i += 16) {
        __builtin_prefetch(s.m_colour + row * kColour + i);
        __builtin_prefetch(s.v_colour + row * kColour + i);
    }
}

constexpr int64_t kChunk = 512;   // rows per claimed piece of work
constexpr int64_t kAhead = 3;     // rows between prefetch and use

template <class F>
void over_rows(int64_t count, F&& body) {
    const int64_t chunks = (count + kChunk - 1) / kChunk;
    clm::parallel(chunks, [&](int64_t chunk, int) {
        const int64_t begin = chunk * kChunk, end = std::min(count, begin + kChunk);
        body(begin, end);
    });
}

// Bound on where the row may be until its next gradient: 3.33 sigma grown by all pending zero-gradient steps.
inline void write_entry(const AdamStep* a, int stamp, const float* p, const float* m, const float* v, float* entry) {
    float radius = 0.f, centre = 0.f;
    if (m) {
        const float reach_means = float(a->drift[stamp]);
        const float reach_scales = float(a->drift[2 * int64_t(a->table_steps) + stamp]), eps = a->eps_drift[stamp];
        float log_scale = -INFINITY, square = 0.f;
        for (int i = 0; i < 3; ++i) {
            const float dm = m[kMeans + i] / (std::sqrt(v[kMeans + i]) + eps) * reach_means;
            const float ds = m[kLogScales + i] / (std::sqrt(v[kLogScales + i]) + eps) * reach_scales;
            square += dm * dm;
            log_scale = std::max(log_scale, p[kLogScales + i] + std::max(-ds, 0.f));
        }
        centre = std::sqrt(square);
        radius = std::exp(log_scale);
    } else {
        radius = std::exp(std::max({p[kLogScales], p[kLogScales + 1], p[kLogScales + 2]}));
    }
    for (int i = 0; i < 3; ++i) entry[i] = p[kMeans + i];
    entry[3] = (kExtent * radius + centre) * 1.0001f;  // 1.0001: float32 rounding of this bound itself
}

}  // namespace

// Copies rows, caught up to step - 1, to out[slots[i]] (or out[i]); the store is not changed. Colour rows of the target lie
// colour_stride floats apart: staging packs the active columns, so that one contiguous copy moves nothing else.
CLM_API void clm_fetch(const StoreView* s, const AdamStep* a, const int32_t* rows, const int32_t* slots, int64_t count,
                       float* out_geometry, float* out_colour, int32_t colour_columns, int32_t colour_stride) {
    const bool adam = a != nullptr && s->m_geometry != nullptr;
    over_rows(count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            if (i + kAhead < end) prefetch_row(*s, rows[i + kAhead], false, colour_columns);
            const int64_t row = rows[i], to = slots ? slots[i] : i;
            float* geometry = out_geometry + to * kGeometry;
            float* colour = out_colour + to * colour_stride;
            std::memcpy(geometry, s->geometry + row * kGeometry, sizeof(float) * kGeometry);
            std::memcpy(colour, s->colour + row * kColour, sizeof(float) * colour_columns);
            const int stamp = adam ? s->stamp[row] : 0;
            if (stamp == 0 || stamp == a->step - 1) continue;  // stamp 0: never had a gradient, the moments are zero
            const Drift d = drift_between(*a, stamp, a->step - 1);
            move<kGeometry>(geometry, s->m_geometry + row * kGeometry, s->v_geometry + row * kGeometry, d.geometry, d.eps);
            move_colour(colour, s->m_colour + row * kColour, s->v_colour + row * kColour, d.sh0, d.shN, d.eps, colour_columns);
        }
    });
}

// Writes every row in [first, last) as of step - 1 back into the store: parameters moved, moments decayed, stamp = step - 1.
CLM_API void clm_settle(const StoreView* s, const AdamStep* a, int64_t first, int64_t last) {
    over_rows(last - first, [&](int64_t begin, int64_t end) {
        for (int64_t row = first + begin; row < first + end; ++row) {
            const int stamp = s->stamp[row], missed = a->step - 1 - stamp;
            if (stamp == 0 || missed == 0) continue;
            const Drift d = drift_between(*a, stamp, a->step - 1);
            float *mg = s->m_geometry + row * kGeometry, *vg = s->v_geometry + row * kGeometry;
            float *mc = s->m_colour + row * kColour, *vc = s->v_colour + row * kColour;
            move<kGeometry>(s->geometry + row * kGeometry, mg, vg, d.geometry, d.eps);
            move_colour(s->colour + row * kColour, mc, vc, d.sh0, d.shN, d.eps, kColour);
            const float b1 = a->beta1_power[missed], b2 = a->beta2_power[missed];
            for (int i = 0; i < kGeometry; ++i) mg[i] *= b1, vg[i] *= b2;
            for (int i = 0; i < kColour; ++i) mc[i] *= b1, vc[i] *= b2;
            s->stamp[row] = a->step - 1;
        }
    });
}

namespace {

typedef float f4 __attribute__((vector_size(16)));

inline clm::f8 square_root(clm::f8 x) { return clm::vsqrt(x); }
inline f4 square_root(f4 x) {
#ifdef CLM_AVX2
    return (f4)_mm_sqrt_ps((__m128)x);
#else
    for (int i = 0; i < 4; ++i) x[i] = std::sqrt(x[i]);
    return x;
#endif
}

// What one row needs of the step, copied to registers.
struct RowStep {
    float beta1, beta2;           // of this step
    float decay1, decay2;         // beta^missed: the zero-gradient steps before it
    float eps, eps_drift, gradient_scale;
};

// V::count columns: missed steps in closed form, then the step with gradient g. Both fractions over one denominator:
// drift m/a + rate m'/b = (drift m b + rate m' a) / (a b); a and b are at least eps, so the product stays a normal float.
template <class V>
inline void adam_columns(const RowStep& r, V drift, V rate, const float* g_at, float* p_at, float* m_at, float* v_at) {
    const V g = clm::load<V>(g_at) * r.gradient_scale;
    V m = clm::load<V>(m_at), v = clm::load<V>(v_at);
    const V before = square_root(v) + r.eps_drift, drifted = drift * m;
    m = (m * r.decay1) * r.beta1 + g * (1.f - r.beta1);
    v = (v * r.decay2) * r.beta2 + g * g * (1.f - r.beta2);
    const V after = square_root(v) + r.eps;
    clm::store(p_at, clm::load<V>(p_at) - (drifted * after + rate * m * before) / (before * after));
    clm::store(m_at, m);
    clm::store(v_at, v);
}

inline void adam_colour(const RowStep& r, clm::f8 drift_head, float drift, clm::f8 rate_head, clm::f8 rate, const float* g,
                        float* p, float* m, float* v, int vectors, int columns) {
    using clm::f8;
    const f8 drift_rest = clm::splat<f8>(drift);
    for (int k = 0; k < vectors; ++k) {
        float active[8];
        const float* from = g + 8 * k;
        if (8 * k + 8 > columns) {  // gradient columns beyond the active ones were never written
            for (int j = 0; j < 8; ++j) active[j] = 8 * k + j < columns ? from[j] : 0.f;
            from = active;
        }
        adam_columns<f8>(r, k ? drift_rest : drift_head, k ? rate : rate_head, from, p + 8 * k, m + 8 * k, v + 8 * k);
    }
}

}  // namespace

// Adam step `a->step` for rows[i] with the gradient at grads[slots[i]] (or grads[i]). A row that no view drew keeps its
// stamp: it stays pending, so the result does not depend on how conservative the visible sets are.
// statistics [N, 2] (nullable) accumulates (views that drew the row, screen gradient); entries [count, 4] gets the new cull
// entry of row i, radius -1 where nothing changed.
CLM_API void clm_adam(const StoreView* s, const AdamStep* a, const int32_t* rows, const int32_t* slots, int64_t count,
                      const float* grad_geometry, const float* grad_colour, int32_t colour_columns, int32_t colour_stride,
                      float* statistics, float* entries) {
    using clm::f8;
    float rate_geometry[kGeometry];
    spread(a->rate, rate_geometry);
    const f8 rate0 = clm::load<f8>(rate_geometry), rateN = clm::splat<f8>(a->rate[5]);
    const f4 rate1 = clm::load<f4>(rate_geometry + 8);
    const f8 is_sh0 = {1, 1, 1, 0, 0, 0, 0, 0};
    const f8 rate_head = is_sh0 * a->rate[4] + (1.f - is_sh0) * a->rate[5];
    const int vectors = (colour_columns + 7) / 8;  // columns beyond the active ones hold zeros: zero gradient, no change
    over_rows(count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            if (i + kAhead < end) prefetch_row(*s, rows[i + kAhead], true, colour_columns);
            const int64_t row = rows[i], from = slots ? slots[i] : i;
            const float* gg = grad_geometry + from * kGradGeometry;
            const float* gc = grad_colour + from * colour_stride;
            if (gg[kDrawnColumn] == 0.f) {
                entries[i * 4 + 3] = -1.f;
                continue;
            }
            const int stamp = s->stamp[row];
            const bool behind = stamp != 0 && stamp != a->step - 1;
            const int missed = behind ? a->step - 1 - stamp : 0;
            Drift d{};
            d.eps = a->eps;
            if (behind) d = drift_between(*a, stamp, a->step - 1);
            const RowStep r{a->beta1, a->beta2, a->beta1_power[missed], a->beta2_power[missed],
                            a->eps_step, d.eps, a->gradient_scale};
            float *pg = s->geometry + row * kGeometry, *mg = s->m_geometry + row * kGeometry, *vg = s->v_geometry + row * kGeometry;
            const float tail[4] = {gg[8], gg[9], gg[10], 0.f};  // column 11 of a gradient row is a count, not a gradient
            adam_columns<f8>(r, clm::load<f8>(d.geometry), rate0, gg, pg, mg, vg);
            adam_columns<f4>(r, clm::load<f4>(d.geometry + 8), rate1, tail, pg + 8, mg + 8, vg + 8);
            float *pc = s->colour + row * kColour, *mc = s->m_colour + row * kColour, *vc = s->v_colour + row * kColour;
            adam_colour(r, is_sh0 * d.sh0 + (1.f - is_sh0) * d.shN, d.shN, rate_head, rateN, gc, pc, mc, vc, vectors, colour_columns);
            s->stamp[row] = a->step;
            if (statistics) {
                statistics[row * 2] += gg[kDrawnColumn];
                statistics[row * 2 + 1] += gg[kScreenGradColumn];
            }
            write_entry(a, a->step, pg, mg, vg, entries + i * 4);
        }
    });
}

// Cull entries [last - first, 4] of stored rows, pending steps included; a == nullptr: rows without moments.
CLM_API void clm_entries(const StoreView* s, const AdamStep* a, int64_t first, int64_t last, float* entries) {
    over_rows(last - first, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t row = first + i;
            const bool pending = a != nullptr && s->m_geometry != nullptr && s->stamp[row] != 0;
            const float* m = pending ? s->m_geometry + row * kGeometry : nullptr;
            const float* v = pending ? s->v_geometry + row * kGeometry : nullptr;
            write_entry(a, pending ? s->stamp[row] : 0, s->geometry + row * kGeometry, m, v, entries + i * 4);
        }
    });
}

// entries[rows[i]] = fresh[i] where the radius of fresh[i] is not negative.
CLM_API void clm_put_entries(const int32_t* rows, const float* fresh, int64_t count, float* entries) {
    over_rows(count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            if (fresh[i * 4 + 3] >= 0.f) std::memcpy(entries + int64_t(rows[i]) * 4, fresh + i * 4, 16);
    });
}

// Staging to arena: rows go to their slots, gradient rows start at zero. staging == nullptr: only the zeros.
CLM_API void clm_place(const float* staging_geometry, const float* staging_colour, int32_t staging_stride,
                       const int32_t* slots, int64_t count, float* geometry, float* colour, float* grad_geometry,
                       float* grad_colour, int32_t colour_columns) {
    over_rows(count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t slot = slots[i];
            if (staging_geometry) {
                std::memcpy(geometry + slot * kGeometry, staging_geometry + i * kGeometry, sizeof(float) * kGeometry);
                std::memcpy(colour + slot * kColour, staging_colour + i * staging_stride, sizeof(float) * colour_columns);
            }
            std::memset(grad_geometry + slot * kGradGeometry, 0, sizeof(float) * kGradGeometry);
            std::memset(grad_colour + slot * kColour, 0, sizeof(float) * colour_columns);
        }
    });
}

// Gradient rows between two places: to[to_slots[i]] = from[from_slots[i]]; a null index means position i.
CLM_API void clm_move_gradients(const float* from_geometry, const float* from_colour, int32_t from_stride,
                                const int32_t* from_slots, int64_t count, float* to_geometry, float* to_colour,
                                int32_t to_stride, const int32_t* to_slots, int32_t colour_columns) {
    over_rows(count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t from = from_slots ? from_slots[i] : i, to = to_slots ? to_slots[i] : i;
            std::memcpy(to_geometry + to * kGradGeometry, from_geometry + from * kGradGeometry, sizeof(float) * kGradGeometry);
            std::memcpy(to_colour + to * to_stride, from_colour + from * from_stride, sizeof(float) * colour_columns);
        }
    });
}

// values += 1 over the whole array: the machine's read+write limit that the benchmarks compare with.
CLM_API void clm_touch(float* values, int64_t count) {
    constexpr int64_t piece = 1 << 16;
    clm::parallel((count + piece - 1) / piece, [&](int64_t chunk, int) {
        const int64_t end = std::min(count, (chunk + 1) * piece);
        for (int64_t i = chunk * piece; i < end; ++i) values[i] += 1.f;
    });
}
