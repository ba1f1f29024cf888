"""When rows are added and removed: the default strategy's calendar, and the one step that rebuilds the store."""

from __future__ import annotations

import numpy as np

from clm.config import Config
from clm.optim.schedules import crossed
from clm.run.events import Densified, Emit, OpacityReset
from clm.run.rebuild import Rebuild
from clm.run.residence import Residence
from clm.run.schedule import Schedule
from clm.store.store import Store
from clm.strategy.default import Thresholds, clear_statistics, decide, reset_opacity


def densify_due(config: Config, before: int, now: int) -> bool:
    """Densification happens every `densify_every` images within (densify_from, densify_until]."""
    return config.densify_from < now <= config.densify_until and crossed(config.densify_every, before, now)


def reset_due(config: Config, before: int, now: int) -> bool:
    """Opacity resets happen only while densification may still prune what stays transparent."""
    return now < config.densify_until and crossed(config.opacity_reset_every, before, now)


def rebuild_due(config: Config, before: int, now: int) -> bool:
    """Whether the batch that ends at image `now` is followed by a change of the store, so that no plan can be made ahead."""
    return densify_due(config, before, now) or reset_due(config, before, now)


def thresholds(config: Config, scene_scale: float, now: int) -> Thresholds:
    after_reset = 0 < config.opacity_reset_every < now
    return Thresholds(
        screen_gradient=config.grow_screen_gradient,
        split_scale=config.split_scale * scene_scale,
        prune_opacity=config.prune_opacity,
        prune_scale=config.prune_scale * scene_scale if after_reset else None,
    )


class Growth:
    """The default strategy over a residence."""

    def __init__(self, schedule: Schedule, residence: Residence, scene_scale: float, emit: Emit):
        self._schedule, self._residence, self._scale, self._emit = schedule, residence, scene_scale, emit
        self._config = schedule.config

    def follows(self, before: int, now: int) -> bool:
        """Whether the batch (before, now] is followed by a rebuild."""
        return rebuild_due(self._config, before, now)

    @property
    def due(self) -> bool:
        return self.follows(*self._schedule.last_batch)

    def rebuild(self) -> int:
        """Densify and reset opacity as due; returns how many rows changed, which its cost follows. A reset reaches every row."""
        config, now = self._config, self._schedule.image
        with self._residence.rebuilding() as rebuild:
            if densify_due(config, *self._schedule.last_batch):
                self._densify(rebuild, now)
            if reset_due(config, *self._schedule.last_batch):
                reset_opacity(rebuild.store, self._schedule.next_step(), config.reset_opacity)
                rebuild.everything()
                self._emit(OpacityReset(now))
        return rebuild.rows

    def _densify(self, rebuild: Rebuild, now: int) -> None:
        store, limits, seed = rebuild.store, thresholds(self._config, self._scale, now), self._config.seed
        decision = decide(store, self._schedule.next_step(), limits, self._row_limit(store), seed, now)
        pages = rebuild.apply(decision.growth)
        clear_statistics(store)
        done = decision.cloned, decision.split, decision.pruned, decision.refused
        self._emit(Densified(now, *done, store.rows, pages))

    def _row_limit(self, store: Store) -> int:
        """How many rows --max-gaussians and the host budget admit."""
        limit = min(self._config.max_gaussians or np.iinfo(np.int32).max, self._residence.row_limit())
        return max(limit, store.rows)
