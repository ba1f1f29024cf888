"""A run is assembled here: from a scene and a configuration, anew or from a checkpoint, out of parts that know each other only
as far as their constructors say. Parts can also be handed in: benchmarks and tests bring their own store, photos or device.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clm import kernels
from clm.config import Config
from clm.device.choose import open_device
from clm.device.interface import Device
from clm.forecast.describe import short_plan
from clm.formats.start import initial_store
from clm.kernels.memory import return_freed_memory
from clm.kernels.rows import colour_columns
from clm.optim.schedules import sh_degree_at
from clm.plan.visibility import NO_MARGIN
from clm.ranks import ALONE, Ranks
from clm.ranks.handshake import agree, together
from clm.render import Rasterizer
from clm.run.accounts import Accounts
from clm.run.batches import Batches
from clm.run.begun import config_changes, read_split, with_split
from clm.run.evaluate import Evaluation
from clm.run.events import Emit, Message, reporter
from clm.run.exposure import Exposures, begin_exposures, resume_exposures
from clm.run.grow import Growth
from clm.run.host_memory import HostMemory, resident_bytes
from clm.run.photos import Photos
from clm.run.residence import Residence
from clm.run.room import Room
from clm.run.run_files import RunFiles
from clm.run.saved import Saved, load_saved
from clm.run.saver import Saver
from clm.run.schedule import Schedule
from clm.run.segments import Kept
from clm.run.several import in_words, unjoined
from clm.run.shared_views import SharedViews
from clm.run.totals import Totals
from clm.run.view import Views
from clm.scene import ImageCache, Scene
from clm.store.store import Store
from clm.strategy.choose import choose_strategy
from clm.units import parse_bytes


@dataclass(frozen=True)
class Run:
    """The parts of a training run."""

    scene: Scene
    schedule: Schedule
    photos: Photos
    residence: Residence
    batches: Batches
    views: Views
    exposures: Exposures
    growth: Growth
    evaluation: Evaluation
    accounts: Accounts
    saver: Saver
    files: RunFiles

    def begin(self, saving: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Training begins now: the files that describe the run are written, the clocks start."""
        self.files.start()
        self.accounts.begin()
        self.saver.begin(saving)


@contextmanager
def open_run(
    scene: Scene,
    config: Config,
    folder: Path,
    emit: Emit,
    resume: Path | None = None,
    *,
    store: Store | None = None,
    cache: ImageCache | None = None,
    machine: tuple[Device, Rasterizer] | None = None,
    keep_points: bool = True,
    ranks: Ranks = ALONE,
) -> Iterator[Run]:
    """A run in `folder`, ready for its next batch. resume: the checkpoint to go on from. store, cache, machine: to be used
    instead of those that the scene and the configuration call for. keep_points: False where the scene's points are of no
    use afterwards: they are forgotten as soon as there are rows. ranks: of which this is one; each has a part of the rows, and all
    of them do the same at the same time.

    Raises ClmError for a checkpoint that cannot be used, ResourceError when a budget is impossible."""
    base = resident_bytes() - (0 if keep_points else scene.point_bytes)  # before the first row
    kernels.set_threads(config.threads or max(1, (os.cpu_count() or 1) // ranks.local_world))
    return_freed_memory()
    ground = _ground(scene, config, folder, emit, machine, base, ranks)
    begun = (
        _fresh(scene, config, store, emit, ground, ranks)
        if resume is None
        else _gone_on(scene, config, folder, resume, emit, ground, ranks)
    )
    if not keep_points:
        scene.forget_points()
        begun.scene.forget_points()
    with ExitStack() as stack, unjoined(ranks, stack):
        stack.enter_context(closing(begun.store))
        images = stack.enter_context(closing(cache or ImageCache(begun.scene, ground.memory.photos)))
        yield _assembled(begun, ground, images, config, folder, emit, ranks, stack)


class _Ground(NamedTuple):
    """What a run stands on: who computes, and the memory and the folder that rows may take."""

    device: Device
    rasterizer: Rasterizer
    memory: HostMemory
    room: Room
    scratch: Path


def _ground(
    scene: Scene,
    config: Config,
    folder: Path,
    emit: Emit,
    machine: tuple[Device, Rasterizer] | None,
    base: int,
    ranks: Ranks,
) -> _Ground:
    """base: bytes that the process holds without any row."""
    device, rasterizer = machine or together(
        ranks,
        lambda: open_device(
            config.device, antialiased=config.antialias, absgrad=config.absgrad, say=lambda text: emit(Message(text))
        ),
    )
    agree(ranks, {"the device": {"its kind": device.kind}})
    all_photos, image_cache = sum(view.nbytes for view in scene.views), parse_bytes(config.image_cache)
    memory = HostMemory.find(config.host_memory, base, image_cache, all_photos, _warner(emit), ranks.local_world)
    scratch = Path(config.scratch) if config.scratch else folder / "scratch"
    return _Ground(device, rasterizer, memory, memory.room(config.offload, scratch), scratch)


class _Begun(NamedTuple):
    """What a run begins with, anew or from a checkpoint."""

    scene: Scene
    schedule: Schedule
    store: Store
    saved: Saved | None = None
    checkpoint: Path | None = None  # the one that was whole,
    kept: Kept | None = None  # and where it has the rows


def _fresh(scene: Scene, config: Config, store: Store | None, emit: Emit, ground: _Ground, ranks: Ranks) -> _Begun:
    if store is None:
        store = initial_store(
            scene,
            config,
            _warner(emit),
            reporter(emit),
            scratch=ground.scratch,
            make=ground.room.empty,
            bucket_rows=ground.room.bucket_rows,
            share=(ranks.rank, ranks.world),
        )
    return _Begun(scene, Schedule.first(config, scene.scale, ranks.total(store.rows)), store)


def _gone_on(
    scene: Scene, config: Config, folder: Path, checkpoint: Path, emit: Emit, ground: _Ground, ranks: Ranks
) -> _Begun:
    """The scene is as the run has it: with the views held out that it began with, and lengths as they were."""
    checkpoint, saved, store, kept = load_saved(checkpoint, emit, ground.room, ranks)

    def begun() -> _Begun:
        for text in config_changes(saved.config, config):
            _warner(emit)(text)
        mine = dataclasses.replace(with_split(scene, split), scale=saved.scene_scale)
        schedule = Schedule.resumed(config, mine.scale, saved.progress, store, rows, checkpoint)
        return _Begun(mine, schedule, store, saved, checkpoint, kept)

    with ExitStack() as unless_begun:
        unless_begun.enter_context(closing(store))
        split = ranks.of_first(together(ranks, lambda: read_split(folder, saved.config) if ranks.first else None))
        rows = ranks.total(store.rows)
        found = together(ranks, begun)
        unless_begun.pop_all()
    return found


def _assembled(
    begun: _Begun,
    ground: _Ground,
    images: ImageCache,
    config: Config,
    folder: Path,
    emit: Emit,
    ranks: Ranks,
    stack: ExitStack,
) -> Run:
    """The parts of a run, in the order in which they need each other; `stack` closes them in the other one."""
    scene, schedule, saved = begun.scene, begun.schedule, begun.saved
    photos = Photos(scene, images, config.strict, _warner(emit))
    exposures = (
        begin_exposures(scene, config, emit)
        if saved is None
        else resume_exposures(scene, config, saved.exposures, emit)
    )
    strategy = choose_strategy(config, scene.scale, [scene.views[view].camera for view in scene.train])
    schedule.foresee(strategy.due)
    residence = _residence(begun, ground, config, emit, ranks)
    growth = Growth(schedule, residence, strategy, emit)
    batches = Batches(schedule, residence, scene.train, photos, growth)
    stack.enter_context(closing(batches))
    stack.enter_context(closing(residence))  # first of all: a plan may wait for the view that was under way
    totals, trace = saved.totals if saved else Totals(), Path(config.trace) if config.trace else None
    accounts = Accounts(schedule, residence, photos, totals, emit, trace)
    parts = scene, photos, schedule, residence, exposures, growth.counts
    views = Views(*parts) if ranks.alone else SharedViews(*parts)
    stack.enter_context(closing(views))
    evaluation = Evaluation(scene, photos, schedule, residence, views, folder, emit)
    saver = Saver(folder / "checkpoints", schedule, residence, exposures, accounts, scene.scale, emit)
    if saved is not None:
        saver.goes_on_from(saved.run, begun.checkpoint, begun.kept)
    files = RunFiles(folder, scene, schedule, residence, accounts, evaluation, emit)
    shared = in_words(ranks, residence.own_rows, residence.budgets())
    for line in [*[strategy.reason] * bool(strategy.reason), *shared, *_first_lines(residence, batches, schedule)]:
        emit(Message(line))
    return Run(
        scene, schedule, photos, residence, batches, views, exposures, growth, evaluation, accounts, saver, files
    )  # fmt: skip


def _residence(begun: _Begun, ground: _Ground, config: Config, emit: Emit, ranks: Ranks) -> Residence:
    """Where the rows of a run live; one that begins finds out, and says, how many of them no training view sees."""
    scene, schedule, store = begun.scene, begun.schedule, begun.store
    cameras = [view.camera for view in scene.views]
    unseen = np.ones(store.places, bool) if begun.saved is None else None
    residence = Residence(
        store, ground.device, ground.rasterizer, cameras, config, schedule, emit, ground.memory, ground.scratch, unseen,
        scene.train, ranks,
    )  # fmt: skip
    if unseen is not None and (nobodys := ranks.total(int(unseen.sum()))):
        count = f"{nobodys:,} of {residence.rows:,} Gaussians"
        _warner(emit)(f"{count} are seen by no training view: training does not change them")
    return residence


def _warner(emit: Emit) -> Callable[[str], None]:
    return lambda text: emit(Message(text, "warning"))


def _first_lines(residence: Residence, batches: Batches, schedule: Schedule) -> list[str]:
    """What the run needs and what its first batch moves, before step 0. The plan is that batch's own."""
    lines = [residence.budget.reason] * bool(residence.budget.reason)
    if schedule.over:
        return [*lines, residence.placement.reason]
    batches.request(schedule.image, NO_MARGIN)
    planned = batches.settled()
    assert planned is not None, "it was asked for"
    columns = colour_columns(sh_degree_at(schedule.config, schedule.image))
    resident, bus = residence.tiers.resident_mask, schedule.config.colour_bus
    text = short_plan(residence.placement, planned.plan, resident, columns, *residence.budgets(), bus)
    return [*lines, *text.splitlines()]
