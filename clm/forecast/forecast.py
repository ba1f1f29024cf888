"""What a run would need, where its rows would live, what it would move and how fast it would be: known before step 0.

Starts nothing, reads no photo. Rows of the scene's own points stand for the Gaussians of a larger model: plans are made
on them, counts are scaled. So the answer for a billion rows takes as long as for ten thousand, and allocates as little.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from clm.config import Config
from clm.device.budget import DeviceBudget
from clm.errors import ClmError, ResourceError
from clm.forecast.budgets import Budgets, scratch_folder
from clm.forecast.first_rows import count_first_rows, first_rows
from clm.forecast.machine import Machine
from clm.forecast.measure import THIS, Sizes, measure_this
from clm.forecast.paging import Paging, SeenPages, page_batches
from clm.forecast.ranks import Party, RankTimeline, Sharing, plan_party, simulate_party
from clm.forecast.simulate import Timeline, simulate
from clm.kernels.rows import colour_columns
from clm.plan.batch import batch_views, plan_batch
from clm.plan.budget import (
    AUTO,
    TRAVELLING_BYTES,
    WRITING_BYTES,
    arena_bytes,
    grown_pages,
    growth_bytes,
    lanes_bytes,
    page_row_bytes,
    scratch_bytes,
    scratch_room,
    staging_bytes,
    store_bytes,
    store_row_bytes,
)
from clm.plan.placement import (
    Placement,
    choose_placement,
    fewest_slots,
    no_more,
)
from clm.plan.residency import Plan, largest_turn, views_under_way
from clm.plan.sightings import Sightings, all_visible_sets, arena_needs, resident_blocks
from clm.plan.visibility import NO_MARGIN
from clm.render import CpuRasterizer
from clm.render.temporaries import HostWorkspace, Temporaries
from clm.scene import Scene
from clm.store.layout import PAGE_ROWS
from clm.store.store import Store
from clm.units import format_bytes, size_flag

SAMPLE_ROWS = 500_000  # more points than these are thinned out: plans of 500 k rows take milliseconds
PLANNED_TURNS = 256  # real plans are made for about so many turns, each a view or a piece of one
CPU_PROGRAM, _GPU_PROGRAM = 116 << 20, 1 << 30  # interpreter and libraries before the first row; with torch: assumed
_MOST_PIECES = 16  # of a view that are planned as they are
LOOPBACK_GB_S = 0.8  # between ranks of one machine over gloo, measured with 10 to 100 MB a message


@dataclass(frozen=True, eq=False)
class Forecast:
    """Everything that is known before step 0. `refused` says why there is no placement; then nothing is predicted."""

    scene: Scene
    config: Config
    gaussians: int
    pages: int  # that they lie in
    scale: float  # Gaussians per row of the plans
    largest_view: int  # Gaussians
    beside_arena: int  # device bytes that its largest turn takes besides, where it is placed: temporaries, lanes
    budgets: Budgets
    placement: Placement | None
    pieces: int  # of the largest view, where it is placed
    refused: ResourceError | None
    plans: tuple[Plan, ...]  # of the first batches, in rows of the points
    resident: np.ndarray | None  # rows of the plans that live on the device [rows] bool; None: refused
    paging: Paging | None  # what the disk does for the plans, where rows are on one
    store: Store  # the rows of the plans
    machine: Machine | None = None
    timeline: Timeline | None = None
    ranks: int = 1  # several share the run: budgets, placement and views are those of each,
    party: Party | None = None  # and these are their plans, instead of `plans`
    rank_timeline: RankTimeline | None = None  # ... on the machine; None where rows are on disk

    def on(self, machine: Machine) -> Forecast:
        """With the timeline on a machine, where there is a placement. ClmError where rows are on a disk of unknown speed."""
        if self.placement is None:
            return replace(self, machine=machine)
        if self.party is not None:
            columns, moments = colour_columns(self.config.sh_degree), self.config.moments
            bus = self.config.colour_bus
            on_disk = self.placement.offload == "disk"
            timeline = (
                None
                if on_disk
                else simulate_party(self.party, machine, columns=columns, moments=moments, colour_bus=bus)
            )
            return replace(self, machine=machine, rank_timeline=timeline)
        if self.paging is not None:
            _check_disk(machine)
        assert self.resident is not None
        whole = simulate(
            self.plans,
            machine,
            [view.camera.width * view.camera.height for view in self.scene.views],
            columns=colour_columns(self.config.sh_degree),
            resident=self.resident,
            scale=self.scale,
            moments=self.config.moments,
            colour_bus=self.config.colour_bus,
            paging=self.paging,
        )
        return replace(self, machine=machine, timeline=whole)

    def measured(self) -> Machine:
        """This machine, as the run would find it now."""
        budgets, config = self.budgets, self.config
        return measure_this(
            self.store,
            [self.scene.views[k].camera for k in self.scene.train],
            Sizes(budgets.device.bytes, budgets.host.bytes, budgets.disk.bytes),
            gaussians=self.gaussians,
            batch_size=config.batch_size,
            sh_degree=config.sh_degree,
            scratch=scratch_folder(config) if self.paging is not None else None,
        )


def make_forecast(scene: Scene, config: Config, budgets: Budgets, machine: Machine | None, ranks: int = 1) -> Forecast:
    """Plan a run on `scene` (photos not needed) as training would; machine None: this one, measured if there is a run. ranks: that
    share the run; budgets are those of each."""
    forecast = foresee(scene, config, budgets, shared=machine is None or machine.on_cpu, ranks=ranks)
    if machine is None and forecast.placement is not None:
        machine = replace(forecast.measured(), ranks_per_host=float(ranks), link_gb_s=LOOPBACK_GB_S)
    return forecast if machine is None else forecast.on(machine)


def foresee(scene: Scene, config: Config, budgets: Budgets, *, shared: bool, ranks: int = 1) -> Forecast:
    """The part of a forecast that no rate changes. shared: device memory is the host's. ranks: that share the run.

    Memory: that of `SAMPLE_ROWS` rows, however many Gaussians are asked for, beside what a run takes to order its first ones."""
    points = count_first_rows(scene, config)
    gaussians = config.max_gaussians or points
    own = -(-gaussians // ranks)  # of each rank
    pages = grown_pages(gaussians) if gaussians > points else -(-gaussians // PAGE_ROWS)
    rows = first_rows(scene, config, SAMPLE_ROWS, _may_be_on_disk(config, own, budgets))
    store, share = rows.store, gaussians / rows.rows
    scale = gaussians / store.rows
    cameras = [view.camera for view in scene.views]
    # Pages of the larger model hold fewer of the points; finer ones than these change little and cost time.
    page_rows = max(min(store.page_rows, 16), int(store.page_rows / share))
    fill = np.minimum(page_rows, rows.rows - np.arange(0, rows.rows, page_rows))
    piece_rows = max(1, min(page_rows, int(store.page_rows / share)))  # of what is read: a page, or many of one row
    seen_pages = SeenPages(rows.rows, piece_rows, rows.step)
    sharing = Sharing(rows.rows, ranks)
    seen = Sightings.of(seen_pages.marking(sharing.noting(all_visible_sets(rows, cameras))), fill, page_rows)
    largest = math.ceil(sharing.largest_view * share)  # of the rows of a rank
    whole = math.ceil(seen.largest_view * share)  # of all rows: their splats meet where the view is rasterised
    usual = math.ceil(seen.usual_union(config.batch_size) * share / ranks)
    known = (scene, config, gaussians, pages, scale, largest)
    refused: ResourceError | None = None
    travelling = TRAVELLING_BYTES * views_under_way(ranks) * largest if ranks > 1 else 0
    beside_frames = _beside_frames(scene, config, own, whole, budgets, shared) + travelling * shared
    for in_bands in (False,) if shared else (False, True):  # as a run does: a few tile rows at a time, if need be
        beside: Callable[[int], int] = no_more
        if not shared:
            beside = partial(_beside_arena, scene, config, whole, in_bands, travelling)
        try:
            placement = _place(config, own, -(-pages // ranks), largest, usual, beside, beside_frames, budgets, shared)
            break
        except ResourceError as error:
            refused = error
    else:
        return Forecast(*known, beside(largest), budgets, None, 1, refused, (), None, None, store, ranks=ranks)
    turn = largest_turn(largest, placement.arena_slots)
    pieces = -(-largest // max(1, turn))
    # Rounding cuts no view that is whole; more pieces than a few are planned as so many larger ones.
    sampled = Sharing(store.rows, ranks)
    planned = sharing.largest_view
    if rows.step > 1:
        planned = max(sampled.largest_view for _ in sampled.noting(all_visible_sets(store, cameras)))
    least = planned if pieces == 1 else max(1, 2 * planned // _MOST_PIECES)
    capacity = max(least, math.floor(placement.arena_slots / scale))
    blocks = resident_blocks(seen, math.floor(ranks * placement.resident_rows / share))
    resident = blocks[np.arange(store.rows) * rows.step // page_rows]
    if ranks > 1:
        batches = [
            (plan.views, [turn.view_rows for turn in plan.turns if turn.renders])
            for plan in _first_plans(scene, config, store, store.rows)
        ]
        rasterizer = CpuRasterizer(antialiased=config.antialias, absgrad=config.absgrad)
        party = plan_party(store, cameras, batches, sampled, resident, capacity, scale, rasterizer, config.sh_degree)
        return Forecast(
            *known, beside(turn), budgets, placement, pieces, None, (), resident, None, store, ranks=ranks, party=party
        )
    plans = _first_plans(scene, config, store, capacity)
    paging = None
    if placement.offload == "disk":
        images, epoch = sum(len(plan.views) for plan in plans), len(scene.train)
        paging = page_batches(
            plans, seen_pages,
            # As if an epoch had gone before: the first batches' own pages are then as old as others'.
            batch_views(scene.train, config.seed + 1, 0, epoch), batch_views(scene.train, config.seed, images, epoch),
            frames=max(1, placement.frames * seen_pages.pages // pages),
            row_bytes=share * page_row_bytes(config.moments),
            resident=blocks[np.arange(seen_pages.pages) * piece_rows // page_rows],
        )  # fmt: skip
    return Forecast(*known, beside(turn), budgets, placement, pieces, None, plans, resident, paging, store)


def _may_be_on_disk(config: Config, gaussians: int, budgets: Budgets) -> bool:
    in_ram = store_bytes(gaussians, store_row_bytes(config.moments)) <= budgets.host.bytes
    return config.offload == "disk" or (config.offload == "auto" and not in_ram)


def _check_disk(machine: Machine) -> None:
    for key in ("disk_read_gb_s", "disk_write_gb_s"):
        if not getattr(machine, key):
            fix = f"Add `{key}` to its file, in 10^9 bytes per second, or pass `--offload host`."
            if machine.name == THIS:
                fix = "Pass `--scratch DIR` on a disk with 1 GiB free."
            raise ClmError(f"How fast the disk of {machine.name} is, is not known (`{key}`).", fix)


def _beside_arena(scene: Scene, config: Config, largest: int, in_bands: bool, travelling: int, turn_rows: int) -> int:
    """Device bytes beside arena and residents on a GPU, as a run counts them before it has measured any, where turns have
    up to `turn_rows` rows. in_bands: rasterising one tile row at a time; travelling: bytes of splats between ranks."""
    pixels = max(view.camera.width * view.camera.height for view in scene.views)
    bytes_of = Temporaries().least_bytes if in_bands else Temporaries().temporary_bytes
    return bytes_of(largest, pixels, config.sh_degree, turn_rows) + lanes_bytes(turn_rows) + travelling


def _beside_frames(scene: Scene, config: Config, gaussians: int, largest: int, budgets: Budgets, shared: bool) -> int:
    """Bytes of the host that a run on disk has for neither rows nor frames: the program, photos, staging, rebuilds, and on
    the CPU the rasteriser's workspace."""
    pixels = max(view.camera.width * view.camera.height for view in scene.views)
    program = CPU_PROGRAM if shared else _GPU_PROGRAM
    photos = min(budgets.photos.bytes, sum(view.nbytes for view in scene.views))
    if config.host_memory != AUTO:
        photos = min(photos, max(0, budgets.host.bytes - program) // 4)
    growth = growth_bytes(gaussians, config.max_gaussians) if config.densify_until else 0
    workspace = HostWorkspace().bytes(largest, pixels) if shared else 0
    return program + photos + WRITING_BYTES + staging_bytes(largest, shared) + growth + workspace


def _place(
    config: Config,
    gaussians: int,
    pages: int,
    largest: int,
    usual: int,
    beside: Callable[[int], int],
    beside_frames: int,
    budgets: Budgets,
    shared: bool,
) -> Placement:
    """As a run places its store; a refusal names every budget that is too small. shared: device memory is the host's."""
    needed, usual = arena_needs(gaussians, largest, usual, config.batch_size)
    device, host = budgets.device.bytes, budgets.host.bytes
    of_the_host, disk_free = budgets.device.of_the_host, budgets.disk.bytes
    if of_the_host:
        device = DeviceBudget(None).beside(gaussians, config.moments, host, config.offload)
    try:
        return choose_placement(
            gaussians,
            needed,
            largest,
            device,
            host,
            config.offload,
            usual_union=usual,
            moments=config.moments,
            beside=beside,
            pages=pages,
            shared_memory=shared,
            host_holds_device=of_the_host,
            beside_frames=beside_frames,
            disk_free=disk_free,
        )
    except ResourceError:
        fewest = fewest_slots(largest)
        least = arena_bytes(fewest) + beside(largest_turn(largest, fewest))
        store = store_bytes(gaussians, store_row_bytes(config.moments))
        to_disk = config.offload == "auto" and scratch_bytes(pages, config.moments) <= scratch_room(disk_free)
        if config.offload in ("none", "disk") or to_disk or least <= device or store <= host:
            raise
    raise ResourceError(
        f"{gaussians:,} Gaussians need {format_bytes(store)} of host memory, but have "
        f"{format_bytes(host)}, and the largest view, even in pieces, needs {format_bytes(least)} on the device, but its "
        f"budget is {format_bytes(device)}.",
        f"Use `--host-memory {size_flag(store)}` with `--gpu-memory {size_flag(least)}`.",
    )


def _first_plans(scene: Scene, config: Config, store: Store, capacity: int) -> tuple[Plan, ...]:
    """Plans of the run's first batches, in its own data order."""
    plans: list[Plan] = []
    cameras, turns, first = [view.camera for view in scene.views], 0, 0
    while first < config.iterations and (len(plans) < 2 or turns < PLANNED_TURNS):
        count = min(config.batch_size, config.iterations - first)
        views = batch_views(scene.train, config.seed, first, count)
        plans.append(plan_batch(store, cameras, views, capacity, NO_MARGIN, config.seed).plan)
        turns, first = turns + len(plans[-1].turns), first + count
    return tuple(plans)
