"""Which strategy a run has: the one place that knows all of them."""

from __future__ import annotations

from collections.abc import Sequence

from clm.camera import Camera
from clm.config import Config
from clm.strategy.default import DefaultStrategy
from clm.strategy.mcmc import McmcStrategy
from clm.strategy.strategy import Strategy


def choose_strategy(config: Config, scene_scale: float, cameras: Sequence[Camera]) -> Strategy:
    """That of `--strategy`. scene_scale: the length that thresholds are shares of, in world units. cameras: of the
    views that are trained on."""
    return McmcStrategy(config) if config.strategy == "mcmc" else DefaultStrategy(config, scene_scale, cameras)
