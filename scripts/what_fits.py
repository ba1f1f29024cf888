"""Print the table "what fits where" of the README: how many Gaussians a device, host memory and a disk hold.

    python scripts/what_fits.py

The numbers are the largest that `clm.plan.placement` does not refuse, as `clm plan` asks it, for a scene of which each view sees
a hundredth, in photos of 1600 x 1200.
"""

from __future__ import annotations

import re
from bisect import bisect_left

from clm.errors import ResourceError
from clm.plan.budget import GROWTH_ROW_BYTES, MOST_GROWN_ROWS, grown_pages, lanes_bytes, staging_bytes
from clm.plan.placement import Placement, choose_placement, no_more
from clm.plan.sightings import arena_needs
from clm.render.temporaries import HostWorkspace, Temporaries
from clm.units import format_rows, parse_bytes

MACHINES = (  # device, host memory, room on the disk
    ("", "16GiB", "500GB"),
    ("8GiB", "32GiB", "500GB"),
    ("12GiB", "64GiB", "1TB"),
    ("24GiB", "128GiB", "2TB"),
    ("80GiB", "512GiB", "8TB"),
)
HEAD = ("device", "host memory", "disk", "all on the device", "in host memory", "on disk")
BATCH, SEEN, PIXELS = 4, 100, 1600 * 1200  # views; a view sees one row of so many
PROGRAM_BYTES, PHOTO_BYTES = 1 << 30, 4 << 30


def placed(rows: int, offload: str, device: int | None, host: int, disk: int) -> Placement:
    """So many rows on such a machine; device None: there is none. Raises ResourceError where they do not fit."""
    largest, shared = max(1, rows // SEEN), device is None
    usual = min(rows, BATCH * largest)

    def beside(turn_rows: int) -> int:
        return Temporaries().least_bytes(largest, PIXELS, 3, turn_rows) + lanes_bytes(turn_rows)

    others = PROGRAM_BYTES + min(PHOTO_BYTES, host // 4) + staging_bytes(largest, shared) + GROWTH_ROW_BYTES * rows
    others += HostWorkspace().least_bytes(largest, PIXELS) if shared else 0
    needed, usual = arena_needs(rows, largest, usual, BATCH)
    return choose_placement(
        rows, needed, largest, host - others if device is None else device, host, offload,
        usual_union=usual, beside=no_more if shared else beside, pages=grown_pages(rows), shared_memory=shared,
        host_holds_device=shared, host_beside=others, disk_free=disk,
    )  # fmt: skip


def most_rows(offload: str, device: int | None, host: int, disk: int) -> int:
    """How many rows fit; 0: not even one."""

    def refused(rows: int) -> bool:
        try:
            placed(rows, offload, device, host, disk)
        except ResourceError:
            return True
        return False

    return bisect_left(range(1, MOST_GROWN_ROWS + 1), True, key=refused)


def table() -> list[str]:
    """Markdown, a line each."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    for machine in MACHINES:
        device, host, disk = (parse_bytes(size) if size else None for size in machine)
        assert host is not None and disk is not None
        tiers = ("host", "disk") if device is None else ("none", "host", "disk")
        counts = [format_rows(most_rows(tier, device, host, disk)) for tier in tiers]
        sizes = [re.sub(r"(?=[GT]i?B)", " ", size) or "the CPU" for size in machine]
        lines.append(f"| {' | '.join([*sizes, *[''] * (3 - len(counts)), *counts])} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
