"""The slow twins of the row-Adam kernel in numpy: dense Adam and deferred Adam step by step (float64), rounding to bf16."""

from __future__ import annotations

import numpy as np

from clm.optim.adam import Betas


def dense_adam(
    p: np.ndarray, m: np.ndarray, v: np.ndarray, g: np.ndarray, rate: np.ndarray | float, step: float, betas: Betas
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step of Adam (Kingma & Ba 2015, algorithm 1) on every entry; `step` counts from 1, and is a fraction after steps
    of other betas. Returns new (p, m, v)."""
    m = betas.beta1 * m + (1.0 - betas.beta1) * g
    v = betas.beta2 * v + (1.0 - betas.beta2) * g * g
    m_hat = m / (1.0 - betas.beta1**step)
    v_hat = v / (1.0 - betas.beta2**step)
    return p - rate * m_hat / (np.sqrt(v_hat) + betas.eps), m, v


def closed_form_drift(
    m: np.ndarray, v: np.ndarray, rates: np.ndarray, stamp: int, step: int, betas: Betas
) -> np.ndarray:
    """Movement of a parameter over the zero-gradient steps stamp+1..step, summed term by term. rates [steps + 1]."""
    total = 0.0
    ratio = betas.beta1 / np.sqrt(betas.beta2)
    for k in range(stamp + 1, step + 1):
        correction = np.sqrt(1.0 - betas.beta2**k) / (1.0 - betas.beta1**k)
        total += rates[k] * correction * ratio ** (k - stamp)
    return np.divide(m, np.sqrt(v), out=np.zeros_like(m), where=v > 0) * total


def bf16_values(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bf16 `bits` (uint16, any shape): the upper half of a float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def nearest_bf16(values: np.ndarray) -> np.ndarray:
    """The bits (uint16) of the bf16 nearest to `values` (f32, any shape), of two equally near ones the even one.

    From the two neighbours in float64, where distances are exact. The largest bf16 is followed by 2^128 as far as distances
    go, which is infinity (IEEE 754, 4.3.1). NaN becomes the one NaN 0x7fc0.
    """
    lower = (np.ascontiguousarray(values, np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    upper = lower + np.uint16(1)  # away from zero
    with np.errstate(invalid="ignore"):  # infinity has no distance, nor has NaN
        exact = np.abs(values.astype(np.float64))
        above = np.abs(bf16_values(upper).astype(np.float64))
        below = exact - np.abs(bf16_values(lower).astype(np.float64))
        above = np.where(np.isinf(above), 2.0**128, above) - exact
        up = (above < below) | ((above == below) & (lower & 1 == 1))
    return np.where(np.isnan(values), 0x7FC0, np.where(np.isinf(values) | ~up, lower, upper)).astype(np.uint16)


def round_to_bf16(values: np.ndarray, identities: np.ndarray, stamp: int, first_column: int, moment: int) -> np.ndarray:
    """Stochastic rounding of values [N, C] f32 to bf16 (uint16 [N, C]), bit for bit as `kernels/src/bf16.h` does it.

    identities: [N] f32, as a row's geometry carries them; stamp: the step that the moments belong to; first_column: 0 for
    geometry, 12 for colour; moment: 0 for exp_avg, 1 for exp_avg_sq. A value goes to its upper bf16 neighbour (in magnitude)
    with a probability equal to its distance from the lower one, in steps of 2^-16 of the gap: E[result] = value. The random
    numbers of a row are an arithmetic progression over the columns whose start and slope are SplitMix64's hash (Steele, Lea
    and Flood 2014) of (identity, stamp): uniform in each column, independent between any two.
    """
    z = (identities.view(np.uint32).astype(np.uint64) << np.uint64(32) | np.uint64(stamp)) + np.uint64(
        0x9E3779B97F4A7C15
    )
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    start = (z >> np.uint64(32 if moment else 48)).astype(np.uint32) << np.uint32(16)
    columns = np.arange(first_column, first_column + values.shape[1], dtype=np.uint32)
    progression: np.ndarray = start[:, None] + columns * z.astype(np.uint32)[:, None]
    noise = progression >> np.uint32(16)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return (bits + noise >> np.uint32(16)).astype(np.uint16)
