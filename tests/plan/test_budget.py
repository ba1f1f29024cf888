"""Bytes are computed in one place, and a budget that cannot work is refused with ways out that do work."""

from __future__ import annotations

import re

import numpy as np
import pytest

from clm.errors import ClmError, ResourceError
from clm.plan.budget import (
    arena_bytes,
    choose_placement,
    format_bytes,
    format_rows,
    in_core_bytes,
    parse_bytes,
    resident_bytes,
    slots_for,
    store_bytes,
)

GIB = 2**30


def test_bytes_are_those_of_the_arrays() -> None:
    rows = 10
    geometry, colour = np.zeros((rows, 12), np.float32), np.zeros((rows, 48), np.float32)
    parameters = geometry.nbytes + colour.nbytes
    stamps, entries, statistics = (
        np.zeros(rows, np.int32),
        np.zeros((rows, 4), np.float32),
        np.zeros((rows, 2), np.float32),
    )
    assert store_bytes(rows) == 3 * parameters + stamps.nbytes + entries.nbytes + statistics.nbytes
    gradients = np.zeros((rows, 16), np.float32).nbytes + colour.nbytes
    assert arena_bytes(rows) == parameters + gradients
    assert resident_bytes(rows) == store_bytes(rows) - entries.nbytes
    assert in_core_bytes(rows, 4) == resident_bytes(rows) + arena_bytes(4)
    assert slots_for(arena_bytes(7)) == 7 and slots_for(arena_bytes(7) - 1) == 6 and slots_for(0) == 0


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8GiB", 8 * GIB),
        ("8G", 8 * GIB),
        ("8 gib", 8 * GIB),
        ("8GB", 8 * 10**9),
        ("1.5MiB", 3 * 2**19),
        ("123", 123),
        ("7B", 7),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "8 Gigs", "-1GiB", "8GiBs", "1e9", "8iB"])
def test_a_bad_size_is_named(text: str) -> None:
    with pytest.raises(ClmError, match=r"Not a size in bytes.*8GiB"):
        parse_bytes(text)


def test_sizes_are_written_with_one_decimal() -> None:
    assert [format_bytes(c) for c in (17, 1536, 512 * 2**20, round(12.4 * GIB))] == [
        "17 B",
        "1.5 KiB",
        "512.0 MiB",
        "12.4 GiB",
    ]
    assert format_bytes(GIB - 1) == "1.0 GiB"
    assert [format_rows(c) for c in (18_700_000, 1_290_000, 950_400, 7_000, 740, 0)] == [
        "18M",
        "1.2M",
        "950k",
        "7k",
        "740",
        "0",
    ]


def test_auto_keeps_everything_on_the_device_when_it_fits() -> None:
    budget, cull_entries = in_core_bytes(1000, 300), 16 * 1000
    placement = choose_placement(1000, 300, 100, budget, cull_entries)
    assert (placement.offload, placement.arena_slots, placement.resident_rows) == ("none", 300, 1000)
    assert (placement.device_bytes, placement.host_bytes) == (budget, cull_entries)
    tight = choose_placement(1000, 300, 100, in_core_bytes(1000, 150), cull_entries)
    assert (tight.offload, tight.arena_slots) == ("none", 150)
    apart = choose_placement(1000, 300, 100, budget, store_bytes(1000), shared_memory=False)
    assert apart.host_bytes == store_bytes(1000), (
        "a device with memory of its own leaves a copy of every row on the host"
    )


def test_auto_offloads_and_says_why() -> None:
    placement = choose_placement(18_000_000, 5_000_000, 2_000_000, 2 * GIB, 64 * GIB)
    assert placement.offload == "host" and placement.resident_rows == 0
    assert placement.reason == "offload: host, because 13.2 GiB of state exceeds the 2.0 GiB budget"
    assert placement.arena_slots == slots_for(2 * GIB) and placement.device_bytes == arena_bytes(slots_for(2 * GIB))
    assert placement.host_bytes == store_bytes(18_000_000)


def test_what_the_arena_leaves_of_the_budget_goes_to_resident_rows_in_whole_blocks() -> None:
    placement = choose_placement(18_000_000, 5_000_000, 2_000_000, 8 * GIB, 64 * GIB)
    assert placement.offload == "host" and placement.arena_slots == 5_000_000
    assert placement.resident_rows % 2048 == 0
    assert placement.device_bytes == arena_bytes(5_000_000) + resident_bytes(placement.resident_rows) <= 8 * GIB
    assert placement.device_bytes + resident_bytes(2048) > 8 * GIB
    assert placement.host_bytes == store_bytes(18_000_000) - resident_bytes(placement.resident_rows)
    assert placement.reason.endswith("; the 46% of Gaussians that most views see stay on the device")
    assert choose_placement(18_000_000, 5_000_000, 2_000_000, 8 * GIB, 64 * GIB, "host").resident_rows == 0


def test_the_rasterisers_temporaries_come_out_of_the_device_budget() -> None:
    with_room = choose_placement(10_000, 5_000, 2_000, 10**7, 10**9, temporaries=0)
    without = choose_placement(10_000, 5_000, 2_000, 10**7, 10**9, temporaries=8 * 10**6)
    assert without.device_bytes <= 10**7 and without.arena_slots < with_room.arena_slots
    with pytest.raises(ResourceError, match="--gpu-memory"):
        choose_placement(10_000, 5_000, 2_000, 10**7, 10**9, temporaries=95 * 10**5)


@pytest.mark.parametrize("offload", ["auto", "none", "host"])
@pytest.mark.parametrize(("device", "host"), [(GIB // 4, 64 * GIB), (4 * GIB, GIB // 2)])
def test_an_impossible_budget_is_refused_with_ways_out_that_work(offload: str, device: int, host: int) -> None:
    rows, needed, largest = 10_000_000, 3_000_000, 1_000_000
    with pytest.raises(ResourceError) as caught:
        choose_placement(rows, needed, largest, device, host, offload)
    fix = caught.value.fix
    gpu = re.search(r"--gpu-memory (\S+?)`", fix)
    if gpu:
        choose_placement(rows, needed, largest, parse_bytes(gpu[1]), host, offload)
    memory = re.search(r"--host-memory (\S+?)`", fix)
    if memory:
        choose_placement(rows, needed, largest, device, parse_bytes(memory[1]), offload)
    fewer = int(float(re.search(r"--max-gaussians ([\d.]+)M", fix)[1]) * 1e6) if "M`" in fix else None
    if fewer is None:
        fewer = int(float(re.search(r"--max-gaussians ([\d.]+)k", fix)[1]) * 1e3)
    choose_placement(fewer, needed * fewer // rows, largest * fewer // rows, device, host, offload)
    assert gpu or memory


def test_an_explicit_choice_is_honoured_and_an_unknown_one_refused() -> None:
    assert choose_placement(1000, 300, 100, 10**9, 10**9, "host").offload == "host"
    with pytest.raises(ClmError, match="auto, none, host"):
        choose_placement(1000, 300, 100, 10**9, 10**9, "cloud")
