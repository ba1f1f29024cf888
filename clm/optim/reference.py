"""The slow twins of the row-Adam kernel, in float64 numpy: dense Adam, and deferred Adam written out step by step."""

from __future__ import annotations

import numpy as np

from clm.optim.adam import Betas


def dense_adam(
    p: np.ndarray, m: np.ndarray, v: np.ndarray, g: np.ndarray, rate: np.ndarray | float, step: int, betas: Betas
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One step of Adam (Kingma & Ba 2015, algorithm 1) on every entry; `step` counts from 1. Returns new (p, m, v)."""
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
