"""When rows are added and removed: the default strategy's calendar, and the one step that rebuilds the store."""

from __future__ import annotations

from functools import partial

import numpy as np

from clm.config import Config
from clm.kernels import rows as row_kernels
from clm.optim.schedules import crossed
from clm.plan.budget import slots_for, store_row_bytes
from clm.run.events import Densified, OpacityReset
from clm.run.session import Session, all_visible_sets, host_budget
from clm.store.store import Store
from clm.strategy.default import Thresholds, densify, reset_opacity, resort, wants_resort

_ARENA_FILL = 0.9  # views may grow to this share of the arena: rows also move and swell until the end of the run


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


def row_limit(session: Session) -> int:
    """How many rows --max-gaussians and the host budget admit."""
    on_host = host_budget(session.config, session.store.bytes) // store_row_bytes(session.config.moments)
    limit = min(session.config.max_gaussians or np.iinfo(np.int32).max, on_host)
    return max(limit, session.store.rows)


def admits(session: Session, store: Store, drop: np.ndarray) -> bool:
    """Whether every view would still fit into the arena that the device budget allows, with `drop` [N] bool removed."""
    budget, _ = session.budgets("host")
    if session.budget.bytes is not None and session.config.offload == "none":
        # auto would rather move the store to the host than stop growing
        budget -= store.rows * session.tiers.resident_row_bytes
    # Staging and the rasteriser's temporaries grow with the view that fills the arena.
    if store.rows <= slots_for(budget - session.temporaries(store.rows)):
        return True
    session.refresh_store()
    largest = max(len(rows) - int(drop[rows].sum()) for rows in all_visible_sets(store, session.cameras))
    return largest <= int(slots_for(budget - session.temporaries(largest)) * _ARENA_FILL)


def rebuild(session: Session, before: int) -> None:
    """Densify and reset opacity as due after the batch (before, now]: settle, decide, resort, refresh, place anew."""
    config, store, now = session.config, session.store, session.progress.iteration
    session.plans.drop()
    session.lanes.publish_entries()
    session.tiers.write_back()
    row_kernels.settle(store, session.next_step(), 0, store.rows)
    if densify_due(config, before, now):
        limits = thresholds(config, session.scene.scale, now)
        result = densify(store, limits, row_limit(session), config.seed, now, partial(admits, session))
        session.progress.new_rows_since_sort += result.cloned + 2 * result.split
        resorted = wants_resort(session.progress.new_rows_since_sort, store.rows)
        if resorted:
            session.refresh_store()
            resort(store)
            session.progress.new_rows_since_sort = 0
        session.emit(Densified(now, result.cloned, result.split, result.pruned, result.refused, result.rows, resorted))
    if reset_due(config, before, now):
        reset_opacity(store, config.reset_opacity)
        session.emit(OpacityReset(now))
    session.refresh_store()
    session.move_in()
