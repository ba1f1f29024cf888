"""Which views come when, and the plan of one batch of them: cull, order, plan.

The data order is a pure function of the seed, so a resumed run needs no state for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from clm.camera import Camera
from clm.plan.order import order_views
from clm.plan.residency import Plan, make_plan
from clm.plan.visibility import Margin, visible_sets
from clm.store.pages import pages_of
from clm.store.store import Store


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
    """The plan of one batch and what it took to make it."""

    views: list[int]  # in the order in which they run
    plan: Plan
    began: float  # time.perf_counter
    seconds: float
    pages: tuple[np.ndarray, ...] = ()  # of each view, [A] i32 ascending


def plan_batch(
    store: Store,
    cameras: Sequence[Camera],
    views: Sequence[int],
    capacity: int,
    margin: Margin,
    seed: int,
    ordered: bool = False,
    ranks: int = 1,
    totals: Callable[[np.ndarray], np.ndarray] = lambda counts: counts,
) -> Planned:
    """Cull, order and plan. `ordered`: keep the given order (a resumed batch whose order was already decided). ranks: that
    rasterise views of these rows and of others; totals: as `order_views` says."""
    started = time.perf_counter()
    seen_by, size = [cameras[v] for v in views], store.page_rows
    sets = visible_sets(store.entries, store.bounds, seen_by, margin, page_rows=size, fill=store.fill)
    if not ordered:
        order = order_views(sets, store.places, size, seed, totals)
        views, sets = [views[k] for k in order], [sets[k] for k in order]
    plan = make_plan(views, sets, capacity, size, ranks=ranks)
    pages = () if store.disk is None else tuple(pages_of(seen, size) for seen in sets)
    return Planned(list(views), plan, started, time.perf_counter() - started, pages)
