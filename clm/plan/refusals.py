"""Why rows fit nowhere, and what to do: errors with numbers, and with flags that really help. Pure functions."""

from __future__ import annotations

from clm.errors import ResourceError
from clm.plan.budget import MOMENT_BYTES, paged_bytes, scratch_free, scratch_room, store_bytes, store_row_bytes
from clm.units import format_bytes, format_rows, size_flag


def too_large_in_core(rows: int, row_bytes: int, smallest: int, device_budget: int) -> ResourceError:
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


def view_too_large(rows: int, needed: int, left: int, host_needed: int) -> ResourceError:
    """A view that is only rendered. needed: bytes of the host for its splats, of which `left` are left; host_needed: for all."""
    return ResourceError(
        f"A view sees {rows:,} Gaussians, whose splats need {format_bytes(needed)} of host memory, but it has "
        f"{format_bytes(left)} left.",
        f"Use `--host-memory {size_flag(host_needed)}`.",
    )


def too_large_for_host(
    rows: int,
    needed: int,
    in_core: int | None,
    host_budget: int,
    beside: int = 0,
    disk_way: str = "",
    rows_on_disk: int = 0,
) -> ResourceError:
    """beside: of the bytes needed, those that are not the store's; in_core: device bytes that would do without offloading,
    where that is a way out; disk_way: what would make the disk tier one; rows_on_disk: how many rows it has room for."""
    smallest = min(map(store_row_bytes, MOMENT_BYTES))
    in_core_way = "" if in_core is None else f", `--gpu-memory {size_flag(in_core)}`"
    bf16_way = ", `--moments bf16`" if store_bytes(rows, smallest) + beside <= host_budget < needed else ""
    room = _seen_less(host_budget - beside) if beside else host_budget
    most = max(rows_on_disk, _scaled(rows, needed - beside, room) if room > 0 else 0)
    fewer = f" or `--max-gaussians {format_rows(most)}`" if most else ""
    way = f", {disk_way}" if disk_way else ""
    return ResourceError(
        f"{rows:,} Gaussians need {format_bytes(needed)} of host memory, but have {format_bytes(host_budget)}.",
        f"Use `--host-memory {size_flag(needed)}`{way}{in_core_way}{bf16_way}{fewer}.",
    )


def too_large_for_frames(rows: int, pages: int, needed: int, host_budget: int, with_disk: str) -> ResourceError:
    """Host memory does not hold what the disk tier keeps of every row, and the fewest pages of them. needed: bytes for that
    and for all beside it; with_disk: what the disk lacks, too."""
    beside = needed - paged_bytes(rows, pages)
    room = _seen_less(host_budget - beside)
    fewer = f" or `--max-gaussians {format_rows(_scaled(rows, paged_bytes(rows, pages), room))}`" if room > 0 else ""
    return ResourceError(
        f"{rows:,} Gaussians on disk still need {format_bytes(needed)} of host memory, but have "
        f"{format_bytes(host_budget)}.",
        f"Use `--host-memory {size_flag(needed)}`{f' with {with_disk}' if with_disk else ''}{fewer}.",
    )


def too_large_for_disk(rows: int, needed: int, disk_free: int, host_needed: int, rows_on_disk: int) -> ResourceError:
    """needed: bytes of the scratch file; host_needed: what host memory must have for none to be needed; rows_on_disk: how many
    the disk has room for."""
    room = scratch_room(disk_free)
    fewer = f" or `--max-gaussians {format_rows(rows_on_disk)}`" if rows_on_disk else ""
    return ResourceError(
        f"{rows:,} Gaussians need a scratch file of {format_bytes(needed)}, but its disk has {format_bytes(disk_free)} free, "
        f"of which {format_bytes(disk_free - room)} stay so.",
        f"Use {scratch_way(needed)}, `--offload host --host-memory {size_flag(host_needed)}`{fewer}.",
    )


def scratch_way(needed: int) -> str:
    """needed: bytes of the scratch file."""
    return f"`--scratch DIR` on a disk with {size_flag(scratch_free(needed))} free"


def _scaled(rows: int, needed: int, available: int) -> int:
    """Rows that fit when the need grows in proportion to rows; one at least."""
    return max(1, rows * available // needed) if needed else rows


def _seen_less(available: int) -> int:
    """Bytes to scale by where a view decides: fewer rows are larger, and views see a larger share of them."""
    return available * 9 // 10
