"""Where rows live: everything on the device, or the store on the host with the blocks that most views see on the device.

Nothing here allocates: a scene that cannot fit is refused before step 0, with what it needs, what there is, and the ways
out that really help.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

from clm.errors import ClmError, ResourceError
from clm.plan.budget import (
    MOMENT_BYTES,
    OFFLOADS,
    arena_bytes,
    in_core_bytes,
    resident_row_bytes,
    slots_for,
    store_bytes,
    store_row_bytes,
)
from clm.plan.residency import largest_turn
from clm.store.layout import PAGE_ROWS
from clm.units import format_bytes, format_rows, size_flag


@dataclass(frozen=True)
class Placement:
    """Where rows live. `none`: all of them on the device; `host`: on the host, but for `resident_rows` in whole blocks."""

    offload: str  # "none" or "host"
    arena_slots: int
    resident_rows: int  # at most; whole blocks, those that most views see first
    reason: str  # one sentence for the user
    device_bytes: int
    host_bytes: int


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
    shared_memory: bool = True,
    host_beside: int = 0,
) -> Placement:
    """Where rows live, how many slots the arena gets, and why.

    rows: Gaussians to plan for; arena_rows_needed: slots that any batch can use; largest_view: rows of the largest visible
    set; usual_union: rows of most batches' union; budgets in bytes; beside(n): bytes of the device beside arena and resident
    rows where a turn has up to n rows, growing with n. `auto` takes `none` if all rows and an arena for the largest view fit
    into the device budget, `host` otherwise. The arena gets what the budget leaves, at most what a batch can use; where that
    is less than the largest view, such views go in pieces. Under `auto` the two compete: the arena gets no more than the
    usual union, and the rest goes to resident rows. `none` and `host` insist on all and on none.
    shared_memory: device memory is the host's (the CPU), so resident rows are not kept a second time on the host.
    host_beside: bytes of the host's budget that are not for rows, nor for what the device counts.

    Raises ResourceError (needed, available, ways out) when nothing fits, not even with views in pieces; ClmError for an
    unknown `offload`.
    """
    if offload not in OFFLOADS:
        raise ClmError(f"Unknown --offload {offload!r}.", f"Choose one of {', '.join(OFFLOADS)}.")
    row_bytes, fewest = resident_row_bytes(moments, shared_memory), fewest_slots(largest_view)
    wanted = max(arena_rows_needed, largest_view)
    smallest = arena_bytes(fewest) + beside(largest_turn(largest_view, fewest))
    whole_views = in_core_bytes(rows, largest_view, row_bytes) + beside(largest_view)
    fits = whole_views <= device_budget
    if offload == "none" and rows * row_bytes + smallest > device_budget:
        raise _too_large_in_core(rows, row_bytes, smallest, device_budget)
    if smallest > device_budget:
        raise device_too_small(largest_view, smallest, device_budget)
    everything = offload == "none" or (offload == "auto" and fits)
    resident = rows if everything else 0
    slots = _most_slots(device_budget - resident * row_bytes, wanted, largest_view, beside)
    if offload == "auto" and not fits:
        slots = min(slots, max(largest_view, arena_rows_needed if usual_union is None else usual_union))
        left = device_budget - arena_bytes(slots) - beside(largest_turn(largest_view, slots))
        resident = left // row_bytes // page_rows * page_rows
    host = store_bytes(rows, store_row_bytes(moments)) - (resident * row_bytes if shared_memory else 0) + host_beside
    if host > host_budget:
        in_core = None if offload == "host" or everything else whole_views
        raise _too_large_for_host(rows, host, in_core, host_budget, host_beside)
    device = in_core_bytes(resident, slots, row_bytes) + beside(largest_turn(largest_view, slots))
    reason = _reason(offload, everything, whole_views, device, device_budget, resident / max(rows, 1))
    return Placement("none" if everything else "host", slots, resident, reason, device, host)


def _most_slots(available: int, wanted: int, largest_view: int, beside: Callable[[int], int]) -> int:
    """Slots of the largest arena, up to `wanted`, that fits with what it needs beside it."""
    whole = slots_for(available - beside(largest_view))
    if whole >= largest_view:
        return min(wanted, whole)
    below = range(largest_view)
    return max(
        0, bisect_right(below, available, key=lambda n: arena_bytes(n) + beside(largest_turn(largest_view, n))) - 1
    )


def check_shared_memory(rows: int, largest_view: int, host_budget: int, moments: str, beside: int = 0) -> None:
    """Where the device is the CPU: ResourceError if the rows, the smallest arena and `beside` bytes exceed the host's
    budget."""
    beside += arena_bytes(fewest_slots(largest_view))
    needed = store_bytes(rows, store_row_bytes(moments)) + beside
    if needed > host_budget:
        raise _too_large_for_host(rows, needed, None, host_budget, beside)


def _reason(offload: str, everything: bool, least: int, device: int, budget: int, share: float) -> str:
    """One sentence that says why."""
    if everything:
        return f"offload: none, because {format_bytes(device)} of state fits into the {format_bytes(budget)} budget"
    if offload == "host":
        return "offload: host, because it was asked for"
    reason = f"offload: host, because {format_bytes(least)} of state exceeds the {format_bytes(budget)} budget"
    return reason + (f"; the {100 * share:.0f}% of Gaussians that most views see stay on the device" if share else "")


def _too_large_in_core(rows: int, row_bytes: int, smallest: int, device_budget: int) -> ResourceError:
    """smallest: bytes of the smallest arena and what goes with it."""
    needed, room = rows * row_bytes + smallest, device_budget - smallest
    ways = "`--offload host`, " if room >= 0 else ""
    fewer = f" or `--max-gaussians {format_rows(room // row_bytes)}`" if room >= row_bytes else ""
    return ResourceError(
        f"{rows:,} Gaussians without offloading need {format_bytes(needed)} on the device, "
        f"but its budget is {format_bytes(device_budget)}.",
        f"Use {ways}`--gpu-memory {size_flag(needed)}`{fewer}.",
    )


def device_too_small(largest_view: int, needed: int, device_budget: int) -> ResourceError:
    """No arena fits. largest_view: rows that a view may have."""
    return ResourceError(
        f"The largest view sees {largest_view:,} Gaussians. Even in pieces it needs {format_bytes(needed)} on the device, "
        f"but its budget is {format_bytes(device_budget)}.",
        f"Use `--gpu-memory {size_flag(needed)}`.",
    )


def _too_large_for_host(
    rows: int, needed: int, in_core: int | None, host_budget: int, beside: int = 0
) -> ResourceError:
    """beside: of the bytes needed, those that are not the store's."""
    smallest = min(map(store_row_bytes, MOMENT_BYTES))
    in_core_way = "" if in_core is None else f", `--gpu-memory {size_flag(in_core)}`"
    bf16_way = ", `--moments bf16`" if store_bytes(rows, smallest) + beside <= host_budget < needed else ""
    room = _seen_less(host_budget - beside) if beside else host_budget
    fewer = f" or `--max-gaussians {format_rows(_scaled(rows, needed - beside, room))}`" if room > 0 else ""
    return ResourceError(
        f"{rows:,} Gaussians need {format_bytes(needed)} of host memory, but have {format_bytes(host_budget)}.",
        f"Use `--host-memory {size_flag(needed)}`{in_core_way}{bf16_way}{fewer}.",
    )


def _scaled(rows: int, needed: int, available: int) -> int:
    """Rows that fit when the need grows in proportion to rows; one at least."""
    return max(1, rows * available // needed) if needed else rows


def _seen_less(available: int) -> int:
    """Bytes to scale by where a view decides: fewer rows are larger, and views see a larger share of them."""
    return available * 9 // 10
