"""What everything costs in bytes, and where the store therefore goes. The only place that knows bytes per row.

A test compares these figures with the real arrays. Nothing here allocates: a scene that cannot fit is refused before
step 0, with what it needs, what there is, and the ways out that really help.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from clm.errors import ClmError, ResourceError

PARAMETER_BYTES = 240  # geometry 12 floats (one is padding), colour 48 floats
MOMENT_BYTES = 480  # both Adam moments, laid out as the parameters
STAMP_BYTES = 4  # int32 step of the last update
CULL_BYTES = 16  # centre and bounding radius
STATISTICS_BYTES = 8  # densification: accumulated screen gradient and count of views
GRADIENT_BYTES = 256  # geometry gradient 16 floats (two are statistics, three padding), colour gradient 48 floats
SLOT_BYTES = PARAMETER_BYTES + GRADIENT_BYTES
STORE_ROW_BYTES = PARAMETER_BYTES + MOMENT_BYTES + STAMP_BYTES + CULL_BYTES + STATISTICS_BYTES
RESIDENT_ROW_BYTES = STORE_ROW_BYTES - CULL_BYTES  # cull entries never leave the host

OFFLOADS = ("auto", "none", "host")
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True)
class Placement:
    """Where rows live. `none`: all of them on the device; `host`: on the host, but for `resident_rows` in whole blocks."""

    offload: str  # "none" or "host"
    arena_slots: int
    resident_rows: int  # at most; whole blocks, those that most views see first
    reason: str  # one sentence for the user
    device_bytes: int
    host_bytes: int


def store_bytes(rows: int) -> int:
    """Parameters, moments, stamps, cull entries, densification statistics of all rows. Block bounds: 32 B per block."""
    return rows * STORE_ROW_BYTES


def arena_bytes(slots: int) -> int:
    """Parameters and gradient rows of all arena slots."""
    return slots * SLOT_BYTES


def slots_for(available: int) -> int:
    """Arena slots that fit into so many bytes."""
    return max(0, available // SLOT_BYTES)


def resident_bytes(rows: int) -> int:
    """Device bytes of rows that live there: parameters, moments, stamps, densification statistics."""
    return rows * RESIDENT_ROW_BYTES


def in_core_bytes(rows: int, arena_slots: int) -> int:
    """What all-on-device needs there: every row resident, and the arena."""
    return resident_bytes(rows) + arena_bytes(arena_slots)


def staging_bytes(largest_view: int) -> int:
    """Device bytes of staging where the device has memory of its own: two buffers each for rows that come and gradients
    that go, a quarter of headroom; no step loads or sends more rows than the largest view has."""
    return largest_view * SLOT_BYTES * 5 // 2


def parse_bytes(text: str) -> int:
    """Bytes of `8GiB`, `8G` (both 2**30), `8GB` (10**9), `512 MiB`, `1.5TiB` or a plain number; ClmError otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([KMGT]?)(IB|B)?\s*", text.upper())
    if not match:
        raise ClmError(f"Not a size in bytes: {text!r}.", "Write a number with a unit, for example 8GiB or 500MB.")
    number, unit, kind = match.groups()
    if not unit and kind == "IB":
        raise ClmError(f"Not a size in bytes: {text!r}.", "Write a number with a unit, for example 8GiB or 500MB.")
    base = 1000 if kind == "B" else 1024
    return round(float(number) * base ** _UNITS[unit])


def format_bytes(count: int) -> str:
    """`12.4 GiB`, `512.0 MiB`, `17 B`: binary units, one decimal."""
    if count < 1024:
        return f"{count} B"
    power = 1
    while power < 4 and count / 1024**power >= 1023.95:
        power += 1
    return f"{count / 1024**power:.1f} {'KMGT'[power - 1]}iB"


def format_rows(count: int) -> str:
    """`18M`, `950k`, `740`: rounded down to two or three digits, as --max-gaussians takes it."""
    for size, suffix in ((1_000_000, "M"), (1_000, "k")):
        if count >= 10 * size:
            return f"{count // size}{suffix}"
        if count >= size:
            return f"{math.floor(10 * count / size) / 10:g}{suffix}"
    return str(max(0, count))


def _size_flag(count: int) -> str:
    """The smallest whole MiB or tenth of a GiB that holds `count` bytes, as --gpu-memory takes it."""
    if count < 2**30:
        return f"{max(1, math.ceil(count / 2**20))}MiB"
    return f"{math.ceil(10 * count / 2**30) / 10:g}GiB"


def choose_placement(
    rows: int,
    arena_rows_needed: int,
    largest_view: int,
    device_budget: int,
    host_budget: int,
    offload: str = "auto",
    *,
    temporaries: int = 0,
    block_rows: int = 2048,
    shared_memory: bool = True,
) -> Placement:
    """Where rows live, how many slots the arena gets, and why.

    rows: Gaussians to plan for; arena_rows_needed: slots a batch can use (its union); largest_view: rows of the largest
    visible set, the fewest slots that work; budgets and `temporaries` (the rasteriser's) in bytes. `auto` takes `none` if
    all rows and the smallest arena fit into the device budget, `host` otherwise. The arena gets what the budget leaves, at
    most what a batch can use; under `auto` the rest goes to resident rows. `none` and `host` insist on all and on none.
    shared_memory: device memory is the host's (the CPU), so resident rows are not kept a second time on the host.

    Raises ResourceError (needed, available, ways out) when nothing fits, ClmError for an unknown `offload`.
    """
    if offload not in OFFLOADS:
        raise ClmError(f"Unknown --offload {offload!r}.", f"Choose one of {', '.join(OFFLOADS)}.")
    available = device_budget - temporaries
    least = in_core_bytes(rows, largest_view)
    fits = least <= available
    if offload == "none" and not fits:
        raise _too_large_in_core(rows, largest_view, device_budget, temporaries)
    if arena_bytes(largest_view) > available:
        raise _view_too_large(rows, largest_view, device_budget, temporaries)
    everything = offload == "none" or (offload == "auto" and fits)
    slots = min(
        max(arena_rows_needed, largest_view), slots_for(available - (resident_bytes(rows) if everything else 0))
    )
    resident = rows if everything else 0
    if offload == "auto" and not fits:
        resident = (available - arena_bytes(slots)) // RESIDENT_ROW_BYTES // block_rows * block_rows
    host = store_bytes(rows) - (resident_bytes(resident) if shared_memory else 0)
    if host > host_budget:
        raise _too_large_for_host(host, rows, resident, least, host_budget, offload)
    device = resident_bytes(resident) + arena_bytes(slots) + temporaries
    reason = _reason(offload, everything, least, device, device_budget, resident / max(rows, 1))
    return Placement("none" if everything else "host", slots, resident, reason, device, host)


def _reason(offload: str, everything: bool, least: int, device: int, budget: int, share: float) -> str:
    """One sentence that says why."""
    if everything:
        return f"offload: none, because {format_bytes(device)} of state fits into the {format_bytes(budget)} budget"
    if offload == "host":
        return "offload: host, because it was asked for"
    reason = f"offload: host, because {format_bytes(least)} of state exceeds the {format_bytes(budget)} budget"
    return reason + (f"; the {100 * share:.0f}% of Gaussians that most views see stay on the device" if share else "")


def _too_large_in_core(rows: int, largest_view: int, device_budget: int, temporaries: int) -> ResourceError:
    least = in_core_bytes(rows, largest_view) + temporaries
    return ResourceError(
        f"{rows:,} Gaussians without offloading need {format_bytes(least)} on the device, "
        f"but its budget is {format_bytes(device_budget)}.",
        f"Use `--offload host`, `--gpu-memory {_size_flag(least)}` or "
        f"`--max-gaussians {format_rows(_scaled(rows, least, device_budget))}`.",
    )


def _view_too_large(rows: int, largest_view: int, device_budget: int, temporaries: int) -> ResourceError:
    needed = arena_bytes(largest_view) + temporaries
    return ResourceError(
        f"The largest view sees {largest_view:,} Gaussians, which need {format_bytes(needed)} on the device, "
        f"but its budget is {format_bytes(device_budget)}.",
        f"Use `--gpu-memory {_size_flag(needed)}` or "
        f"`--max-gaussians {format_rows(_scaled(rows, needed, device_budget))}` "
        f"(if views see the same share of the scene).",
    )


def _too_large_for_host(
    needed: int, rows: int, resident: int, in_core: int, host_budget: int, offload: str
) -> ResourceError:
    in_core_way = "" if offload == "host" or resident == rows else f", `--gpu-memory {_size_flag(in_core)}`"
    return ResourceError(
        f"{rows:,} Gaussians need {format_bytes(needed)} of host memory, but have {format_bytes(host_budget)}.",
        f"Use `--host-memory {_size_flag(needed)}`{in_core_way} or "
        f"`--max-gaussians {format_rows(_scaled(rows, needed, host_budget))}`.",
    )


def _scaled(rows: int, needed: int, available: int) -> int:
    """Rows that fit when the need grows in proportion to rows."""
    return rows * available // needed if needed else rows
