"""Which views come when, and the plan of one batch of them: cull, order, plan.

The data order is a pure function of the seed, so a resumed run needs no state for it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clm.camera import Camera
from clm.errors import ResourceError
from clm.plan.budget import SLOT_BYTES
from clm.plan.order import order_views
from clm.plan.residency import Plan, make_plan
from clm.plan.visibility import visible_sets
from clm.store.store import Store
from clm.units import format_bytes, size_flag

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


def view_too_large(rows: int, slots: int, what: str) -> ResourceError:
    """The error for a visible set that exceeds the arena, with the numbers that help."""
    return ResourceError(
        f"{what} needs {rows:,} Gaussians on the device at once ({format_bytes(rows * SLOT_BYTES)}), "
        f"but the arena has {slots:,} slots ({format_bytes(slots * SLOT_BYTES)}).",
        f"Pass `--gpu-memory {size_flag(int(rows * SLOT_BYTES * 1.1))}` or more, or train with fewer --max-gaussians.",
    )


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
