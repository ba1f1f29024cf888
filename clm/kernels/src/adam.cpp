// Deferred Adam over rows of the store: settle, the step itself, and the cull entries that bound what is still pending.
// The mathematics is in rows.h and clm/optim/adam.py; how bf16 moments are rounded in bf16.h.
#include <array>

#include "stir.h"

namespace clm {
namespace {

// Bound on where the row may be until its next gradient: 3.33 sigma grown by all pending zero-gradient steps.
// p, m, v: the row's geometry and its stored moments; m == nullptr: nothing is pending.
template <class T>
inline void write_entry(const AdamStep* a, int stamp, const float* p, const T* m, const T* v, float* entry) {
    float radius = 0.f, centre = 0.f;
    if (m) {
        const float reach_means = float(a->drift[stamp]);
        const float reach_scales = float(a->drift[2 * int64_t(a->table_steps) + stamp]), eps = a->eps_drift[stamp];
        float log_scale = -INFINITY, square = 0.f, direction[kGeometry];
        store(direction, load_wide<f8>(m) / (square_root(load_wide<f8>(v)) + eps));
        store(direction + 8, load_wide<f4>(m + 8) / (square_root(load_wide<f4>(v + 8)) + eps));
        for (int i = 0; i < 3; ++i) {
            const float dm = direction[kMeans + i] * reach_means, ds = direction[kLogScales + i] * reach_scales;
            square += dm * dm;
            log_scale = std::max(log_scale, p[kLogScales + i] + std::max(-ds, 0.f));
        }
        centre = std::sqrt(square);
        radius = std::exp(log_scale);
    } else {
        return plain_entry(p, entry);
    }
    for (int i = 0; i < 3; ++i) entry[i] = p[kMeans + i];
    if (stirred(*a)) centre += noise_reach(*a, stamp, p);
    entry[3] = (kExtent * radius + centre) * 1.0001f;  // 1.0001: float32 rounding of this bound itself
}

template <class V, class T>
inline void decay_columns(float beta1, float beta2, T* m_at, T* v_at, const RowDither& dither, int column) {
    store_moments(m_at, v_at, load_wide<V>(m_at) * beta1, load_wide<V>(v_at) * beta2, dither, column);
}

// The moments after zero-gradient steps that multiply them by beta1 and beta2 in all.
template <class T>
inline void decay_row(float beta1, float beta2, const Moments<T>& at, const RowDither& dither) {
    decay_columns<f8>(beta1, beta2, at.m_geometry, at.v_geometry, dither, 0);
    decay_columns<f4>(beta1, beta2, at.m_geometry + 8, at.v_geometry + 8, dither, 8);
    for (int c = 0; c < kColour; c += W)
        decay_columns<vf>(beta1, beta2, at.m_colour + c, at.v_colour + c, dither, kGeometry + c);
}

// What one row needs of the step, copied to registers.
struct RowStep {
    float beta1, beta2;           // of this step
    float decay1, decay2;         // beta^missed: the zero-gradient steps before it
    float eps, eps_drift, gradient_scale;
    RowDither dither;
};

// V::count columns: missed steps in closed form, then the step with gradient g. Both fractions over one denominator:
// drift m/a + rate m'/b = (drift m b + rate m' a) / (a b); a and b are at least eps, so the product stays a normal float.
template <class V, class T>
inline void adam_columns(const RowStep& r, V drift, V rate, V g, float* p_at, T* m_at, T* v_at, int column) {
    g = g * r.gradient_scale;
    V m = load_wide<V>(m_at), v = load_wide<V>(v_at);
    const V before = square_root(v) + r.eps_drift, drifted = drift * m;
    m = (m * r.decay1) * r.beta1 + g * (1.f - r.beta1);
    v = (v * r.decay2) * r.beta2 + g * g * (1.f - r.beta2);
    const V after = square_root(v) + r.eps;
    store(p_at, load<V>(p_at) - (drifted * after + rate * m * before) / (before * after));
    store_moments(m_at, v_at, m, v, r.dither, column);
}

template <class T>
inline void adam_geometry(const RowStep& r, const PerColumn& drift, const PerColumn& rate, const float* g, float* p, T* m, T* v) {
    f4 tail = load<f4>(g + 8);
    tail[3] = 0.f;  // column 11 of a gradient row is a count, not a gradient
    adam_columns(r, drift.geometry_head, rate.geometry_head, load<f8>(g), p, m, v, 0);
    adam_columns(r, drift.geometry_tail, rate.geometry_tail, tail, p + 8, m + 8, v + 8, 8);
}

// As `adam_geometry` for a row that 3DGS-MCMC stirs: caught up first, exactly as it was fetched; the step's gradient includes the
// pull where the row is then, and the step's own noise is that of the row as its last update left it.
template <class T>
inline void adam_stirred(const AdamStep& a, const RowStep& r, int stamp, const PerColumn& rate, const float* g, float* stored,
                         const Moments<T>& at) {
    const int before = a.step - 1, missed = stamp ? before - stamp : 0;
    float p[kGeometry], m[kGeometry], v[kGeometry], pulled[kPulls], gradient[kGeometry];
    std::memcpy(p, stored, sizeof p);
    if (missed)
        catch_up(a, stamp, before, at, p, static_cast<float*>(nullptr), 0, m, v);
    else
        for (int i = 0; i < kGeometry; ++i) m[i] = widen(at.m_geometry[i]), v[i] = widen(at.v_geometry[i]);
    std::memcpy(gradient, g, sizeof gradient);
    pull_of(a, p, pulled);
    for (int i = 0; i < kPulls; ++i) gradient[kPulled + i] += pulled[i] / r.gradient_scale;
    const PerColumn no_drift{std::array<float, kGroups>{}.data()};
    RowStep now = r;
    now.decay1 = now.decay2 = 1.f;
    now.eps_drift = now.eps;
    adam_geometry(now, no_drift, rate, gradient, p, m, v);
    if (stamp) add_noise(a, before, a.step, stored, p + kMeans);
    std::memcpy(stored, p, sizeof p);
    store_moments(at.m_geometry, at.v_geometry, load<f8>(m), load<f8>(v), r.dither, 0);
    store_moments(at.m_geometry + 8, at.v_geometry + 8, load<f4>(m + 8), load<f4>(v + 8), r.dither, 8);
}

template <class T>
inline void adam_colour(const RowStep& r, const PerColumn& drift, const PerColumn& rate, const float* g, float* p, T* m,
                        T* v, int columns) {
    for (int c = 0; c < columns; c += W) {
        vf gradient;
        if (c + W <= columns) {
            gradient = load<vf>(g + c);
        } else {  // gradient columns beyond the active ones were never written
            float active[W] = {};
            std::memcpy(active, g + c, sizeof(float) * (columns - c));
            gradient = load<vf>(active);
        }
        const vf drift_here = c ? splat<vf>(drift.shN) : drift.colour_head<vf>();
        const vf rate_here = c ? splat<vf>(rate.shN) : rate.colour_head<vf>();
        adam_columns(r, drift_here, rate_here, gradient, p + c, m + c, v + c, kGeometry + c);
    }
}

// The arguments of clm_adam that say where a row's gradient comes from and where its results go.
struct AdamRows {
    const int32_t *rows, *slots;
    int64_t count;
    const float *grad_geometry, *grad_colour;
    int32_t colour_columns, colour_stride;
    float *statistics, *entries;
};

template <class T>
void adam_rows(const StoreView* s, const AdamStep* a, const AdamRows& in) {
    const PerColumn rate(a->rate), no_drift{std::array<float, kGroups>{}.data()};
    const int columns = in.colour_columns;  // those beyond hold zeros: zero gradient, no change
    over_rows(in.count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            if (i + kAhead < end) {
                prefetch_row(*s, in.rows[i + kAhead], columns);
                prefetch_moments<T>(*s, in.rows[i + kAhead], columns);
            }
            const int64_t row = in.rows[i], from = in.slots ? in.slots[i] : i;
            const float* gg = in.grad_geometry + from * kGradGeometry;
            const float* gc = in.grad_colour + from * in.colour_stride;
            float* entry = in.entries + i * 4;
            if (gg[kDrawnColumn] == 0.f) {
                entry[3] = -1.f;
                continue;
            }
            const int stamp = s->stamp[row];
            const bool behind = stamp != 0 && stamp != a->step - 1;
            const int missed = behind ? a->step - 1 - stamp : 0;
            const PerColumn drift = behind ? drift_between(*a, stamp, a->step - 1) : no_drift;
            const RowStep r{a->beta1, a->beta2, a->beta1_power[missed], a->beta2_power[missed], a->eps_step,
                            behind ? a->eps_drift[stamp] : a->eps, a->gradient_scale, row_dither(s->geometry[row * kGeometry + kIdentity], a->step)};
            const Moments<T> at(*s, row);
            float *pg = s->geometry + row * kGeometry, *pc = s->colour + row * kColour;
            if (stirred(*a))
                adam_stirred(*a, r, stamp, rate, gg, pg, at);
            else
                adam_geometry(r, drift, rate, gg, pg, at.m_geometry, at.v_geometry);
            adam_colour(r, drift, rate, gc, pc, at.m_colour, at.v_colour, columns);
            s->stamp[row] = a->step;
            if (in.statistics) {
                float* statistics = in.statistics + row * kStatistics;
                for (int k = 0; k < kStatistics; ++k) statistics[k] += gg[kDrawnColumn + k];
            }
            write_entry(a, a->step, pg, at.m_geometry, at.v_geometry, entry);
        }
    });
}

template <class T>
void settle_rows(const StoreView* s, const AdamStep* a, const int32_t* rows, int64_t count) {
    over_rows(count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t row = rows[i];
            const int stamp = s->stamp[row], missed = a->step - 1 - stamp;
            if (stamp == 0 || missed == 0) continue;
            const Moments<T> at(*s, row);
            float *pg = s->geometry + row * kGeometry, m[kGeometry], v[kGeometry];
            const RowDither dither = row_dither(pg[kIdentity], a->step - 1);
            catch_up(*a, stamp, a->step - 1, at, pg, s->colour + row * kColour, kColour, m, v);
            decay_row(a->beta1_power[missed], a->beta2_power[missed], at, dither);
            if (stirred(*a)) {
                store_moments(at.m_geometry, at.v_geometry, load<f8>(m), load<f8>(v), dither, 0);
                store_moments(at.m_geometry + 8, at.v_geometry + 8, load<f4>(m + 8), load<f4>(v + 8), dither, 8);
            }
            s->stamp[row] = a->step - 1;
        }
    });
}

}  // namespace
}  // namespace clm

using namespace clm;

// Writes rows [count], each named once, as of step - 1 back into the store: parameters moved, moments decayed, stamp = step - 1.
CLM_API void clm_settle(const StoreView* s, const AdamStep* a, const int32_t* rows, int64_t count) {
    with_moments(*s, [&](auto type) { settle_rows<decltype(type)>(s, a, rows, count); });
}

// Adam step `a->step` for rows[i] with the gradient at grads[slots[i]] (or grads[i]). A row that no view drew keeps its
// stamp: it stays pending, so the result does not depend on how conservative the visible sets are.
// statistics [N, kStatistics] (nullable) adds up those of the gradient row; entries [count, 4] gets the new cull
// entry of row i, radius -1 where nothing changed.
CLM_API void clm_adam(const StoreView* s, const AdamStep* a, const int32_t* rows, const int32_t* slots, int64_t count,
                      const float* grad_geometry, const float* grad_colour, int32_t colour_columns, int32_t colour_stride,
                      float* statistics, float* entries) {
    const AdamRows in{rows, slots, count, grad_geometry, grad_colour, colour_columns, colour_stride, statistics, entries};
    with_moments(*s, [&](auto type) { adam_rows<decltype(type)>(s, a, in); });
}

// entries[i] = cull entry of the stored row rows[i], pending steps included; a == nullptr: rows without moments.
CLM_API void clm_entries(const StoreView* s, const AdamStep* a, const int32_t* rows, int64_t count, float* entries) {
    with_moments(*s, [&](auto type) {
        using T = decltype(type);
        over_rows(count, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t row = rows[i];
                const float* p = s->geometry + row * kGeometry;
                const int stamp = a != nullptr && s->m_geometry != nullptr ? s->stamp[row] : 0;
                if (stamp == 0) {
                    write_entry<T>(a, 0, p, nullptr, nullptr, entries + i * 4);
                } else {
                    const Moments<T> at(*s, row);
                    write_entry(a, stamp, p, at.m_geometry, at.v_geometry, entries + i * 4);
                }
            }
        });
    });
}
