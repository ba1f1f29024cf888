"""What 3DGS-MCMC (Kheradmand et al. 2024; constants of gsplat's MCMCStrategy) adds to deferred Adam, for rows that miss steps.

Noise. Each step t moves a mean by  scale_t gate(opacity) covariance normal,  scale_t = noise * (learning rate of means at t),
gate(o) = sigmoid(-100 (o - 0.005)): rows that are nearly transparent walk about, all others stay. A row is drawn from its
Gaussian as its last update, at step s, left it; so the noise of the steps s + 1 .. T that it missed is one draw with the variance
V(T) - V(s),  V(t) = sum of scale_k^2 over k <= t, keyed by (identity, T, seed), and the noise of the step that updates it is
another. Being loaded leaves no trace, and placement, pieces and threads change nothing. A row that is drawn in every step has
gsplat's rule with covariance and opacity of one step before; noise as gsplat has it, of the row as it is now, would not be
bounded when the batch before it is planned.

*Visible sets.* A normal is shortened to 5 standard deviations (one draw of 65,000 is longer). So until step H a row that was
updated at s is within  5 gate(o_s) sigma_max^2 (sqrt(V(T) - V(s)) + scale_(T+1)) <= 5 gate sigma_max^2 sqrt(2 (V(H) - V(s)))
of where it would be without noise, the step that updates it included: that is in its cull entry, and the margin of plans made
ahead stays what one Adam step can move. H is the next rebuild, after which all entries are made anew: the bound grows with the
steps up to then, not with those of the run.

Regularisation. The loss has  opacity_weight mean(opacity) + scale_weight mean(scales): per row and step a gradient g of the
logit of opacity and of each log-scale, which dense Adam adds for every row. A row that is updated gets it exactly, where it is
then. Over missed steps v forgets much faster than the pull, where it is below the gradients, fills it up: v_j = beta2^j v', with
v' = v + share g^2 for what g itself leaves there in the first steps. Then the row drifts by its momentum m - g, as under Adam, and
flows down the gradient of the regularisation, scaled by sqrt(v_j), for which there is a closed form: with the weight w,

    A = w lr (sum over j = 1 .. missed of beta2^(-j/2)) / sqrt(v')
    scales:   d s / dA = -e^s       exp(-s) grows by A
    opacity:  d x / dA = -o (1-o)   2 x + 2 sinh x falls by A

and the moments are those of dense Adam with g as it is at the end. `tests/optim/test_mcmc.py` says how far that is from dense Adam.
No row is moved up by it, so cull entries need not know it. The mean is over the size that the model grows to, not over
the rows that there are meanwhile, so that it is one number for the leg. Rows are stirred from their first gradient on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clm.kernels.rows import AdamStep
from clm.store.layout import GROUPS

# As in `src/stir.h`. The gate is sigmoid(-slope (opacity - centre)); at logit END (opacity 0.2) it is 4e-9, and counts as closed.
GATE_SLOPE, GATE_CENTRE, GATE_END = 100.0, 0.005, -1.3862944
NOISE_REACH = 5.0  # standard deviations: no draw of three normal numbers is longer
_MEANS, _LOG_SCALES, _OPACITIES = (GROUPS.index(name) for name in ("means", "log_scales", "logit_opacities"))


@dataclass(frozen=True)
class Mcmc:
    """noise: of a step, per unit of the learning rate of means and of covariance (world units^-2). opacity_pull, scale_pull:
    gradient of the regularisation per unit of one opacity, of one scale. seed: of the noise, 32 bits."""

    noise: float
    opacity_pull: float
    scale_pull: float
    seed: int


@dataclass(frozen=True, eq=False)
class StirTables:
    """Tables over the steps of a leg [steps + 1]."""

    mcmc: Mcmc
    variance: np.ndarray  # [steps + 1] f64 V
    rate_sums: np.ndarray  # [2, steps + 1] f64 sum of lr_k c_k over k <= t: log-scales, opacities
    beta2_spent: np.ndarray  # [steps + 1] f32 1 - beta2^d
    growth: np.ndarray  # [steps + 1] f32 sum over j = 1 .. d of beta2^(-j/2), at most 1e30
    shares: tuple[float, float]  # of log-scales, of opacities

    @staticmethod
    def of(mcmc: Mcmc, rates: np.ndarray, weighted: np.ndarray, beta1: float, beta2: float) -> StirTables:
        """rates, weighted [6, steps + 1] f64: lr_k and lr_k c_k."""
        forgetting, missed = -np.log(beta2), np.arange(rates.shape[1])
        noises = np.square(mcmc.noise * rates[_MEANS])
        noises[0] = 0.0  # there is no step 0
        groups = [_LOG_SCALES, _OPACITIES]
        spent = -np.expm1(-forgetting * missed)
        growth = np.minimum(np.expm1(np.minimum(0.5 * forgetting * missed, 80.0)) / -np.expm1(-0.5 * forgetting), 1e30)
        # The first steps: as long as momentum lasts, or until the row has moved by about one.
        first = np.maximum(1.0 / (1.0 - beta1), forgetting / np.maximum(4.0 * rates[groups, -1] ** 2, 1e-12))
        shares = np.minimum(np.expm1(np.minimum(forgetting * first, 1.0)), 1.0)
        tables = np.cumsum(weighted[groups], axis=1), spent.astype(np.float32), growth.astype(np.float32)
        return StirTables(mcmc, np.cumsum(noises), *tables, (float(shares[0]), float(shares[1])))

    def put_into(self, constants: AdamStep, until: int) -> None:
        """until: the step after which all cull entries are made anew. The structure holds addresses into this object."""
        for name in ("variance", "rate_sums", "beta2_spent", "growth"):
            setattr(constants, name, getattr(self, name).ctypes.data)
        constants.scale_pull, constants.opacity_pull = self.mcmc.scale_pull, self.mcmc.opacity_pull
        constants.scale_share, constants.opacity_share = self.shares
        constants.noise_seed = self.mcmc.seed
        constants.variance_until = self.variance[min(until, len(self.variance) - 1)]
