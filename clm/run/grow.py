"""The one step that rebuilds the store: a strategy over a residence, and the leg of the schedule that follows."""

from __future__ import annotations

from clm.run.events import Emit
from clm.run.residence import Residence
from clm.run.schedule import Schedule
from clm.strategy.strategy import Strategy


class Growth:
    """Rows come and go as a strategy says."""

    def __init__(self, schedule: Schedule, residence: Residence, strategy: Strategy, emit: Emit):
        self._schedule, self._residence, self._strategy, self._emit = schedule, residence, strategy, emit

    def follows(self, before: int, now: int) -> bool:
        """Whether the batch (before, now] is followed by a rebuild."""
        return self._schedule.rebuilds(before, now)

    def counts(self, image: int) -> bool:
        """Whether a rebuild will read how many pixels of this image its rows explain."""
        return self._strategy.counts(image)

    @property
    def due(self) -> bool:
        return self.follows(*self._schedule.last_batch)

    def rebuild(self) -> int:
        """What is due after the last batch; returns how many rows changed, which its cost follows."""
        with self._residence.rebuilding() as rebuild:
            if self._strategy.due(*self._schedule.last_batch):
                for event in self._strategy.rebuild(rebuild, *self._schedule.last_batch):
                    self._emit(event)
            if self._schedule.leg_ends(*self._schedule.last_batch):
                self._schedule.begin_leg(rebuild.store)
                rebuild.everything()
        return rebuild.rows
