"""Where rows live: everything on the device; the store on the host, with the blocks that most views see on the device; or
the store on disk, with the pages that are needed next on the host.

Nothing here allocates: a scene that cannot fit is refused before step 0, with what it needs, what there is, and the ways
out that really help.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace

from clm.errors import ClmError, ResourceError
from clm.plan.budget import (
    CULL_BYTES,
    GROWN_FILL,
    GROWTH_ROW_BYTES,
    MOST_GROWN_ROWS,
    OFFLOADS,
    PAGE_TABLE_BYTES,
    arena_bytes,
    frame_bytes,
    grown_pages,
    in_core_bytes,
    page_file_bytes,
    paged_bytes,
    resident_row_bytes,
    scratch_bytes,
    scratch_free,
    scratch_room,
    slots_for,
    store_bytes,
    store_row_bytes,
)
from clm.plan.refusals import (
    device_too_small,
    scratch_way,
    too_large_for_disk,
    too_large_for_frames,
    too_large_for_host,
    too_large_in_core,
)
from clm.plan.residency import largest_turn
from clm.store.frames import LEAST_FRAMES, THREADS
from clm.store.layout import PAGE_ROWS
from clm.units import format_bytes


@dataclass(frozen=True)
class Placement:
    """Where rows live. `none`: all of them on the device; `host`: on the host; `disk`: in pages of a scratch file, of which
    the host holds `frames`. Of the last two, `resident_rows` are on the device instead."""

    offload: str  # "none", "host" or "disk"
    arena_slots: int
    resident_rows: int  # at most; whole blocks, those that most views see first
    reason: str  # one sentence for the user
    device_bytes: int
    host_bytes: int
    frames: int  # pages that host memory holds: all of them, but for "disk"
    disk_bytes: int  # of the scratch file


LEAST_SLOTS = 1024  # of an arena: half of them hold a piece of a view, the other half the next one


def fewest_slots(largest_view: int) -> int:
    """Slots of the smallest arena that is ever taken: the largest view whole, or two pieces of it."""
    return min(largest_view, LEAST_SLOTS)


def no_more(turn_rows: int) -> int:
    """Nothing beside arena and residents, as on a device that is the host."""
    return 0


def choose_placement(
    rows: int,
    arena_rows_needed: int,
    largest_view: int,
    device_budget: int,
    host_budget: int,
    offload: str = "auto",
    *,
    usual_union: int | None = None,
    moments: str = "f32",
    beside: Callable[[int], int] = no_more,
    page_rows: int = PAGE_ROWS,
    pages: int | None = None,
    shared_memory: bool = True,
    host_holds_device: bool = False,
    host_beside: int = 0,
    beside_frames: int = 0,
    disk_free: int = 0,
) -> Placement:
    """Where rows live, how many slots the arena gets, how many pages the host holds, and why.

    rows: Gaussians to plan for; arena_rows_needed: slots that any batch can use; largest_view: rows of the largest visible
    set; usual_union: rows of most batches' union; budgets in bytes; beside(n): bytes of the device beside arena and resident
    rows where a turn has up to n rows, growing with n; pages: that the rows lie in (None: full ones).

    `auto` takes `none` if all rows and an arena for the largest view fit into the device budget, else `host` if they fit into
    the host's, else `disk`. The arena gets what the budget leaves, at most what a batch can use; where that is less than the
    largest view, such views go in pieces. Under `auto` and `disk` arena and resident rows compete: the arena gets no more
    than the usual union, and the rest goes to resident rows. `none` and `host` insist on all and on none.
    shared_memory: device memory is the host's (the CPU), so resident rows are not kept a second time on the host, and with
    `disk` there are none: the arena gets a quarter of what there is for two of the largest views, or half of it for one of them,
    frames the rest.
    host_holds_device: the host's budget is to hold all that the device has, too.
    host_beside: bytes of the host's budget that are not for rows, nor for what the device counts; beside_frames: more of them,
    where frames take all that is left. disk_free: bytes free where the scratch file would be; 0: nowhere.

    Raises ResourceError (needed, available, ways out) when nothing fits, not even with views in pieces; ClmError for an
    unknown `offload`.
    """
    if offload not in OFFLOADS:
        raise ClmError(f"Unknown --offload {offload!r}.", f"Choose one of {', '.join(OFFLOADS)}.")
    case = _Case(
        rows, -(-rows // page_rows) if pages is None else pages, page_rows, max(arena_rows_needed, largest_view),
        largest_view, arena_rows_needed if usual_union is None else usual_union, moments, device_budget, host_budget,
        beside, shared_memory, host_holds_device, host_beside, beside_frames, disk_free,
    )  # fmt: skip
    if offload == "disk":
        return _on_disk(case, "it was asked for")
    on_host, smallest = store_bytes(rows, store_row_bytes(moments)) + host_beside, case.smallest
    whole_views = in_core_bytes(rows, largest_view, case.row_bytes) + beside(largest_view)
    if host_holds_device and on_host + smallest > host_budget:
        needed, in_core, not_rows = on_host + smallest, None, host_beside + smallest
    else:
        placement = _in_memory(case, offload, whole_views)
        if placement.host_bytes <= host_budget:
            return placement
        # A device with memory of its own leaves a copy of every row on the host.
        instead = shared_memory and offload != "host" and placement.offload != "none"
        in_core = whole_views if instead else None
        needed, not_rows = placement.host_bytes, host_beside
    if offload == "auto" and case.file_bytes <= scratch_room(disk_free):
        state, there = format_bytes(needed), format_bytes(host_budget)
        return _on_disk(case, f"{state} of state exceeds the {there} budget of host memory")
    way = _disk_way(case, offload)
    on_disk = case.rows_on_disk if way and offload == "auto" else 0
    raise too_large_for_host(rows, needed, in_core, host_budget, not_rows, way, on_disk)


@dataclass(frozen=True)
class _Case:
    """What is to be placed, and what there is: the arguments of `choose_placement`."""

    rows: int
    pages: int
    page_rows: int
    wanted: int  # slots of the largest arena that is of use
    largest_view: int
    usual_union: int
    moments: str
    device_budget: int
    host_budget: int
    beside: Callable[[int], int]
    shared_memory: bool
    host_holds_device: bool
    host_beside: int
    beside_frames: int
    disk_free: int

    @property
    def row_bytes(self) -> int:
        return resident_row_bytes(self.moments, self.shared_memory)

    @property
    def smallest(self) -> int:
        """Bytes of the smallest arena and of what goes with it."""
        return self.arena(fewest_slots(self.largest_view))

    @property
    def file_bytes(self) -> int:
        return scratch_bytes(self.pages, self.moments, self.page_rows)

    @property
    def rows_on_disk(self) -> int:
        """How many rows the scratch file has room for, less a part for views that see a larger share of fewer; 0: for none."""
        room = scratch_room(self.disk_free) * 9 // 10
        slots = room // page_file_bytes(self.page_rows, self.moments)
        full = self.pages <= -(-self.rows // self.page_rows)
        return slots * (self.page_rows if full else int(GROWN_FILL * self.page_rows))

    def arena(self, slots: int) -> int:
        """Bytes of an arena and of what goes with it."""
        return arena_bytes(slots) + self.beside(largest_turn(self.largest_view, slots))

    def slots(self, budget: int) -> int:
        """Slots of the largest arena, up to those wanted, that fits with what it needs beside it."""
        whole = slots_for(budget - self.beside(self.largest_view))
        if whole >= self.largest_view:
            return min(self.wanted, whole)
        return max(0, bisect_right(range(self.largest_view), budget, key=self.arena) - 1)

    def beside_residents(self, budget: int) -> tuple[int, int]:
        """Slots of the arena, and resident rows in whole blocks, that share a budget."""
        slots = min(self.slots(budget), max(self.largest_view, self.usual_union))
        return slots, (budget - self.arena(slots)) // self.row_bytes // self.page_rows * self.page_rows


def _in_memory(case: _Case, offload: str, whole_views: int) -> Placement:
    """Rows on device and host, whatever the host's budget is. whole_views: device bytes of all rows and the largest view."""
    rows, budget = case.rows, case.device_budget
    fits = whole_views <= budget
    if offload == "none" and rows * case.row_bytes + case.smallest > budget:
        raise too_large_in_core(rows, case.row_bytes, case.smallest, budget)
    if case.smallest > budget:
        raise device_too_small(case.largest_view, case.smallest, budget)
    everything = offload == "none" or (offload == "auto" and fits)
    resident = rows if everything else 0
    slots = case.slots(budget - resident * case.row_bytes)
    if offload == "auto" and not fits:
        slots, resident = case.beside_residents(budget)
    host = store_bytes(rows, store_row_bytes(case.moments)) + case.host_beside
    host -= resident * case.row_bytes if case.shared_memory else 0
    device = resident * case.row_bytes + case.arena(slots)
    reason = _reason(offload, everything, whole_views, device, budget, resident / max(rows, 1))
    return Placement("none" if everything else "host", slots, resident, reason, device, host, case.pages, 0)


def _on_disk(case: _Case, because: str) -> Placement:
    """Pages on disk, those that fit in frames of the host. because: why, for the user."""
    frame, fewest = frame_bytes(case.page_rows, case.moments), LEAST_FRAMES
    kept = paged_bytes(case.rows, case.pages) + case.host_beside + case.beside_frames
    kept += THREADS * page_file_bytes(case.page_rows, case.moments)  # a buffer each
    least = kept + fewest * frame + (case.smallest if case.shared_memory else 0)
    if least > case.host_budget:
        disk_too_small = case.file_bytes > scratch_room(case.disk_free)
        with_disk = scratch_way(case.file_bytes) if disk_too_small else ""
        raise too_large_for_frames(case.rows, case.pages, least, case.host_budget, with_disk)
    device = case.device_budget
    if case.shared_memory:
        left = case.host_budget - kept - fewest * frame
        two_views, whole_view = case.arena(2 * case.largest_view), case.arena(case.largest_view)
        device = min(device, max(case.smallest, min(left // 4, two_views), min(left // 2, whole_view)))
    if case.smallest > device:
        raise device_too_small(case.largest_view, case.smallest, device)
    if case.file_bytes > scratch_room(case.disk_free):
        in_memory = store_bytes(case.rows, store_row_bytes(case.moments)) + case.host_beside + case.smallest
        raise too_large_for_disk(case.rows, case.file_bytes, case.disk_free, in_memory, case.rows_on_disk)
    slots, resident = case.beside_residents(device)
    resident = 0 if case.shared_memory else min(case.rows, resident)
    arena = case.arena(slots)
    room = case.host_budget - kept - (arena if case.shared_memory else 0)
    frames = min(max(case.pages, fewest), room // frame)
    share = min(1.0, frames / max(1, case.pages))
    reason = f"offload: disk, because {because}; {100 * share:.0f}% of the pages fit there at a time"
    reason += _residents(resident / max(case.rows, 1))
    host, device = kept + frames * frame, resident * case.row_bytes + arena
    return Placement("disk", slots, resident, reason, device, host, frames, case.file_bytes)


def _disk_way(case: _Case, offload: str) -> str:
    """What makes the disk tier a way out of a full host; nothing where none does."""
    try:
        _on_disk(replace(case, disk_free=scratch_free(case.file_bytes)), "")
    except ResourceError:
        return ""
    if case.file_bytes > scratch_room(case.disk_free):
        way = scratch_way(case.file_bytes)
        return way if offload == "auto" else f"`--offload disk` with {way}"
    return "`--offload disk`"


def frames_to_grow(host_left: int, rows: int, moments: str, page_rows: int = PAGE_ROWS) -> int:
    """Pages that `host_left` bytes of the host hold beside what it keeps of so many rows, which are about to come."""
    kept = paged_bytes(rows, grown_pages(rows, page_rows)) + GROWTH_ROW_BYTES * rows
    kept += THREADS * page_file_bytes(page_rows, moments)
    return max(LEAST_FRAMES, (host_left - kept) // frame_bytes(page_rows, moments))


def most_rows_on_disk(host_left: int, disk_free: int, *, moments: str, page_rows: int = PAGE_ROWS) -> int:
    """How many rows a scene on disk can grow to: what host memory keeps of each beside the fewest frames, a rebuild's own
    included, and its place in a page of the scratch file.

    host_left: bytes of the host for rows; disk_free: bytes free for the scratch file, with those that it has already."""
    frames = LEAST_FRAMES * frame_bytes(page_rows, moments) + THREADS * page_file_bytes(page_rows, moments)
    in_pages = GROWN_FILL * page_rows  # rows of a page
    on_host = (host_left - frames - PAGE_TABLE_BYTES) / (CULL_BYTES + GROWTH_ROW_BYTES + PAGE_TABLE_BYTES / in_pages)
    on_disk = scratch_room(disk_free) // page_file_bytes(page_rows, moments) * in_pages
    return max(0, int(min(on_host, on_disk, MOST_GROWN_ROWS)))


def _reason(offload: str, everything: bool, least: int, device: int, budget: int, share: float) -> str:
    """One sentence that says why."""
    if everything:
        return f"offload: none, because {format_bytes(device)} of state fits into the {format_bytes(budget)} budget"
    if offload == "host":
        return "offload: host, because it was asked for"
    reason = f"offload: host, because {format_bytes(least)} of state exceeds the {format_bytes(budget)} budget"
    return reason + _residents(share)


def _residents(share: float) -> str:
    return f"; the {100 * share:.0f}% of Gaussians that most views see stay on the device" if share >= 0.005 else ""
