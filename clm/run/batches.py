"""The batches of a run, each planned while the one before it runs.

A plan made ahead reads the cull entries as they were before the running batch; its margin covers how far one step can move
a row (`Adam.reach`), so its visible sets stay supersets. Gradients decide what is updated, so the margin never changes the
model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from clm.plan.batch import Planned, batch_views
from clm.plan.residency import Plan
from clm.plan.visibility import NO_MARGIN, Margin
from clm.run.grow import Growth
from clm.run.photos import Photos
from clm.run.residence import Residence
from clm.run.schedule import Schedule
from clm.stream.handover import HostLane, Outcome


@dataclass(frozen=True)
class NextBatch:
    """A batch that is about to run."""

    first: int  # training image of its first view
    views: int
    planned: Planned
    exposed: float  # seconds that the run waited for its plan
    coming: list[np.ndarray]  # of rows on disk: the pages that each view of the epoch after it uses

    @property
    def plan(self) -> Plan:
        return self.planned.plan


class Batches:
    """The batches from where the run is to its end. Owns order, planning, and planning ahead, for which it has a
    thread."""

    def __init__(
        self,
        schedule: Schedule,
        residence: Residence,
        train: np.ndarray,
        photos: Photos,
        growth: Growth,
    ):
        """train [V]: ids of the training views. growth: after a batch that it changes rows after, none is planned ahead."""
        self._schedule, self._residence, self._train, self._photos = schedule, residence, train, photos
        self._growth = growth
        residence.before_rebuilding(self.drop)
        self._lane = HostLane("plan")
        self._ahead: Outcome[Planned] | None = None
        self._ahead_first = -1

    def until(self, stop: Callable[[], bool]) -> Iterator[NextBatch]:
        """One after the other, each when the one before has run, until `stop()` says so or the run is over."""
        while not self._schedule.over and not self._residence.ranks.any(stop()):
            yield self.next()

    def next(self) -> NextBatch:
        """The batch that the run is at: planned ahead, or now."""
        began, first = time.perf_counter(), self._schedule.image
        planned = self._take(first)
        views = self._schedule.views_of_batch(first)
        return NextBatch(first, views, planned, time.perf_counter() - began, self._pages_after(first + views))

    def plan_ahead(self, batch: NextBatch, after: Outcome[Any]) -> None:
        """Plan the batch after `batch`, which runs now, unless there is none or rows change places before it. Not before
        `after` is settled: what the running batch begins with is waited for, a plan is not."""
        first = batch.first + batch.views
        if first < self._schedule.config.iterations and not self._growth.follows(batch.first, first):
            means, log_scales = self._schedule.next_reach()
            self.request(first, Margin(math.exp(log_scales), means), after)

    def request(self, first: int, margin: Margin, after: Outcome[Any] | None = None) -> None:
        """Have the batch that begins at image `first` planned."""
        planned: Outcome[Planned] = Outcome()

        def plan() -> None:
            try:
                if after is not None:
                    after.wait()
                planned.succeed(self._plan(first, margin))
            except BaseException as error:
                planned.fail(error)  # whoever takes the plan sees it

        self._ahead_first, self._ahead = first, planned
        self._lane.hand_over(plan)

    def settled(self) -> Planned | None:
        """Wait for the plan being made, if any. Cull entries must not change before this returns."""
        return None if self._ahead is None else self._ahead.result()

    def drop(self) -> None:
        """Forget the plan made ahead: rows are about to change places."""
        if self._ahead is not None:
            self._ahead.wait()  # nobody may read the store while it is rebuilt
        self._ahead = None

    def close(self) -> None:
        self._lane.close()

    def _take(self, first: int) -> Planned:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and self._ahead_first == first:
            planned = ahead.result()
            if planned.plan.capacity <= self._residence.arena.slots:
                return planned  # a larger one was made before the arena shrank
        return self._plan(first, NO_MARGIN)

    def _pages_after(self, first: int) -> list[np.ndarray]:
        """Of rows on disk: the pages of each view of the epoch that begins at an image, as far as they are known."""
        if not self._residence.on_disk:
            return []
        return self._residence.pages_of(self._views(first, len(self._train)))

    def _views(self, first: int, count: int) -> list[int]:
        """Views of training images first, first + 1, ..., in the order of the epochs."""
        return batch_views(self._train, self._schedule.config.seed, first, count)

    def _plan(self, first: int, margin: Margin) -> Planned:
        count = self._schedule.views_of_batch(first)
        views = self._views(first, count)
        decided = self._schedule.progress.next_order
        ordered = decided is not None and sorted(decided) == sorted(views)  # else --batch-size was changed on resume
        planned = self._residence.plan(decided if ordered and decided else views, margin, ordered=ordered)
        self._residence.lanes.foresee(planned.plan, self._pages_after(first + count))
        ranks = self._residence.ranks
        self._photos.prefetch(planned.views[ranks.rank :: ranks.world])  # those that this rank rasterises
        return planned
