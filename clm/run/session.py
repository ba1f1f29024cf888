"""The components of a training run and the state that a checkpoint holds: built here, used by `loop.train`."""

from __future__ import annotations

import dataclasses
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clm import kernels
from clm.camera import Camera
from clm.config import Config, config_changes, from_dict, parse_background, to_dict
from clm.device.budget import available_memory, find_device_budget
from clm.device.choose import open_device
from clm.errors import ClmError, ResourceError
from clm.forecast.describe import short_plan
from clm.kernels import rows as row_kernels
from clm.kernels.memory import return_freed_memory
from clm.kernels.rows import AdamStep, colour_columns
from clm.optim.schedules import Leg, crossed, sh_degree_at
from clm.plan.budget import arena_bytes, in_core_bytes, lanes_bytes
from clm.plan.placement import (
    Placement,
    Sightings,
    arena_needs,
    check_shared_memory,
    choose_placement,
    resident_blocks,
)
from clm.plan.residency import Plan, rest_of
from clm.plan.visibility import visible_sets
from clm.progress import Report, counted, pending, unseen
from clm.render import Render
from clm.run.arrays import Damaged
from clm.run.batches import Margin, PlanAhead, Planned, batch_views, plan_batch
from clm.run.begun import read_split, with_split
from clm.run.checkpoint import load_sound_checkpoint, save_checkpoint
from clm.run.events import CheckpointSaved, Emit, Message, reporter
from clm.run.records import restored
from clm.run.totals import Totals
from clm.scene import CorruptImage, ImageCache, Scene
from clm.store.init import rows_from_ply, rows_from_points, rows_random
from clm.store.order import block_order
from clm.store.store import Store
from clm.stream.lanes import Lanes
from clm.stream.spans import Trace
from clm.stream.tiers import Tiers
from clm.stream.view import render_view
from clm.units import parse_bytes

SAVE_SECONDS = 600.0  # of training between two checkpoints, unless --save-every says otherwise
_SAVE_SHARE = 0.05  # of the time at most goes into such saves
_NAMED = 3  # unreadable photos are named, later ones counted
_VANISHED_SHARE = 0.1  # of the training photos; a run stops when more cannot be read
RANDOM_ROWS = 100_000  # initial Gaussians when the model has no points (INRIA, gsplat)
SETS_BYTES = 32 << 20  # of visible sets that are looked at one by one


@dataclass
class Progress:
    """Where the run is. `next_order`: views of the next batch in their decided order, when it was planned ahead."""

    leg: Leg  # of the schedule
    iteration: int = 0
    step: int = 0  # optimizer steps done
    new_rows_since_sort: int = 0
    next_order: list[int] | None = None


class Saved(NamedTuple):
    """The state of a checkpoint, beside its arrays. `run`: the name of the run that wrote it, if it says."""

    run: str | None
    config: Config
    scene_scale: float
    progress: Progress
    totals: Totals

    @classmethod
    def parse(cls, state: dict[str, Any], source: str) -> Saved:
        """Raises Damaged where a value is none that a run writes."""
        run, scale = state.get("run"), state["scene_scale"]
        try:
            config = from_dict(state["config"], source)
        except ClmError as error:
            raise Damaged(f"its configuration is refused: {error.message.rstrip('.')}") from None
        first_leg = dataclasses.asdict(Leg.of(config, scale))  # checkpoints from before there were legs name none
        progress = restored(Progress, {"leg": first_leg, **state["progress"]}, "progress")
        totals = restored(Totals, state["totals"], "totals")
        return cls(str(run) if run else None, config, scale, progress, totals)

    @property
    def last_stamp(self) -> int:
        """The largest stamp that a row can have."""
        return self.progress.leg.index(self.progress.step)


class Session:
    """Everything `train()` works with. Invariant: between batches the lanes are idle and the store is consistent, its cull
    entries once `lanes.publish_entries()` returns."""

    def __init__(self, scene: Scene, config: Config, run: Path, emit: Emit, resume: Path | None = None):
        kernels.set_threads(config.threads or os.cpu_count() or 1)
        return_freed_memory()
        self.scene, self.config, self.run, self.emit, self.report = scene, config, run, emit, reporter(emit)
        self.device, self.rasterizer = open_device(
            config.device, antialiased=config.antialias, absgrad=config.absgrad, say=lambda text: emit(Message(text))
        )
        self.budget = find_device_budget(config.gpu_memory, self.device, lambda text: emit(Message(text, "warning")))
        self.cameras = [view.camera for view in scene.views]
        self.background = parse_background(config.background)
        self.progress, self.totals = Progress(Leg.of(config, scene.scale)), Totals()
        self.name = secrets.token_hex(8)  # of this run among others; its checkpoints carry it
        self.saved: Path | None = None  # the checkpoint of the newest state that is saved
        self.unreadable: dict[int, int] = {}  # view whose photo could not be read -> visits that were skipped
        self.begin_clock(nullcontext)
        if resume is None:
            self.store = initial_store(scene, config, emit)
        else:
            self._restore(resume)
        self.adam = self.progress.leg.adam()
        self.refresh_store()
        self.images = ImageCache(scene, parse_bytes(config.image_cache))
        self.plans = PlanAhead(self._plan)
        self.trace = Trace(Path(config.trace)) if config.trace else None
        self.reserved = 0  # device bytes that placements leave free, since memory ran out once
        unseen_rows = np.ones(self.store.rows, bool) if resume is None else None
        self.placement, blocks = self._place(unseen_rows)
        if unseen_rows is not None and unseen_rows.any():
            count = f"{int(unseen_rows.sum()):,} of {self.store.rows:,} Gaussians"
            emit(Message(f"{count} are seen by no training view: they stay as they are"))
        self._open_lanes(blocks, self.placement.arena_slots)
        for line in [self.budget.reason] * bool(self.budget.reason) + self._short_plan():
            emit(Message(line))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.lanes.close()  # a plan may wait for the view that was under way
        self.plans.close()
        self.images.close()

    def _warn(self, text: str) -> None:
        self.emit(Message(text, "warning"))

    def refresh_store(self) -> None:
        """Cull entries and bounds of all rows, as of the step reached."""
        self.store.refresh(self.next_step())

    def move_in(self) -> None:
        """Placement is decided anew after rows were added, removed or sorted, or outgrew the arena; tiers and lanes follow.

        The store is whole: resident rows were written back before it was changed, and what the device holds is of no use any
        more. Raises ResourceError, with everything as it was, when nothing fits."""
        self.lanes.publish_entries()
        before = self.placement
        self.placement, blocks = self._place()
        self.lanes.close()
        del self.lanes, self.tiers  # the old memory is free before new memory is taken
        self.device.release_unused()
        try:
            self._open_lanes(blocks, self.placement.arena_slots)
        except ResourceError:
            self._open_lanes(np.zeros_like(blocks), 0)  # enough for the state to be saved
            raise
        if self.placement.offload != before.offload:
            self.emit(Message(self.placement.reason))

    def _open_lanes(self, blocks: np.ndarray, arena_slots: int) -> None:
        self.tiers = Tiers(self.device, self.store, blocks, arena_slots, self.largest_view)
        self.lanes = Lanes(self.tiers)

    def shrink_arena(self, plan: Plan, i: int) -> Plan | None:
        """The device has no memory for the view of step i: give it a quarter of the arena. Returns the plan of the rest of
        the batch, under way in the smaller arena; None: the views that are left need the arena as it is."""
        slots, least = self.tiers.arena.slots, max(len(turn.rows) for turn in plan.turns[i:])
        smaller = max(least, slots * 3 // 4)
        if smaller > 0.95 * slots:
            return None
        self.lanes.interrupt(i)
        self.tiers.replace_arena(smaller)
        self.reserved += arena_bytes(slots) - arena_bytes(smaller)  # placements to come leave as much free
        rest = rest_of(plan, i, smaller, self.store.block_rows)
        self.lanes.go_on(rest)
        text = f"out of device memory: the arena goes from {slots:,} to {smaller:,} slots, the view is repeated"
        self.emit(Message(text, "warning"))
        return rest

    def batch_size(self, first: int) -> int:
        return min(self.config.batch_size, self.config.iterations - first)

    def next_step(self) -> AdamStep:
        """Constants of the next optimizer step, for what needs rows as they are now: caught up to the step before it."""
        return self.adam.at(self._next_index)

    def training_step(self, count: int) -> AdamStep:
        """The next optimizer step, over `count` views. Everything else fetches exact colours, whatever `colour_bus` is."""
        return self.adam.at(self._next_index, count, bf16_colours=self.config.colour_bus == "bf16")

    def next_reach(self) -> tuple[float, float]:
        """How far the next optimizer step can move a mean and a log-scale (`Adam.reach`)."""
        return self.adam.reach(self._next_index)

    @property
    def _next_index(self) -> int:
        return self.progress.leg.index(self.progress.step) + 1

    def image_background(self, image: int) -> tuple[float, float, float]:
        """Background of the `image`-th training image."""
        if self.background is not None:
            return self.background
        r, g, b = np.random.default_rng([self.config.seed, 1, image]).random(3)
        return float(r), float(g), float(b)

    def view_renderer(self) -> Callable[[Camera], Render]:
        """Renders any camera from the Gaussians as they are now."""
        self.lanes.publish_entries()
        degree = sh_degree_at(self.config, self.progress.iteration)
        background, adam = self.background or (0.0, 0.0, 0.0), self.next_step()
        return partial(render_view, self.tiers, adam, self.rasterizer, sh_degree=degree, background=background)

    def begin_clock(self, saving: Callable[[], AbstractContextManager[None]]) -> None:
        """Training begins now. saving: entered while a checkpoint is written, which nothing may interrupt."""
        self._saving, self._counted = saving, time.perf_counter()
        self._last_save, self._save_seconds = self._counted, 0.0

    def count_seconds(self) -> None:
        """Add the time since the last call to the totals: what is saved knows how long it took."""
        now = time.perf_counter()
        self.totals.seconds += now - self._counted
        self._counted = now

    def save_due(self, before: int) -> bool:
        """Whether a checkpoint is due after the batch that began at image `before`. It never changes the model."""
        if self.config.save_every is not None:
            return crossed(self.config.save_every, before, self.progress.iteration)
        wait = max(SAVE_SECONDS, self._save_seconds / _SAVE_SHARE)
        return time.perf_counter() - self._last_save >= wait

    def save(self) -> None:
        """Checkpoint the run as it is between two batches, unless that very state is saved."""
        if self.saved == self.run / "checkpoints" / f"step_{self.progress.iteration}":
            return
        with self._saving():
            began = time.perf_counter()
            self._save()
            self._last_save = time.perf_counter()
            self._save_seconds = self._last_save - began

    def see_unreadable(self, view: int, error: CorruptImage) -> None:
        """A photo could not be read and its visit is skipped; the first few are named."""
        if view not in self.unreadable and len(self.unreadable) < _NAMED:
            self._warn(f"{error} Skipping it.")
        self.unreadable[view] = self.unreadable.get(view, 0) + 1

    def refuse_vanished(self) -> None:
        """Stop, with the state saved, when more photos became unreadable than a run should go on without."""
        gone, views = len(self.unreadable), len(self.scene.train)
        if gone <= max(_NAMED, _VANISHED_SHARE * views):
            return
        name = self.scene.views[next(reversed(self.unreadable))].name
        self.save()
        raise ClmError(
            f"{gone} of {views} training photos can no longer be read (the last one: {name}).",
            f"The state is saved in {self.run / 'checkpoints'}; bring the photos back and run again with --resume.",
        )

    def _save(self) -> None:
        iteration, folder = self.progress.iteration, self.run / "checkpoints"
        self.count_seconds()
        self.tiers.write_back()
        state = {
            "run": self.name,
            "config": to_dict(self.config),
            "scene_scale": self.scene.scale,
            "progress": dataclasses.asdict(self.progress),
            "totals": self.totals.state(),
        }
        path = save_checkpoint(
            folder, iteration, state, self.store, self.config.keep_checkpoints, self._warn, self.report
        )
        self.saved = path
        self.emit(CheckpointSaved(iteration, str(path)))

    def see_peak(self) -> None:
        """Record the bytes held now."""
        tiers, row_bytes = self.tiers, self.tiers.resident_row_bytes
        host = tiers.host_bytes + self.lanes.staging_bytes + self.images.bytes
        device = tiers.device_bytes + self.lanes.device_staging_bytes + self.rasterizer.peak_temporaries
        held = self.device.held()
        self.totals.see_peak(device, host, in_core_bytes(self.store.rows, self.store.rows, row_bytes), held)
        # What the allocator keeps beyond what was counted is left free by placements to come.
        self.reserved = max(self.reserved, held - (self.placement.device_bytes - self.reserved_by_placement))

    def next_plan(self) -> Planned:
        """The plan of the next batch. Views that outgrew the arena get a larger one, if the budget has it; if not, the state
        of the last batch is saved before the error leaves."""
        take = partial(self.plans.take, self.progress.iteration)
        try:
            return take(self.tiers.arena.slots)
        except ResourceError:
            try:
                self.tiers.write_back()
                self.move_in()
                return take(self.tiers.arena.slots)
            except ResourceError:
                self.save()
                raise

    def _plan(self, first: int, margin: Margin) -> Planned:
        self.lanes.publish_entries()
        views = batch_views(self.scene.train, self.config.seed, first, self.batch_size(first))
        decided = self.progress.next_order
        ordered = False
        if decided is not None and sorted(decided) == sorted(views):  # else --batch-size was changed on resume
            views, ordered = decided, True
        planned = plan_batch(self.store, self.cameras, views, self.tiers.arena.slots, margin, self.config.seed, ordered)
        self.images.prefetch(planned.views)
        return planned

    def _place(self, unseen_rows: np.ndarray | None = None) -> tuple[Placement, np.ndarray]:
        """Where rows go, and which blocks are resident [blocks] bool. unseen_rows [N] bool: false afterwards for the rows that
        a training view may see."""
        store, config = self.store, self.config
        seen = sightings(store, self.cameras, self.report, self.scene.train, unseen_rows)
        self.largest_view = seen.largest_view
        usual = seen.usual_union(config.batch_size)
        needed, usual = arena_needs(store.rows, seen.largest_view, usual, config.batch_size, store.block_rows)
        budgets, temporaries = self.budgets(), self.temporaries(seen.largest_view)
        if self.budget.bytes is None:
            check_shared_memory(store.rows, seen.largest_view, budgets[1], config.moments, temporaries)
        self.reserved_by_placement = self.reserved
        placement = choose_placement(
            store.rows,
            needed,
            seen.largest_view,
            *budgets,
            config.offload,
            usual_union=usual,
            temporaries=temporaries,
            moments=config.moments,
            block_rows=store.block_rows,
            shared_memory=self.device.shares_host_memory,
        )
        return placement, resident_blocks(seen, placement.resident_rows)

    def _short_plan(self) -> list[str]:
        """What the run needs and what its first batch moves: two lines before step 0. The plan is that batch's own."""
        first = self.progress.iteration
        if first >= self.config.iterations:
            return [self.placement.reason]
        self.plans.request(first, (0.0, 0.0))
        planned = self.plans.ready()
        assert planned is not None and planned.plan is not None, "the arena was sized for these very views"
        columns = colour_columns(sh_degree_at(self.config, first))
        resident, bus = self.tiers.resident_mask, self.config.colour_bus
        text = short_plan(self.placement, planned.plan, resident, columns, *self.budgets(), bus)
        return text.splitlines()

    def budgets(self, offload: str | None = None) -> tuple[int, int]:
        """Bytes of the device's budget and of the host's, now. offload: as if it were this one."""
        arena = self.tiers.arena.bytes if hasattr(self, "tiers") and self.device.shares_host_memory else 0
        host = host_budget(self.config, self.store.bytes + arena)
        offload = self.config.offload if offload is None else offload
        return self.budget.beside(self.store.rows, self.config.moments, host, offload), host

    def temporaries(self, largest_view: int) -> int:
        """Device bytes beside arena and residents: the rasteriser's, the lanes', and what is kept free."""
        pixels = max(camera.width * camera.height for camera in self.cameras)
        lanes = 0 if self.device.shares_host_memory else lanes_bytes(largest_view)
        return self.rasterizer.temporary_bytes(largest_view, pixels) + lanes + self.reserved

    def _restore(self, path: Path) -> None:
        path, saved, self.store = load_sound_checkpoint(
            path, partial(Saved.parse, source=str(path)), self._warn, self.report
        )
        self.name, self.saved = saved.run or self.name, path
        for text in config_changes(saved.config, self.config):
            self._warn(text)
        self.scene = with_split(self.scene, read_split(self.run, saved.config))
        self.scene = dataclasses.replace(self.scene, scale=saved.scene_scale)  # lengths stay what they were
        self.progress, self.totals = saved.progress, saved.totals
        done = self.progress.iteration
        if done > self.config.iterations:
            raise ClmError(
                f"{path} is already at image {done}, beyond --iterations {self.config.iterations}.",
                f"Pass `--iterations {done}` to end there, or more.",
            )
        self._begin_leg()

    def _begin_leg(self) -> None:
        """Go on under the present schedule: where it is not that of the checkpoint, every row is settled under the old one
        and a new leg begins."""
        progress, old = self.progress, self.progress.leg
        progress.leg = old.followed_by(Leg.of(self.config, self.scene.scale), progress.iteration, progress.step)
        if progress.leg is not old:
            row_kernels.settle(self.store, old.adam().at(old.index(progress.step) + 1), 0, self.store.rows)
            self.store.stamp[self.store.stamp > 0] = progress.leg.settled


def initial_store(scene: Scene, config: Config, emit: Emit) -> Store:
    """Rows from a PLY, from the COLMAP points, or random inside the cameras' bounds; sorted into blocks."""
    report = reporter(emit)
    if config.init_ply:
        geometry, colour = rows_from_ply(config.init_ply, report=report)
        geometry[:, :3] -= scene.offset.astype(np.float32) if len(geometry) and _far(geometry) else np.float32(0)
    elif len(scene.points):
        with pending(f"nearest neighbours of {len(scene.points):,} points", report):
            geometry, colour = rows_from_points(scene.points, scene.point_colors, config.seed, config.init_opacity)
    else:
        emit(Message("The model has no points: starting from random Gaussians inside the cameras' bounds.", "warning"))
        positions = np.array([view.camera.position for view in scene.views])
        forwards = np.array([view.camera.forward for view in scene.views])
        count = min(RANDOM_ROWS, config.max_gaussians or RANDOM_ROWS)
        geometry, colour = rows_random(positions, forwards, count, config.seed)
    if config.max_gaussians is not None and len(geometry) > config.max_gaussians:
        emit(
            Message(
                f"Keeping {config.max_gaussians:,} of {len(geometry):,} initial points (--max-gaussians).", "warning"
            )
        )
        keep = np.random.default_rng([config.seed, 2]).permutation(len(geometry))[: config.max_gaussians]
        geometry, colour = geometry[np.sort(keep)], colour[np.sort(keep)]
    with pending(f"sorting {len(geometry):,} Gaussians into blocks", report):
        store = Store.from_rows(geometry, colour, moments=config.moments)
        store.refresh(None)
        store.take(block_order(store.entries))
    return store


def _far(geometry: np.ndarray) -> bool:
    """Whether a PLY is still in far-away (georeferenced) coordinates; float32 has metres of rounding there already."""
    return bool(np.abs(geometry[:, :3]).max() > 1e5)


def all_visible_sets(store: Store, cameras: list[Camera]) -> Iterator[np.ndarray]:
    """The visible set of each camera, [M] i32; a few at a time are held, of together 32 MiB at most (or one)."""
    at_once = min(64, max(1, SETS_BYTES // (4 * max(1, store.rows))))
    for first in range(0, len(cameras), at_once):
        group = cameras[first : first + at_once]
        yield from visible_sets(store.entries, store.bounds, group, block_rows=store.block_rows)


def sightings(
    store: Store,
    cameras: list[Camera],
    report: Report = unseen,
    watching: np.ndarray | None = None,
    unseen_rows: np.ndarray | None = None,
) -> Sightings:
    """What `cameras` see of the store; `unseen_rows` [N] bool becomes false where one of those in `watching` [V] may see."""
    sets = counted(all_visible_sets(store, cameras), "finding what views see", len(cameras), "views", report)
    if watching is not None and unseen_rows is not None:
        sets = _marking(sets, frozenset(watching.tolist()), unseen_rows)
    return Sightings.of(sets, store.rows, store.block_rows)


def _marking(sets: Iterator[np.ndarray], watching: frozenset[int], unseen_rows: np.ndarray) -> Iterator[np.ndarray]:
    for k, rows in enumerate(sets):
        if k in watching:
            unseen_rows[rows] = False
        yield rows


def host_budget(config: Config, held: int) -> int:
    """Bytes the store may take on the host, where it takes `held` already: those are not available, but its own."""
    if config.host_memory != "auto":
        return parse_bytes(config.host_memory)
    return int(0.8 * (available_memory() + held))
