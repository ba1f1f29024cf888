"""Where rows live: everything on the device, or the store on the host with the blocks that most views see on the device.

Nothing here allocates: a scene that cannot fit is refused before step 0, with what it needs, what there is, and the ways
out that really help.
"""

from __future__ import annotations

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
from clm.store.layout import BLOCK_ROWS
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
    temporaries: int = 0,
    block_rows: int = BLOCK_ROWS,
    shared_memory: bool = True,
    host_beside: int = 0,
) -> Placement:
    """Where rows live, how many slots the arena gets, and why.

    rows: Gaussians to plan for; arena_rows_needed: slots that any batch can use; largest_view: rows of the largest visible
    set, the fewest slots that work; usual_union: rows of most batches' union; budgets and `temporaries` (the rasteriser's)
    in bytes. `auto` takes `none` if all rows and the smallest arena fit into the device budget, `host` otherwise. The arena
    gets what the budget leaves, at most what a batch can use. Under `auto` the two compete: the arena gets no more than the
    usual union, and the rest goes to resident rows. `none` and `host` insist on all and on none.
    shared_memory: device memory is the host's (the CPU), so resident rows are not kept a second time on the host.
    host_beside: bytes of the host's budget that are not for rows, nor for what the device counts.

    Raises ResourceError (needed, available, ways out) when nothing fits, ClmError for an unknown `offload`.
    """
    if offload not in OFFLOADS:
        raise ClmError(f"Unknown --offload {offload!r}.", f"Choose one of {', '.join(OFFLOADS)}.")
    row_bytes, available = resident_row_bytes(moments, shared_memory), device_budget - temporaries
    least = in_core_bytes(rows, largest_view, row_bytes)
    fits = least <= available
    if offload == "none" and not fits:
        host_helps = arena_bytes(largest_view) <= available
        raise _too_large_in_core(rows, least + temporaries, device_budget, host_helps)
    if arena_bytes(largest_view) > available:
        raise _view_too_large(rows, largest_view, arena_bytes(largest_view) + temporaries, device_budget)
    everything = offload == "none" or (offload == "auto" and fits)
    room = slots_for(available - (rows * row_bytes if everything else 0))
    slots = min(max(arena_rows_needed, largest_view), room)
    resident = rows if everything else 0
    if offload == "auto" and not fits:
        slots = min(slots, max(largest_view, arena_rows_needed if usual_union is None else usual_union))
        resident = (available - arena_bytes(slots)) // row_bytes // block_rows * block_rows
    host = store_bytes(rows, store_row_bytes(moments)) - (resident * row_bytes if shared_memory else 0) + host_beside
    if host > host_budget:
        in_core = None if offload == "host" or everything else least + temporaries
        raise _too_large_for_host(rows, host, in_core, host_budget, host_beside)
    device = in_core_bytes(resident, slots, row_bytes) + temporaries
    reason = _reason(offload, everything, least, device, device_budget, resident / max(rows, 1))
    return Placement("none" if everything else "host", slots, resident, reason, device, host)


def check_shared_memory(rows: int, largest_view: int, host_budget: int, moments: str, beside: int = 0) -> None:
    """Where the device is the CPU: ResourceError if the rows, an arena for the largest view and `beside` bytes exceed the
    host's budget."""
    beside += arena_bytes(largest_view)
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


def _too_large_in_core(rows: int, needed: int, device_budget: int, host_helps: bool) -> ResourceError:
    return ResourceError(
        f"{rows:,} Gaussians without offloading need {format_bytes(needed)} on the device, "
        f"but its budget is {format_bytes(device_budget)}.",
        f"Use {'`--offload host`, ' if host_helps else ''}`--gpu-memory {size_flag(needed)}` or "
        f"`--max-gaussians {format_rows(_scaled(rows, needed, _seen_less(device_budget)))}`.",
    )


def _view_too_large(rows: int, largest_view: int, needed: int, device_budget: int) -> ResourceError:
    return ResourceError(
        f"The largest view sees {largest_view:,} Gaussians, which need {format_bytes(needed)} on the device, "
        f"but its budget is {format_bytes(device_budget)}.",
        f"Use `--gpu-memory {size_flag(needed)}` or "
        f"`--max-gaussians {format_rows(_scaled(rows, needed, _seen_less(device_budget)))}` "
        f"(if views see the same share of the scene).",
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
