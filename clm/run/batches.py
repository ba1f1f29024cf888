"""Which views come when, and the plan of the next batch, made while the current one runs.

The data order is a pure function of the seed, so a resumed run needs no state for it. A plan made ahead reads the cull
entries as they were before the running batch; its margin covers how far one step can move a row (`Adam.reach`), so its
visible sets stay supersets. Gradients decide what is updated, so the margin never changes the model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clm.camera import Camera
from clm.plan.order import order_views
from clm.plan.residency import Plan, make_plan
from clm.plan.visibility import visible_sets
from clm.store.store import Store
from clm.stream.handover import HostLane, Outcome
from clm.stream.view import view_too_large

Margin = tuple[float, float]  # (growth, extra): every bounding radius R becomes R * growth + extra
EXACT_MARGIN: Margin = (1.0, 0.0)


def batch_views(train: np.ndarray, seed: int, first: int, count: int) -> list[int]:
    """View ids of training images first..first+count-1: every epoch is its own seeded permutation of `train`."""
    epochs: dict[int, np.ndarray] = {}
    views = []
    for image in range(first, first + count):
        epoch, position = divmod(image, len(train))
        if epoch not in epochs:
            epochs[epoch] = np.random.default_rng([seed, epoch]).permutation(train)
        views.append(int(epochs[epoch][position]))
    return views


@dataclass(frozen=True)
class Planned:
    """The plan of one batch and what it took to make it. `plan` is None when only the margin made a view exceed the arena:
    the order is decided then, and the sets are cut anew without a margin once the running batch is done."""

    views: list[int]  # in the order in which they run
    plan: Plan | None
    began: float  # time.perf_counter
    seconds: float


def plan_batch(
    store: Store,
    cameras: Sequence[Camera],
    views: Sequence[int],
    capacity: int,
    margin: Margin,
    seed: int,
    ordered: bool = False,
) -> Planned:
    """Cull, order and plan. `ordered`: keep the given order (a resumed batch whose order was already decided)."""
    started = time.perf_counter()
    sets = visible_sets(store.entries, store.bounds, [cameras[v] for v in views], margin, block_rows=store.block_rows)
    if not ordered:
        order = order_views(sets, store.rows, store.block_rows, seed)
        views, sets = [views[k] for k in order], [sets[k] for k in order]
    largest = max((len(rows) for rows in sets), default=0)
    if largest <= capacity:
        return Planned(
            list(views), make_plan(views, sets, capacity, store.block_rows), started, time.perf_counter() - started
        )
    if margin == EXACT_MARGIN:
        raise view_too_large(largest, capacity, "The largest view of the batch")
    return Planned(list(views), None, started, time.perf_counter() - started)


class PlanAhead:
    """One thread that plans the next batch. `take` returns the plan made ahead, or makes one now."""

    def __init__(self, make: Callable[[int, Margin], Planned]):
        """make(first image of the batch, margin) -> Planned."""
        self._make = make
        self._lane = HostLane("plan")
        self._planned: Outcome[Planned] | None = None
        self._first = -1

    def request(self, first: int, reach: tuple[float, float], after: Outcome[Any] | None = None) -> None:
        """Plan the batch that starts at image `first`, while a step moves means by `reach[0]`, log-scales by `reach[1]`.

        after: not before this is settled. What the running batch begins with is waited for, a plan is not."""
        means, log_scales = reach
        planned: Outcome[Planned] = Outcome()

        def plan() -> None:
            try:
                if after is not None:
                    after.wait()
                planned.succeed(self._make(first, (math.exp(log_scales), means)))
            except BaseException as error:
                planned.fail(error)  # whoever takes the plan sees it

        self._first, self._planned = first, planned
        self._lane.hand_over(plan)

    def ready(self) -> Planned | None:
        """Wait for the plan being made, if any. The store's cull entries must not change before this returns."""
        return None if self._planned is None else self._planned.result()

    def take(self, first: int, capacity: int) -> Planned:
        """The plan of the batch at image `first`: the one made ahead, or one made now where that is for more slots than
        `capacity` (the arena has shrunk since)."""
        ahead, self._planned = self._planned, None
        if ahead is not None and self._first == first:
            planned = ahead.result()
            if planned.plan is not None and planned.plan.capacity <= capacity:
                return planned
        return self._make(first, EXACT_MARGIN)

    def drop(self) -> None:
        """Forget the plan made ahead: rows have changed places."""
        if self._planned is not None:
            self._planned.wait()  # nobody may read the store while it is rebuilt
        self._planned = None

    def close(self) -> None:
        self._lane.close()
