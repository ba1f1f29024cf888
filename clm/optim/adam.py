"""Deferred Adam: dense Adam's mathematics at the cost of the rows that got a gradient.

A row remembers the step of its last update. The zero-gradient steps s+1..T that dense Adam would have applied move a
parameter by  m/sqrt(v) * sum_k lr_k c_k r^(k-s),  r = beta1/sqrt(beta2),  c_k = sqrt(1-beta2^k)/(1-beta1^k). With
drift[s] = sum over all k > s, that sum is drift[s] - r^(T-s) drift[T]: one table of float64 per column group, any schedule.
The kernel is `clm/kernels/src/adam.cpp`; `reference.py` is its slow twin. (Adam: Kingma & Ba 2015, algorithm 1.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clm.kernels.rows import AdamStep
from clm.optim.mcmc import Mcmc, StirTables
from clm.store.layout import GROUPS


@dataclass(frozen=True)
class Betas:
    """Adam constants for one batch size: betas ** B and eps / sqrt(B) (the square-root rule, Grendel, Zhao et al. 2024)."""

    beta1: float
    beta2: float
    eps: float

    @staticmethod
    def for_batch(batch_size: int, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-15) -> Betas:
        return Betas(beta1**batch_size, beta2**batch_size, eps / batch_size**0.5)


@dataclass(frozen=True)
class Tables:
    """What `Adam.at` points into, for kernels on other devices."""

    drift: np.ndarray  # [6, steps + 1] f64 lr-weighted sum of all later zero-gradient steps
    rates: np.ndarray  # [6, steps + 1] f64 lr_k c_k
    ratio_power: np.ndarray  # [steps + 1] f64 r^d
    beta1_power: np.ndarray  # [steps + 1] f32
    beta2_power: np.ndarray  # [steps + 1] f32
    eps_drift: np.ndarray  # [steps + 1] f32 eps scaled for the first missed step after s


class Adam:
    """Tables for steps 1..steps. Invariant: `at(t)` never depends on which rows were touched, only on the schedule."""

    def __init__(self, rates: np.ndarray, betas: Betas, decayed: float = 0.0, mcmc: Mcmc | None = None):
        """rates: learning rate of each column group at steps 0..steps (index 0 unused) [6, steps + 1] f64.

        decayed: so many steps of these betas the moments had decayed by before index 0; bias corrections count them. It
        may be a fraction (steps of other betas), or -1 where no row is ever stamped with index 0. mcmc: noise and regularisation
        beside the gradients."""
        if rates.shape[0] != len(GROUPS):
            raise ValueError(f"want one learning-rate row per group {GROUPS}, got {rates.shape}")
        self.betas = betas
        self.rates = np.asarray(rates, np.float64)
        self.steps = rates.shape[1] - 1
        k = np.arange(self.steps + 1, dtype=np.float64)
        age = np.maximum(k + decayed, 0.0)
        with np.errstate(under="ignore"):
            bias2 = np.sqrt(1.0 - betas.beta2**age)
            correction = np.divide(bias2, 1.0 - betas.beta1**age, out=np.zeros_like(k), where=age > 0)
            ratio = betas.beta1 / betas.beta2**0.5
            self._ratio_power = ratio**k
            self._beta1_power = (betas.beta1**k).astype(np.float32)
            self._beta2_power = (betas.beta2**k).astype(np.float32)
        self._weighted = self.rates * correction  # [6, steps + 1] lr_k c_k
        self._drift = self._tabulate(ratio)
        # eps as it acts on the first missed step s + 1, expressed at the moments of step s.
        first_missed = np.sqrt(1.0 - betas.beta2 ** (age + 1)) / betas.beta2**0.5
        self._eps_drift = (betas.eps * first_missed).astype(np.float32)
        self._eps_step = betas.eps * bias2
        tables = ("drift", "ratio_power", "beta1_power", "beta2_power", "eps_drift")
        of = self.rates, self._weighted, betas.beta1, betas.beta2
        self.stir = None if mcmc is None else StirTables.of(mcmc, *of)
        self._addresses = {name: getattr(self, f"_{name}").ctypes.data for name in tables}

    def _tabulate(self, ratio: float) -> np.ndarray:
        """drift[g, s] = sum_{k > s} lr_k c_k r^(k-s) [6, steps + 1] f64; beyond the last step the rate stays constant."""
        drift = np.empty_like(self._weighted)
        drift[:, -1] = self._weighted[:, -1] * ratio / (1.0 - ratio)
        for s in range(self.steps - 1, -1, -1):
            drift[:, s] = ratio * (self._weighted[:, s + 1] + drift[:, s + 1])
        return drift

    def at(self, step: int, views: int = 1, bf16_colours: bool = False, entries_until: int | None = None) -> AdamStep:
        """Constants for applying `step` (1-based) to gradients summed over `views` views. Keeps its tables alive.

        bf16_colours: rows that are fetched for the step have their colours rounded; the stored ones stay exact. entries_until: the
        step after which all cull entries are made anew, which those written now therefore bound; None: the last one."""
        if not 1 <= step <= self.steps:
            raise ValueError(f"step {step} is outside the schedule of {self.steps} steps")
        constants = AdamStep(
            step=step,
            table_steps=self.steps + 1,
            beta1=self.betas.beta1,
            beta2=self.betas.beta2,
            eps=self.betas.eps,
            gradient_scale=1.0 / views,
            rate=tuple(self._weighted[:, step].tolist()),
            eps_step=self._eps_step[step],
            bf16_colours=bf16_colours,
            **self._addresses,
        )
        if self.stir is not None:
            self.stir.put_into(constants, self.steps if entries_until is None else entries_until)
        constants.tables = self  # the structure holds addresses into this object
        return constants

    def tables(self) -> Tables:
        return Tables(
            self._drift, self._weighted, self._ratio_power, self._beta1_power, self._beta2_power, self._eps_drift
        )

    def reach(self, step: int) -> tuple[float, float]:
        """How far one step with any gradient can move a mean (world units) and a log_scale beyond its pending drift.

        |lr c (1-beta1) g / sqrt((1-beta2) g^2)| per axis, on top of the decayed momentum that cull entries include.
        """
        b = self.betas
        bound = (1.0 - b.beta1) / (1.0 - b.beta2) ** 0.5
        step = min(step, self.steps)
        return float(3**0.5 * bound * self._weighted[0, step]), float(bound * self._weighted[2, step])
