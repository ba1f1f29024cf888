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
MOMENT_BYTES = {"f32": 480, "bf16": 240}  # both Adam moments, laid out as the parameters
STAMP_BYTES = 4  # int32 step of the last update
CULL_BYTES = 16  # centre and bounding radius
STATISTICS_BYTES = 8  # densification: accumulated screen gradient and count of views
GRADIENT_BYTES = 256  # geometry gradient 16 floats (two are statistics, three padding), colour gradient 48 floats
SLOT_BYTES = PARAMETER_BYTES + GRADIENT_BYTES

OFFLOADS = ("auto", "none", "host")
_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def store_row_bytes(moments: str) -> int:
    """Bytes of one row in the store, by how its moments are stored (a key of MOMENT_BYTES)."""
    return PARAMETER_BYTES + MOMENT_BYTES[moments] + STAMP_BYTES + CULL_BYTES + STATISTICS_BYTES


STORE_ROW_BYTES = store_row_bytes("f32")


@dataclass(frozen=True)
class Placement:
    """Where the store lives. `none`: on the device with the arena; `host`: the device holds only the arena."""

    offload: str  # "none" or "host"
    arena_slots: int
    reason: str  # one sentence for the user
    device_bytes: int
    host_bytes: int


def store_bytes(rows: int, row_bytes: int = STORE_ROW_BYTES) -> int:
    """Parameters, moments, stamps, cull entries, densification statistics of all rows. Block bounds: 32 B per block."""
    return rows * row_bytes


def arena_bytes(slots: int) -> int:
    """Parameters and gradient rows of all arena slots."""
    return slots * SLOT_BYTES


def slots_for(available: int) -> int:
    """Arena slots that fit into so many bytes."""
    return max(0, available // SLOT_BYTES)


def in_core_bytes(rows: int, arena_slots: int, row_bytes: int = STORE_ROW_BYTES) -> int:
    """What all-on-device needs: the store and the arena."""
    return store_bytes(rows, row_bytes) + arena_bytes(arena_slots)


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
    row_bytes: int = STORE_ROW_BYTES,
) -> Placement:
    """Where the store goes, how many slots the arena gets, and why.

    rows: Gaussians to plan for; arena_rows_needed: slots a batch can use (its union); largest_view: rows of the largest
    visible set, the fewest slots that work; budgets in bytes; row_bytes: one row in the store (`store_row_bytes`). `auto`
    takes `none` if the store and the smallest arena fit into the device budget, `host` otherwise. The arena gets what the
    budget leaves, at most what a batch can use.

    Raises ResourceError (needed, available, ways out) when nothing fits, ClmError for an unknown `offload`.
    """
    if offload not in OFFLOADS:
        raise ClmError(f"Unknown --offload {offload!r}.", f"Choose one of {', '.join(OFFLOADS)}.")
    least = in_core_bytes(rows, largest_view, row_bytes)
    wanted = max(arena_rows_needed, largest_view)
    if offload == "none" or (offload == "auto" and least <= device_budget):
        if least > device_budget:
            raise _too_large_in_core(rows, least, device_budget)
        slots = min(wanted, slots_for(device_budget - store_bytes(rows, row_bytes)))
        device = in_core_bytes(rows, slots, row_bytes)
        reason = (
            f"offload: none, because {format_bytes(device)} of state fits into the {format_bytes(device_budget)} budget"
        )
        return Placement("none", slots, reason, device, 0)
    if arena_bytes(largest_view) > device_budget:
        raise _view_too_large(rows, largest_view, device_budget)
    if store_bytes(rows, row_bytes) > host_budget:
        raise _too_large_for_host(rows, row_bytes, least, host_budget, offload)
    slots = min(wanted, slots_for(device_budget))
    if offload == "host":
        reason = "offload: host, because it was asked for"
    else:
        reason = (
            f"offload: host, because {format_bytes(least)} of state exceeds the {format_bytes(device_budget)} budget"
        )
    return Placement("host", slots, reason, arena_bytes(slots), store_bytes(rows, row_bytes))


def _too_large_in_core(rows: int, least: int, device_budget: int) -> ResourceError:
    return ResourceError(
        f"{rows:,} Gaussians without offloading need {format_bytes(least)} on the device, "
        f"but its budget is {format_bytes(device_budget)}.",
        f"Use `--offload host`, `--gpu-memory {_size_flag(least)}` or "
        f"`--max-gaussians {format_rows(_scaled(rows, least, device_budget))}`.",
    )


def _view_too_large(rows: int, largest_view: int, device_budget: int) -> ResourceError:
    needed = arena_bytes(largest_view)
    return ResourceError(
        f"The largest view sees {largest_view:,} Gaussians, which need {format_bytes(needed)} on the device, "
        f"but its budget is {format_bytes(device_budget)}.",
        f"Use `--gpu-memory {_size_flag(needed)}` or "
        f"`--max-gaussians {format_rows(_scaled(rows, needed, device_budget))}` "
        f"(if views see the same share of the scene).",
    )


def _too_large_for_host(rows: int, row_bytes: int, in_core: int, host_budget: int, offload: str) -> ResourceError:
    needed, smallest = store_bytes(rows, row_bytes), min(map(store_row_bytes, MOMENT_BYTES))
    in_core_way = "" if offload == "host" else f", `--gpu-memory {_size_flag(in_core)}`"
    bf16_way = ", `--moments bf16`" if store_bytes(rows, smallest) <= host_budget else ""
    return ResourceError(
        f"{rows:,} Gaussians need {format_bytes(needed)} of host memory, but have {format_bytes(host_budget)}.",
        f"Use `--host-memory {_size_flag(needed)}`{in_core_way}{bf16_way} or "
        f"`--max-gaussians {format_rows(host_budget // row_bytes)}`.",
    )


def _scaled(rows: int, needed: int, available: int) -> int:
    """Rows that fit when the need grows in proportion to rows."""
    return rows * available // needed if needed else rows
