"""Rows that neither device nor host hold go to disk, within every budget, or are refused with ways out that work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clm.errors import ResourceError
from clm.plan.budget import (
    arena_bytes,
    frame_bytes,
    grown_pages,
    page_file_bytes,
    paged_bytes,
    scratch_room,
    store_bytes,
)
from clm.plan.placement import Placement, choose_placement, most_rows_on_disk
from clm.store.frames import LEAST_FRAMES
from clm.units import parse_bytes, parse_count
from scripts.what_fits import most_rows, table

GIB = 2**30
CITY: dict[str, Any] = {"rows": 30_000_000, "needed": 3_000_000, "largest": 600_000}


def choose(
    device: int,
    host: int,
    disk: int,
    offload: str = "auto",
    *,
    rows: int = 0,
    needed: int = 0,
    largest: int = 0,
    **more: Any,
) -> Placement:
    """The city, or so many rows, placed."""
    counts = rows or CITY["rows"], needed or CITY["needed"], largest or CITY["largest"]
    return choose_placement(*counts, device, host, offload, disk_free=disk, **more)


def test_auto_takes_the_first_of_device_host_and_disk_that_has_room_and_says_why() -> None:
    apart = {"shared_memory": False}
    assert choose(32 * GIB, 64 * GIB, 100 * GIB, **apart).offload == "none"
    assert choose(4 * GIB, 64 * GIB, 100 * GIB, **apart).offload == "host"
    placement = choose(4 * GIB, 8 * GIB, 100 * GIB, **apart)
    assert placement.offload == "disk"
    assert placement.reason.startswith(
        "offload: disk, because 21.3 GiB of state exceeds the 8.0 GiB budget of host memory; 36% of the pages fit there"
    )
    assert "stay on the device" in placement.reason and placement.resident_rows % 2048 == 0 < placement.resident_rows
    asked = choose(32 * GIB, 64 * GIB, 100 * GIB, "disk", **apart)
    assert asked.offload == "disk" and "it was asked for; 100% of the pages" in asked.reason
    assert asked.frames == -(-30_000_000 // 2048), "the host holds every page"


def test_the_host_holds_what_stays_of_every_row_and_as_many_pages_as_fit() -> None:
    placement = choose(4 * GIB, 8 * GIB, 100 * GIB, shared_memory=False, host_beside=10**8, beside_frames=10**8)
    pages = -(-30_000_000 // 2048)
    kept = 16 * 30_000_000 + 96 * pages + 2 * 10**8 + 4 * page_file_bytes()
    assert placement.host_bytes == kept + placement.frames * frame_bytes() <= 8 * GIB
    assert placement.host_bytes + frame_bytes() > 8 * GIB
    assert placement.disk_bytes == pages * page_file_bytes()
    grown = choose(4 * GIB, 8 * GIB, 100 * GIB, pages=grown_pages(30_000_000))
    assert grown.disk_bytes > 1.2 * placement.disk_bytes, "pages of a scene that grew are partly empty"


def test_where_the_host_is_the_device_frames_and_arena_share_it() -> None:
    small, large = (choose(host, host, 100 * GIB, host_holds_device=True) for host in (4 * GIB, 12 * GIB))
    for placement, host in ((small, 4 * GIB), (large, 12 * GIB)):
        assert placement.offload == "disk" and placement.resident_rows == 0
        assert placement.host_bytes + placement.device_bytes <= host
        assert placement.host_bytes + placement.device_bytes + frame_bytes() > host
        assert placement.arena_slots >= 600_000, "the largest view is in one piece"
    assert large.frames > 3 * small.frames and large.arena_slots == 1_200_000, "one computes, one arrives"
    tight = choose(GIB, GIB, 100 * GIB, host_holds_device=True)
    assert tight.arena_slots < 600_000 and tight.frames * frame_bytes() > tight.device_bytes
    stated = choose(arena_bytes(2000), 4 * GIB, 100 * GIB, host_holds_device=True)
    assert stated.arena_slots == 2000, "a stated device budget is kept to"


@given(
    st.integers(0, 3 * 10**7), st.integers(0, 3 * 10**8), st.integers(0, 2 * 10**8), st.sampled_from(["auto", "disk"]),
    st.booleans(), st.sampled_from(["f32", "bf16"]),
)  # fmt: skip
def test_any_budgets_are_kept_to_or_refused_and_more_host_memory_never_holds_fewer_pages(
    device: int, host: int, disk: int, offload: str, shared: bool, moments: str
) -> None:
    def place(host: int) -> Placement | None:
        try:
            return choose_placement(
                100_000, 30_000, 9_000, device, host, offload, moments=moments, page_rows=128, shared_memory=shared,
                host_holds_device=shared, beside_frames=10**5, disk_free=disk,
            )  # fmt: skip
        except ResourceError:
            return None

    placement, more = place(host), place(host + 10**6)
    if placement is None:
        return
    held = placement.host_bytes + (placement.device_bytes if shared and placement.offload != "none" else 0)
    assert placement.device_bytes <= device
    assert placement.disk_bytes <= scratch_room(disk)
    if placement.offload != "disk":
        assert placement.disk_bytes == 0 and placement.frames == 782
        return
    assert held <= host and LEAST_FRAMES <= placement.frames <= 782
    assert more is not None and (more.offload == "host" or more.frames >= placement.frames - 1 or shared)


@pytest.mark.parametrize("moments", ["f32", "bf16"])
@pytest.mark.parametrize("offload", ["auto", "disk", "host"])
@pytest.mark.parametrize(
    ("device", "host", "disk"),
    [
        (GIB, 4 * GIB, 10 * GIB),
        (GIB, 4 * GIB, 0),
        (GIB, 4 * GIB, 23 * GIB),
        (GIB, GIB // 4, 100 * GIB),
        (GIB, GIB // 4, 10 * GIB),
        (GIB // 8192, 32 * GIB, 100 * GIB),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_an_impossible_budget_is_refused_with_ways_out_that_work(
    offload: str, device: int, host: int, disk: int, moments: str, shared: bool
) -> None:
    options = {"moments": moments, "shared_memory": shared, "host_holds_device": shared, "host_beside": 10**8}
    try:
        choose(device, host, disk, offload, **options)
    except ResourceError as refused:
        fix = refused.fix
    else:
        assert (offload, host >= 4 * GIB, disk >= 20 * GIB or moments == "bf16") != ("host", True, True)
        return
    ways, both = 0, None
    if gpu := re.search(r"`--gpu-memory (\S+?)`", fix):
        choose(parse_bytes(gpu[1]), host, disk, offload, **options)
        ways += 1
    if memory := re.search(r"--host-memory (\S+?)`", fix):
        other = "host" if "--offload host --host-memory" in fix else offload
        both = re.search(r"with `--scratch DIR` on a disk with (\S+) free", fix) if offload == "disk" else None
        choose(device, parse_bytes(memory[1]), parse_bytes(both[1]) if both else disk, other, **options)
        ways += 1
    if (scratch := re.search(r"on a disk with (\S+) free", fix)) and not both:
        assert (offload == "host") == ("`--offload disk` with `--scratch DIR`" in fix)
        choose(device, host, parse_bytes(scratch[1]), "disk" if offload == "host" else offload, **options)
        ways += 1
    elif "`--offload disk`" in fix:
        choose(device, host, disk, "disk", **options)
        ways += 1
    if "`--moments bf16`" in fix:
        choose(device, host, disk, offload, **{**options, "moments": "bf16"})
    if fewer := re.search(r"--max-gaussians ([\d.]+[Mk]?)`", fix):
        rows = parse_count(fewer[1], "a fix")
        scaled = {name: max(1, count * rows // CITY["rows"]) for name, count in CITY.items()}
        choose(device, host, disk, offload, **scaled, **options)
        ways += 1
    assert ways >= (1 if device < GIB else 2), fix


def test_a_scene_on_disk_grows_until_the_disk_is_full_or_the_host_holds_no_more_entries() -> None:
    by_disk = most_rows_on_disk(8 * GIB, 40 * GIB, moments="f32")
    assert grown_pages(by_disk) * page_file_bytes() <= scratch_room(40 * GIB)
    assert by_disk > 30_000_000 and most_rows_on_disk(80 * GIB, 40 * GIB, moments="f32") == by_disk
    by_host = most_rows_on_disk(2 * GIB, 10_000 * GIB, moments="f32")
    needed = paged_bytes(by_host, grown_pages(by_host)) + 32 * by_host + LEAST_FRAMES * frame_bytes()
    needed += 4 * page_file_bytes()
    assert 0 <= 2 * GIB - needed < 200
    assert most_rows_on_disk(0, 0, moments="f32") == 0
    assert by_host > 10 * 2 * GIB // store_bytes(1), "many more than the host holds whole"


def test_the_table_of_the_readme_is_what_placement_says() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert "\n".join(table()) in readme, "run scripts/what_fits.py"
    assert most_rows("disk", 4 * GIB, 8 * GIB, 100 * GIB) > most_rows("host", 4 * GIB, 8 * GIB, 0) > 0
