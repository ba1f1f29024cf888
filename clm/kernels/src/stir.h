// What 3DGS-MCMC (Kheradmand et al. 2024) adds to a row between its gradients: noise on its mean, and the pull of the
// regularisation on its opacity and its scales. Derivations and bounds: clm/optim/mcmc.py; slow twin: tests/optim/slow_mcmc.py.
//
// Both are functions of the row as its last update left it and of the steps since, so that being loaded leaves no trace: noise
// over steps from + 1 .. to is one draw with their summed variance, keyed by (identity, to, seed). A row with stamp 0 has neither.
#pragma once
#include "rows.h"

namespace clm {

constexpr float kGateSlope = 100.f, kGateCentre = 0.005f;  // gsplat's: sigmoid(-100 (opacity - 0.005))
constexpr float kGateEnd = -1.3862944f;  // logit of opacity 0.2, from which on the gate, then 4e-9, counts as closed
constexpr float kNoiseReach = 5.f;       // standard deviations: longer draws are shortened to this length

inline bool stirred(const AdamStep& a) { return a.variance != nullptr; }

inline float noise_gate(float logit_opacity) {
    if (!(logit_opacity < kGateEnd)) return 0.f;
    const float opacity = 1.f / (1.f + std::exp(-logit_opacity));
    return 1.f / (1.f + std::exp(kGateSlope * (opacity - kGateCentre)));
}

// A bijection of 32-bit words (Wellons' lowbias32).
inline uint32_t scrambled(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

constexpr uint32_t kWeyl = 0x9e3779b9u;

// Three standard normal numbers (Box and Muller), no longer than kNoiseReach together.
inline void noise_normals(float identity, int32_t to, uint32_t seed, float z[3]) {
    const uint32_t state = scrambled(scrambled(bits<uint32_t>(identity) ^ seed) + uint32_t(to) * kWeyl);
    float uniform[4];
    for (uint32_t k = 0; k < 4; ++k) uniform[k] = (float(scrambled(state + (k + 1) * kWeyl) >> 8) + 0.5f) * 0x1p-24f;
    constexpr float two_pi = 6.2831853f;
    const float near = std::sqrt(-2.f * std::log(uniform[0])), far = std::sqrt(-2.f * std::log(uniform[2]));
    z[0] = near * std::cos(two_pi * uniform[1]);
    z[1] = near * std::sin(two_pi * uniform[1]);
    z[2] = far * std::cos(two_pi * uniform[3]);
    const float length = std::sqrt(z[0] * z[0] + z[1] * z[1] + z[2] * z[2]);
    if (length > kNoiseReach)
        for (int i = 0; i < 3; ++i) z[i] *= kNoiseReach / length;
}

// means [3] += gate * covariance * normals * sqrt(summed variance) of steps from + 1 .. to, for a row whose last update, at step
// `from` or before, left the geometry `stored`. (covariance * normals: turn * scale^2 * normals has the same distribution.)
inline void add_noise(const AdamStep& a, int from, int to, const float* stored, float* means) {
    const float gate = noise_gate(stored[kOpacity]);
    const double variance = a.variance[to] - a.variance[from];
    if (gate == 0.f || !(variance > 0.0)) return;
    float z[3];
    noise_normals(stored[kIdentity], to, a.noise_seed, z);
    const float strength = gate * float(std::sqrt(variance)), *q = stored + kQuats;
    for (int i = 0; i < 3; ++i) z[i] *= strength * std::exp(2.f * stored[kLogScales + i]);
    const float norm = 1.f / std::sqrt(std::max(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3], 1e-24f));
    const float w = q[0] * norm, x = q[1] * norm, y = q[2] * norm, u = q[3] * norm;
    means[0] += (1.f - 2.f * (y * y + u * u)) * z[0] + 2.f * (x * y - w * u) * z[1] + 2.f * (x * u + w * y) * z[2];
    means[1] += 2.f * (x * y + w * u) * z[0] + (1.f - 2.f * (x * x + u * u)) * z[1] + 2.f * (y * u - w * x) * z[2];
    means[2] += 2.f * (x * u - w * y) * z[0] + 2.f * (y * u + w * x) * z[1] + (1.f - 2.f * (x * x + y * y)) * z[2];
}

// How far the noise of a row that was updated at step `stamp` can move it until cull entries are next made anew: one draw over
// the steps that it misses and one of the step that updates it, sqrt(a) + sqrt(b) <= sqrt(2 (a + b)).
inline float noise_reach(const AdamStep& a, int stamp, const float* p) {
    const double variance = a.variance_until - a.variance[stamp];
    const float gate = noise_gate(p[kOpacity]);
    if (gate == 0.f || !(variance > 0.0)) return 0.f;
    const float scale = std::max({p[kLogScales], p[kLogScales + 1], p[kLogScales + 2]});
    return kNoiseReach * gate * std::exp(2.f * scale) * float(std::sqrt(2.0 * variance));
}

constexpr int kPulled = kLogScales, kPulls = 4;  // columns that are regularised: three log-scales, the logit of opacity

// The gradient of the regularisation at a row: opacity_pull * opacity + scale_pull * sum of scales.
inline void pull_of(const AdamStep& a, const float* geometry, float g[kPulls]) {
    for (int i = 0; i < 3; ++i) g[i] = a.scale_pull * std::exp(std::min(geometry[kLogScales + i], 60.f));
    const float opacity = 1.f / (1.f + std::exp(-geometry[kOpacity]));
    g[3] = a.opacity_pull * opacity * (1.f - opacity);
}

// The logit of opacity x after the flow dx/dA = -opacity (1 - opacity) over `amount`: 2 x + 2 sinh x becomes less by it.
inline float flowed(float x, float amount) {
    x = std::min(std::max(x, -60.f), 60.f);
    float e = std::exp(x);
    const float target = 2.f * x + (e - 1.f / e) - amount;
    x = std::asinh(0.25f * target);
    for (int newton = 0; newton < 4; ++newton) {
        e = std::exp(x);
        x -= (2.f * x + (e - 1.f / e) - target) / (2.f + (e + 1.f / e));
    }
    return x;
}

// The pulled columns of a row that was updated at step `from`, as they are after step `to`: p [4], which holds where plain Adam has
// them, and where they are wanted their moments m, v [4]. The pull moves nothing up.
template <class T>
inline void pull(const AdamStep& a, int from, int to, const float* stored, const Moments<T>& at, float* p, float* m_to, float* v_to) {
    const int missed = to - from;
    const double decay = a.ratio_power[missed];
    const float eps = a.eps_drift[from], spent = a.beta2_spent[missed], decay1 = a.beta1_power[missed];
    float g[kPulls], v_now[kPulls], m_now[kPulls];
    pull_of(a, stored, g);
    for (int i = 0; i < kPulls; ++i) {
        const bool scale = i < 3;
        const int64_t table = int64_t(scale ? 2 : 3) * a.table_steps, sums = int64_t(scale ? 0 : 1) * a.table_steps;
        const float drift = float(a.drift[table + from] - decay * a.drift[table + to]);
        const float rate = float((a.rate_sums[sums + to] - a.rate_sums[sums + from]) / missed);
        m_now[i] = widen(at.m_geometry[kPulled + i]), v_now[i] = widen(at.v_geometry[kPulled + i]);
        const float below = std::sqrt(v_now[i] + (scale ? a.scale_share : a.opacity_share) * g[i] * g[i]) + eps;
        const float drifted = stored[kPulled + i] - drift * ((m_now[i] - g[i]) / below);
        const float amount = rate * a.growth[missed] * ((scale ? a.scale_pull : a.opacity_pull) / below);
        const float most = std::max(p[i], stored[kPulled + i]);  // cull entries count on it
        p[i] = scale ? drifted - std::log1p(std::exp(std::min(drifted, 60.f)) * amount) : flowed(drifted, amount);
        if (p[i] > most) p[i] = most;
    }
    if (!m_to) return;
    float moved[kGeometry], there[kPulls];
    for (int i = 0; i < kPulls; ++i) moved[kPulled + i] = p[i];
    pull_of(a, moved, there);
    for (int i = 0; i < kPulls; ++i) {
        const float early = std::min(i < 3 ? a.scale_share : a.opacity_share, spent) * (1.f - spent);
        m_to[i] = decay1 * m_now[i] + (1.f - decay1) * there[i];
        v_to[i] = (1.f - spent) * v_now[i] + spent * there[i] * there[i] + early * std::max(g[i] * g[i] - there[i] * there[i], 0.f);
    }
}

// A row that was updated at step stamp > 0 as it is after step `to` > stamp: geometry and `columns` of colour, which hold what is
// stored, are moved.
template <class T>
inline void catch_up(const AdamStep& a, int stamp, int to, const Moments<T>& at, float* geometry, float* colour, int columns,
                     float* m = nullptr, float* v = nullptr) {  // m, v [12]: of geometry then, if wanted; stirred rows only
    float stored[kGeometry];
    if (stirred(a)) std::memcpy(stored, geometry, sizeof stored);
    move_along(drift_between(a, stamp, to), a.eps_drift[stamp], at, geometry, colour, columns);
    if (!stirred(a)) return;
    if (m) {
        const float decay1 = a.beta1_power[to - stamp], decay2 = a.beta2_power[to - stamp];
        for (int i = 0; i < kGeometry; ++i) m[i] = widen(at.m_geometry[i]) * decay1, v[i] = widen(at.v_geometry[i]) * decay2;
    }
    pull(a, stamp, to, stored, at, geometry + kPulled, m ? m + kPulled : nullptr, v ? v + kPulled : nullptr);
    add_noise(a, stamp, to, stored, geometry + kMeans);
}

}  // namespace clm
