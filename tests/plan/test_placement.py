"""A budget is used as well as it can be, and one that cannot work is refused with ways out that do work."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clm.errors import ClmError, ResourceError
from clm.plan.budget import RESIDENT_ROW_BYTES as RESIDENT
from clm.plan.budget import arena_bytes, in_core_bytes, slots_for, store_bytes, store_row_bytes
from clm.plan.placement import Placement, choose_placement
from clm.plan.residency import largest_turn
from clm.plan.sightings import Sightings, resident_blocks
from clm.units import parse_bytes

GIB = 2**30


def fill_of(rows: int, page_rows: int) -> np.ndarray:
    """Rows of each block where all but the last are full."""
    return np.minimum(page_rows, rows - np.arange(0, rows, page_rows))


def test_auto_keeps_everything_on_the_device_when_it_fits() -> None:
    budget, cull_entries = in_core_bytes(1000, 300), 24 * 1000  # and keys
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
    assert placement.reason == "offload: host, because 13.3 GiB of state exceeds the 2.0 GiB budget"
    assert placement.arena_slots == slots_for(2 * GIB) and placement.device_bytes == arena_bytes(slots_for(2 * GIB))
    assert placement.host_bytes == store_bytes(18_000_000)


def test_what_the_arena_leaves_of_the_budget_goes_to_resident_rows_in_whole_blocks() -> None:
    placement = choose_placement(18_000_000, 5_000_000, 2_000_000, 8 * GIB, 64 * GIB)
    assert placement.offload == "host" and placement.arena_slots == 5_000_000
    assert placement.resident_rows % 2048 == 0
    assert placement.device_bytes == arena_bytes(5_000_000) + placement.resident_rows * RESIDENT <= 8 * GIB
    assert placement.device_bytes + 2048 * RESIDENT > 8 * GIB
    assert placement.host_bytes == store_bytes(18_000_000) - placement.resident_rows * RESIDENT
    assert placement.reason.endswith("; the 46% of Gaussians that most views see stay on the device")
    assert choose_placement(18_000_000, 5_000_000, 2_000_000, 8 * GIB, 64 * GIB, "host").resident_rows == 0


def test_the_arena_gives_way_to_resident_rows_down_to_the_usual_union_only_where_both_compete() -> None:
    def choose(budget: int, offload: str = "auto") -> tuple[int, int]:
        placement = choose_placement(18_000_000, 5_000_000, 2_000_000, budget, 64 * GIB, offload, usual_union=3_000_000)
        return placement.arena_slots, placement.resident_rows

    slots, resident = choose(8 * GIB)
    assert slots == 3_000_000 and resident == (8 * GIB - arena_bytes(slots)) // RESIDENT // 2048 * 2048
    assert choose(8 * GIB, "host") == (5_000_000, 0)
    assert choose(20 * GIB) == (5_000_000, 18_000_000), "everything fits"
    assert choose(GIB) == (slots_for(GIB), 0), "the budget does not even hold the usual union"


@given(st.lists(st.sets(st.integers(0, 99)), min_size=1, max_size=6), st.integers(1, 8), st.sampled_from([1, 7, 100]))
def test_the_usual_union_is_at_least_the_mean_union_of_random_views(
    views: list[set[int]], batch: int, page_rows: int
) -> None:
    seen = Sightings.of((np.array(sorted(view), np.int32) for view in views), fill_of(100, page_rows), page_rows)
    rng = np.random.default_rng(0)
    unions = [len(set().union(*(views[k] for k in rng.integers(len(views), size=batch)))) for _ in range(400)]
    assert seen.usual_union(batch) >= np.mean(unions) - 4 * np.std(unions) / 20
    if batch == 1:
        assert seen.usual_union(1) >= np.mean([len(view) for view in views]) - 1e-9


def test_what_a_turn_needs_beside_the_arena_comes_out_of_the_device_budget() -> None:
    def choose(per_row: int, budget: int = 10**7) -> Placement:
        return choose_placement(10_000, 5_000, 2_000, budget, 10**9, "host", beside=lambda rows: 10**6 + per_row * rows)

    with_room, without, in_pieces = choose(0), choose(3500), choose(8500)
    assert with_room.arena_slots > without.arena_slots > 2_000, "whole views"
    assert without.device_bytes == arena_bytes(without.arena_slots) + 10**6 + 3500 * 2_000 <= 10**7
    assert 1024 < in_pieces.arena_slots < 2_000, "a piece has half as many rows as the arena"
    assert in_pieces.device_bytes == (arena_bytes(in_pieces.arena_slots) + 10**6 + 8500 * (in_pieces.arena_slots // 2))
    assert in_pieces.device_bytes <= 10**7 < in_pieces.device_bytes + 2 * (496 + 8500)
    with pytest.raises(ResourceError, match="--gpu-memory") as caught:
        choose(10**5)
    advised = re.search(r"--gpu-memory (\S+?)`", caught.value.fix)
    assert choose(10**5, parse_bytes(advised[1])).arena_slots >= 1024


@given(st.integers(0, 5_000_000), st.integers(0, 2000), st.sampled_from(["auto", "none", "host"]))
def test_any_budget_is_used_or_refused_and_more_of_it_never_makes_the_arena_smaller(
    budget: int, per_row: int, offload: str
) -> None:
    def choose(budget: int) -> Placement | None:
        try:
            return choose_placement(3000, 9000, 2500, budget, 10**9, offload, beside=lambda rows: per_row * rows)
        except ResourceError:
            return None

    placement, more = choose(budget), choose(budget + 400_000)
    if placement is None:
        assert budget < arena_bytes(1024) + per_row * 512 + (3000 * RESIDENT if offload == "none" else 0)
        return
    assert more is not None and placement.device_bytes <= budget and placement.arena_slots >= 1024
    if more.offload == placement.offload:
        assert more.arena_slots >= placement.arena_slots
    turn = largest_turn(2500, placement.arena_slots)
    assert placement.device_bytes == in_core_bytes(placement.resident_rows, placement.arena_slots) + per_row * turn


@pytest.mark.parametrize("moments", ["f32", "bf16"])
@pytest.mark.parametrize("offload", ["auto", "none", "host"])
@pytest.mark.parametrize(("device", "host"), [(GIB // 8192, 64 * GIB), (GIB // 4, GIB // 2), (2 * GIB, GIB // 2)])
def test_an_impossible_budget_is_refused_with_ways_out_that_work(
    offload: str, device: int, host: int, moments: str
) -> None:
    rows, needed, largest = 10_000_000, 3_000_000, 1_000_000
    with pytest.raises(ResourceError) as caught:
        choose_placement(rows, needed, largest, device, host, offload, moments=moments)
    fix = caught.value.fix
    gpu = re.search(r"--gpu-memory (\S+?)`", fix)
    if gpu:
        choose_placement(rows, needed, largest, parse_bytes(gpu[1]), host, offload, moments=moments)
    memory = re.search(r"--host-memory (\S+?)`", fix)
    if memory:
        choose_placement(rows, needed, largest, device, parse_bytes(memory[1]), offload, moments=moments)
    fewer = re.search(r"--max-gaussians ([\d.]+)([Mk]?)`", fix)
    if fewer:
        count = int(float(fewer[1]) * {"M": 1e6, "k": 1e3, "": 1}[fewer[2]])
        choose_placement(count, needed * count // rows, largest * count // rows, device, host, offload, moments=moments)
    assert (gpu or memory) and (fewer or device < arena_bytes(1024))


def test_bf16_moments_are_a_way_out_of_a_full_host_only_where_they_fit() -> None:
    rows, largest = 10_000_000, 1_000_000
    for host, offered in ((6 * GIB, True), (4 * GIB, False)):
        with pytest.raises(ResourceError) as caught:
            choose_placement(rows, largest, largest, GIB, host, "host")
        assert ("`--moments bf16`" in caught.value.fix) == offered
    half = choose_placement(rows, largest, largest, GIB, 6 * GIB, "host", moments="bf16")
    assert half.host_bytes == rows * store_row_bytes("bf16")
    with pytest.raises(ResourceError) as caught:
        choose_placement(rows, largest, largest, GIB, 4 * GIB, "host", moments="bf16")
    assert "--moments" not in caught.value.fix and "--max-gaussians 8.1M" in caught.value.fix


def test_an_explicit_choice_is_honoured_and_an_unknown_one_refused() -> None:
    assert choose_placement(1000, 300, 100, 10**9, 10**9, "host").offload == "host"
    with pytest.raises(ClmError, match="auto, none, host, disk"):
        choose_placement(1000, 300, 100, 10**9, 10**9, "cloud")


@given(st.lists(st.sets(st.integers(0, 99)), max_size=6), st.integers(0, 120), st.sampled_from([1, 7, 16, 100, 128]))
def test_resident_blocks_are_those_that_most_views_see_as_far_as_the_rows_reach(
    views: list[set[int]], room: int, page_rows: int
) -> None:
    rows = 100
    seen = Sightings.of((np.array(sorted(view), np.int32) for view in views), fill_of(rows, page_rows), page_rows)
    counts = np.zeros(rows)
    for view in views:
        counts[sorted(view)] += 1
    blocks = np.split(counts, range(page_rows, rows, page_rows))
    assert seen.largest_view == max(map(len, views), default=0)
    assert seen.per_block.tolist() == [block.sum() for block in blocks]
    chosen = resident_blocks(seen, room)
    sizes, means = np.array([len(block) for block in blocks]), np.array([block.mean() for block in blocks])
    assert sizes[chosen].sum() <= room
    if chosen.any() and not chosen.all():
        assert means[chosen].min() >= means[~chosen].max(), "no block outside is seen by more views than one inside"
        best = np.flatnonzero(~chosen)[np.argmax(means[~chosen])]
        assert sizes[chosen].sum() + sizes[best] > room, "the next best block has no room"
    assert chosen.all() == (room >= rows)
