"""The slow twins of what 3DGS-MCMC adds to Adam, in numpy and float64: the rule of a run in memory, step by step."""

from __future__ import annotations

import numpy as np

from clm.store.layout import LOG_SCALES, LOGIT_OPACITIES, QUATS
from tests.store.slow_identity import quats_to_rotations


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def pull(p: np.ndarray, opacity_pull: float, scale_pull: float) -> np.ndarray:
    """Gradient [N, C] of opacity_pull * sum of opacities + scale_pull * sum of scales at rows p [N, C >= 11]."""
    g, opacity = np.zeros_like(p), sigmoid(p[:, LOGIT_OPACITIES])
    g[:, LOG_SCALES] = scale_pull * np.exp(p[:, LOG_SCALES])
    g[:, LOGIT_OPACITIES] = opacity_pull * opacity * (1.0 - opacity)
    return g


def gate(logit_opacity: np.ndarray) -> np.ndarray:
    """gsplat's op_sigmoid(1 - opacity, k=100, x0=0.995)."""
    return 1.0 / (1.0 + np.exp(-100.0 * ((1.0 - sigmoid(logit_opacity)) - 0.995)))


def covariances(log_scales: np.ndarray, quats: np.ndarray) -> np.ndarray:
    """[N, 3, 3] of log_scales [N, 3] and quats [N, 4] (wxyz, of any length)."""
    scaled = quats_to_rotations(quats) * np.exp(log_scales)[:, None, :]
    return scaled @ scaled.transpose(0, 2, 1)


def _scrambled(x: np.ndarray) -> np.ndarray:
    x = (x ^ x >> np.uint32(16)) * np.uint32(0x7FEB352D)
    x = (x ^ x >> np.uint32(15)) * np.uint32(0x846CA68B)
    return x ^ x >> np.uint32(16)


def normals(identities: np.ndarray, to: int, seed: int) -> np.ndarray:
    """Three standard normal numbers [N, 3] f64 for rows with these identities [N] f32 over missed steps up to `to`: four words of
    a hash of (identity, seed, to), turned into normals by Box and Muller's method, no longer than 5 together."""
    weyl, bits = np.uint32(0x9E3779B9), np.ascontiguousarray(identities, np.float32).view(np.uint32)
    with np.errstate(over="ignore"):
        state = _scrambled(_scrambled(bits ^ np.uint32(seed)) + np.uint32(to) * weyl)
        words = [_scrambled(state + np.uint32(k) * weyl) >> np.uint32(8) for k in range(1, 5)]
    u = [(word.astype(np.float64) + 0.5) * 2.0**-24 for word in words]
    near, far = np.sqrt(-2.0 * np.log(u[0])), np.sqrt(-2.0 * np.log(u[2]))
    z = np.stack([near * np.cos(2 * np.pi * u[1]), near * np.sin(2 * np.pi * u[1]), far * np.cos(2 * np.pi * u[3])], 1)
    return z * np.minimum(1.0, 5.0 / np.linalg.norm(z, axis=1, keepdims=True))


def noise(rows: np.ndarray, identities: np.ndarray, to: int, seed: int, variance: float) -> np.ndarray:
    """What the noise of steps up to `to`, with this summed variance, moves means of rows [N, 11] by, [N, 3]."""
    scales = np.exp(2.0 * rows[:, LOG_SCALES])
    open_ = np.where(rows[:, LOGIT_OPACITIES] < np.log(0.25), gate(rows[:, LOGIT_OPACITIES]), 0.0)
    along = scales * normals(identities, to, seed) * (open_ * variance**0.5)[:, None]
    return np.einsum("nij,nj->ni", quats_to_rotations(rows[:, QUATS]), along)
