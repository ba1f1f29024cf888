"""Which strategy a run has: the one place that knows all of them."""

from __future__ import annotations

from clm.config import Config
from clm.strategy.default import DefaultStrategy
from clm.strategy.mcmc import McmcStrategy
from clm.strategy.strategy import Strategy


def choose_strategy(config: Config, scene_scale: float, views: int) -> Strategy:
    """That of `--strategy`. scene_scale: the length that thresholds are shares of, in world units. views: that are trained on."""
    return McmcStrategy(config) if config.strategy == "mcmc" else DefaultStrategy(config, scene_scale, views)
