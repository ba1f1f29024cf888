"""Where the rows of a run live: store, tiers, arena and lanes, placed within the budgets, moved when the rows change.

Invariants: between batches the lanes are idle; `whole` and `rebuilding` are the only ways to the rows, and what they hand out
is the store with every row in it, wherever it lives meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from clm.camera import Camera
from clm.config import Config
from clm.device.budget import DeviceBudget, find_device_budget
from clm.device.interface import Arena, Device
from clm.errors import ResourceError
from clm.plan.batch import Planned, plan_batch
from clm.plan.budget import arena_bytes, growth_bytes, in_core_bytes
from clm.plan.placement import LEAST_SLOTS, Placement, choose_placement
from clm.plan.residency import Plan, largest_turn, rest_of
from clm.plan.sightings import Sightings, arena_needs, resident_blocks, sightings
from clm.plan.visibility import Margin
from clm.ranks import ALONE, Ranks
from clm.render import Rasterizer, Render
from clm.run.balance import balance
from clm.run.budgeted import Budgeted
from clm.run.events import Emit, Message, reporter
from clm.run.host_memory import HostMemory
from clm.run.rebuild import Rebuild
from clm.run.schedule import Schedule
from clm.store.store import Store
from clm.stream.lanes import Lanes
from clm.stream.network import Travelled
from clm.stream.tiers import Tiers
from clm.stream.view import render_view, through_arena

_ARENA_FILL = 0.9  # unions that fill more of the arena call for a larger one: rows also move and swell


class Residence(Budgeted):
    """The rows and everything that holds them. cameras: of all views, which decide how large the arena is."""

    def __init__(
        self,
        store: Store,
        device: Device,
        rasterizer: Rasterizer,
        cameras: list[Camera],
        config: Config,
        schedule: Schedule,
        emit: Emit,
        host_memory: HostMemory,
        scratch: Path,
        unseen_rows: np.ndarray | None = None,
        watching: np.ndarray | None = None,
        ranks: Ranks = ALONE,
    ):
        """scratch: folder of the disk tier. unseen_rows [N] bool: false afterwards for the rows that a view in `watching` [V] may
        see. ranks: that have the other rows. Raises ResourceError where nothing fits."""
        self.device, self.rasterizer, self.cameras, self.ranks = device, rasterizer, cameras, ranks
        self._planning, self.travelled = ranks.lane("plan"), Travelled(ranks.world)
        self._store, self._config, self._schedule, self._emit = store, config, schedule, emit
        self._host_memory, self._scratch = host_memory, scratch
        self.budget: DeviceBudget = find_device_budget(config.gpu_memory, device, self._warn)
        self._pixels = max(camera.width * camera.height for camera in cameras)
        self._in_bands, self._reserved = False, 0
        self._tiers: Tiers | None = None
        self._before_rebuilding: Callable[[], None] = lambda: None
        self._refresh()
        self.rows = ranks.total(store.rows)  # of all ranks
        self.placement, blocks = self._place(unseen_rows, watching)
        self._house()
        self._move_in(blocks, self.placement.arena_slots)

    def _warn(self, text: str) -> None:
        self._emit(Message(text, "warning"))

    @property
    def own_rows(self) -> int:
        """Of this rank."""
        return self._store.rows

    @property
    def on_disk(self) -> bool:
        return self._store.disk is not None

    @property
    def tiers(self) -> Tiers:
        assert self._tiers is not None, "moved in"
        return self._tiers

    @property
    def arena(self) -> Arena:
        return self.tiers.arena

    def held_bytes(self) -> tuple[int, int, int]:
        """Bytes held now: of the device, of the host (without the photos), and what all rows on the device would take."""
        tiers, lanes = self.tiers, self.lanes
        device = tiers.device_bytes + lanes.device_staging_bytes + self.rasterizer.peak_temporaries
        in_core = in_core_bytes(self._store.rows, self._store.rows, tiers.resident_row_bytes)
        return device, tiers.host_bytes + lanes.staging_bytes + self.rasterizer.host_bytes, in_core

    def see_held(self) -> int:
        """Bytes that the device's allocator keeps; what that is beyond what was counted is left free by placements to come."""
        held = self.device.held()
        self._reserved = max(self._reserved, held - (self.placement.device_bytes - self._reserved_by_placement))
        return held

    # ---- the rows, between batches ----

    @contextmanager
    def whole(self) -> Iterator[Store]:
        """The store with every row of this rank as its last update left it, to be read: checkpoints, PLY."""
        self.lanes.publish_entries()
        self.tiers.write_back()
        yield self._store

    @contextmanager
    def rebuilding(self) -> Iterator[Rebuild]:
        """The store to be changed: rows may come, go and change places. Where the placement no longer holds for them, they are
        placed anew afterwards; ResourceError, with the rows as they were changed, when they fit nowhere."""
        self._before_rebuilding()
        with self.whole() as store:
            yield Rebuild(store, self._schedule.next_step(), self.row_limit, self._make_room, self.ranks)
        balance(self._store, self.ranks, self._make_room)
        self.rows = self.ranks.total(self._store.rows)
        if self.ranks.any(not self._placement_holds()):
            self._replace()  # no write-back: what the device holds is of the rows as they were
        else:
            self.tiers.update()  # also where no page changed: statistics were cleared

    def _placement_holds(self) -> bool:
        """Whether rows may stay where they are: about as many as when they were placed, within the budget, and batches in an
        arena that holds them (or that the budget cannot make larger)."""
        rows, slots = self._store.rows, self.arena.slots
        if (
            self.on_disk != (self.placement.offload == "disk")  # it had to go there to grow
            or not 0.75 * self._placed_rows <= rows <= 1.25 * self._placed_rows
            or (self._short_of_slots and self._more_slots)
        ):
            return False
        resident = rows if self.placement.offload == "none" else self.placement.resident_rows
        row_bytes = self.tiers.resident_row_bytes
        largest = self._seen.largest_view
        needed = in_core_bytes(resident, slots, row_bytes) + self._temporaries(
            self._whole_view, largest_turn(largest, slots)
        )
        return needed <= self.budgets()[0] and self.tiers.rows_of_resident_pages <= resident

    def before_rebuilding(self, forget: Callable[[], None]) -> None:
        """Have `forget` called before rows change places: whoever knows where they are."""
        self._before_rebuilding = forget

    def renderer(self) -> Callable[..., Render]:
        """Renders any camera from the rows as they are now."""
        self.lanes.publish_entries()
        return partial(
            render_view,
            self.lanes.fetch,
            self._schedule.next_step(),
            self.rasterizer,
            sh_degree=self._schedule.sh_degree,
            background=self._schedule.still_background,
        )

    def through_arena(self, projector: Rasterizer, camera: Camera) -> None:
        """Project this rank's rows that a camera sees, as they are now."""
        self.lanes.publish_entries()
        step, degree = self._schedule.next_step(), self._schedule.sh_degree
        through_arena(self.lanes.fetch, step, projector, camera, degree, lambda: True)

    def plan(self, views: list[int], margin: Margin, *, ordered: bool) -> Planned:
        """Cull, order and plan a batch. From any thread."""
        self.lanes.publish_entries()
        planned = plan_batch(
            self._store, self.cameras, views, self.arena.slots, margin, self._config.seed, ordered=ordered,
            ranks=self.ranks.world, totals=self._planning.totals,
        )  # fmt: skip
        if len(planned.plan.union_rows) > _ARENA_FILL * self.arena.slots:
            self._short_of_slots = True
        self._pages_of_views.update(zip(planned.views, planned.pages, strict=False))
        return planned

    def pages_of(self, views: list[int]) -> list[np.ndarray]:
        """Pages [A] i32 that each of some views uses, as far as that is known."""
        return [self._pages_of_views[view] for view in views]

    # ---- placement ----

    def _replace(self) -> None:
        before = self.placement
        self.placement, blocks = self._place()
        self.lanes.close()
        del self.lanes
        self._tiers = None  # the old memory is free before new memory is taken
        self.device.release_unused()
        try:
            self._house()
            self._move_in(blocks, self.placement.arena_slots)
        except ResourceError:
            self._move_in(np.zeros_like(blocks), 0)  # enough for the state to be saved
            raise
        if self.placement.offload != before.offload:
            self._emit(Message(self.placement.reason))

    def shrink_arena(self, plan: Plan, i: int) -> Plan | None:
        """The device has no memory for turn i: give it a quarter of the arena. Returns the plan of the rest of the batch,
        under way in the smaller arena; None: there is no smaller one."""
        slots = self.arena.slots
        smaller = slots * 3 // 4
        if smaller < LEAST_SLOTS // 4:  # 128 KiB: no memory is to be had from an arena like that
            return None
        self.lanes.interrupt(i)
        self.tiers.replace_arena(smaller)
        self._reserved += arena_bytes(slots) - arena_bytes(smaller)  # placements to come leave as much free
        rest = rest_of(plan, i, smaller, self._store.page_rows)
        self.lanes.go_on(rest)
        self._warn(f"out of device memory: the arena goes from {slots:,} to {smaller:,} slots, the view is repeated")
        return rest

    def close(self) -> None:
        self.lanes.close()

    def _refresh(self) -> None:
        """Cull entries and bounds of all rows, as of the step reached; before the first one new rows have theirs."""
        if self._schedule.step:
            self._store.refresh(self._schedule.next_step())
        else:
            self._store.refresh_bounds(np.arange(self._store.pages, dtype=np.int32))

    def _house(self) -> None:
        """Rows lie where the placement says: in host memory, or in pages of which it holds some."""
        if self.placement.offload == "disk":
            self._store.keep_on_disk(self.placement.frames, self._scratch)
        else:
            self._store.keep_in_ram()

    def _move_in(self, blocks: np.ndarray, arena_slots: int) -> None:
        at_once = largest_turn(self._seen.largest_view, arena_slots)
        self._tiers = Tiers(self.device, self._store, blocks, arena_slots, at_once)
        self.lanes = Lanes(self._tiers)

    def _place(
        self, unseen_rows: np.ndarray | None = None, watching: np.ndarray | None = None
    ) -> tuple[Placement, np.ndarray]:
        """Where rows go, and which blocks are resident [blocks] bool."""
        seen = sightings(self._store, self.cameras, reporter(self._emit), watching, unseen_rows)
        self._seen, self._reserved_by_placement, self._in_bands = seen, self._reserved, False
        self._whole_view = int(self.ranks.totals(seen.per_view).max(initial=0))
        try:
            placement = self._placement_of(seen)
        except ResourceError:
            self._in_bands = True
            placement = self._placement_of(seen)  # what it raises names the least that would do
        self._let_lists_take(placement)
        self._pages_of_views = dict(enumerate(seen.pages)) if placement.offload == "disk" else {}
        self._seen = replace(seen, pages=())
        return placement, resident_blocks(seen, placement.resident_rows)

    def _placement_of(self, seen: Sightings) -> Placement:
        store, config = self._store, self._config
        usual = seen.usual_union(config.batch_size)
        needed, usual = arena_needs(store.rows, seen.largest_view, usual, config.batch_size, store.page_rows)
        (device, host), host_beside = self.budgets(), self._host_beside()
        beside = partial(self._temporaries, self._whole_view)
        share = -(-config.max_gaussians // self.ranks.world) if config.max_gaussians else None
        growing = growth_bytes(store.rows, share) * (self._schedule.image < config.densify_until)
        if config.offload == "auto":
            host_beside += growing  # else there is nowhere that rows could go instead
        placement = choose_placement(
            store.rows,
            needed,
            seen.largest_view,
            device,
            host,
            config.offload,
            usual_union=usual,
            beside=beside,
            moments=config.moments,
            page_rows=store.page_rows,
            pages=store.pages,
            shared_memory=self.device.shares_host_memory,
            host_holds_device=self.device.shares_host_memory,
            host_beside=host_beside,
            beside_frames=0 if config.offload == "auto" else growing,
            disk_free=self._disk_free(),
        )
        self._placed_rows, self._short_of_slots = store.rows, False
        self._more_slots = placement.arena_slots >= needed  # else it got what the budget has
        return placement
