"""Learning rates per column group and step (gsplat simple_trainer's values, RASTER.md), scaled for the batch size."""

from __future__ import annotations

import numpy as np

from clm.config import Config
from clm.gaussians.layout import GROUPS


def total_steps(config: Config) -> int:
    """Optimizer steps of the whole run: one per batch, the last one possibly smaller."""
    return -(-config.iterations // config.batch_size)


def learning_rates(config: Config, scene_scale: float) -> np.ndarray:
    """[6, steps + 2] f64, rows in the order of `layout.GROUPS`; index 0 is unused, the last one lies beyond the end of
    the run (rows are caught up to the end by "the step after").

    Means decay exponentially to `means_lr_final` of their start over the run and scale with the scene; the others are
    constant. Everything is multiplied by sqrt(batch size) (Grendel's rule; betas and eps follow in `Betas.for_batch`).
    """
    steps = total_steps(config)
    constant = np.array([getattr(config, f"{group}_lr") for group in GROUPS])
    rates = np.repeat(constant[:, None], steps + 2, axis=1)
    progress = np.clip(np.arange(steps + 2) * config.batch_size / config.iterations, 0.0, 1.0)
    rates[0] *= scene_scale * config.means_lr_final**progress
    return rates * config.batch_size**0.5


def sh_degree_at(config: Config, iteration: int) -> int:
    """Active spherical-harmonics degree: one more every `sh_interval` training images."""
    return min(config.sh_degree, iteration // max(config.sh_interval, 1))
