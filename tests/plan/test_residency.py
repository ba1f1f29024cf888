"""A slow simulator executes plans and checks, row by row, what the fast planner promises."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from itertools import combinations, pairwise
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clm.plan.residency import Plan, Turn, held_after, make_plan, rest_of
from tests.plan.slow_plan import slow_make_plan

Sums = dict[int, list[int]]


def execute(
    plan: Plan,
    sets: list[np.ndarray],
    capacity: int,
    *,
    stop: int | None = None,
    first: int = 0,
    left: Sums | None = None,
) -> tuple[Sums, Sums]:
    """Runs a plan with dictionaries; returns for each row the views whose gradients were summed, in that order: of rows
    that are final, and of those that are not when the run stops before turn `stop`. `left`: what an earlier part left,
    whose last view was `first` - 1."""
    arena: dict[int, int] = {}  # slot -> row
    gradients: Sums = {}  # slot -> views summed so far
    partial: Sums = dict(left or {})  # row -> partial sum on the host
    final: Sums = {}
    occupied_before: set[int] = set()  # slots taken while the previous turn computes
    for i, turn in enumerate(plan.turns[:stop]):
        assert np.array_equal(turn.rows, sets[i])
        for k, (row, slot) in enumerate(zip(turn.load_rows.tolist(), turn.load_slots.tolist(), strict=True)):
            assert 0 <= slot < capacity
            assert slot not in arena, "overwritten before its gradient has left"
            assert row not in arena.values(), "loaded twice"
            assert row not in final, "loaded after its last use"
            if k < turn.load_early:
                assert slot not in occupied_before, "an early load needs a slot that is free before"
            assert bool(turn.load_partial[k]) == (row in partial)
            arena[slot], gradients[slot] = row, partial.pop(row, [])
        for group in (slice(0, turn.load_early), slice(turn.load_early, None)):
            assert np.all(np.diff(turn.load_rows[group]) > 0) and np.all(np.diff(turn.load_slots[group]) > 0)
        for row, slot in zip(turn.rows.tolist(), turn.slots.tolist(), strict=True):
            assert arena.get(slot) == row, "a view finds its row in its slot"
            gradients[slot].append(first + i)
        occupied_before = set(arena)
        for row, slot, is_final in zip(
            turn.send_rows.tolist(), turn.send_slots.tolist(), turn.send_final.tolist(), strict=True
        ):
            assert arena.pop(slot) == row
            target = final if is_final else partial
            assert row not in target
            target[row] = gradients.pop(slot)
        finals = int(turn.send_final.sum())
        assert turn.send_final[:finals].all(), "final rows first"
        for group in (slice(0, finals), slice(finals, None)):
            assert np.all(np.diff(turn.send_rows[group]) > 0)
    if stop is None:
        assert not arena and not partial, "everything has left at the end"
    else:
        rows, slots = held_after(plan, stop)
        assert dict(zip(slots.tolist(), rows.tolist(), strict=True)) == arena
        partial |= {row: gradients[slot] for slot, row in arena.items()}
    return final, partial


def check(sets: list[np.ndarray], capacity: int, block_rows: int = 4) -> Plan:
    plan = make_plan(list(range(100, 100 + len(sets))), sets, capacity, block_rows)
    final, _ = execute(plan, sets, capacity)
    union = sorted(set().union(*(s.tolist() for s in sets)))
    assert plan.union_rows.tolist() == union == sorted(final)
    for row, views in final.items():
        assert views == [i for i, rows in enumerate(sets) if row in rows.tolist()], "summed in batch order"
    traffic, turns = plan.traffic, plan.turns
    assert [turn.view for turn in turns] == list(range(100, 100 + len(sets)))
    assert traffic.loaded == sum(len(turn.load_rows) for turn in turns)
    assert traffic.sent_back == sum(len(turn.send_rows) for turn in turns) == traffic.loaded
    assert traffic.loaded_partial == traffic.loaded - len(union)
    assert traffic.lower_bound == len(union) <= traffic.loaded <= traffic.consecutive_reuse <= traffic.no_reuse
    kept = [set(a.tolist()) & set(b.tolist()) for a, b in pairwise(sets)]
    assert traffic.consecutive_reuse == sum(map(len, sets)) - sum(map(len, kept))
    assert traffic.bytes_loaded == 240 * traffic.loaded + 256 * traffic.loaded_partial
    assert traffic.bytes_sent_back == 256 * traffic.sent_back
    if capacity >= len(union):
        assert traffic.loaded == len(union)
    return plan


batches = st.lists(st.sets(st.integers(0, 30), max_size=14), min_size=1, max_size=9)


def as_rows(sets: list[set[int]], spread: int = 1) -> list[np.ndarray]:
    return [np.array(sorted(s), np.int32) * spread for s in sets]


@given(batches, st.integers(0, 20), st.sampled_from([1, 13, 40_000]), st.sampled_from([1, 4, 2048]))
@settings(max_examples=300, deadline=None)
def test_every_plan_can_be_executed_and_predicts_its_traffic(
    sets: list[set[int]], extra: int, spread: int, block_rows: int
) -> None:
    check(as_rows(sets, spread), max(map(len, sets)) + extra, block_rows)


@given(batches, st.integers(0, 20), st.integers(0, 20), st.data())
@settings(max_examples=200, deadline=None)
def test_a_batch_that_goes_on_in_another_arena_sums_in_batch_order(
    sets: list[set[int]], extra: int, other: int, data: st.DataObject
) -> None:
    """Interrupted twice: the second time within the rest of the first."""
    rows, largest = as_rows(sets), max(map(len, sets))
    plan, first, done, left = make_plan(list(range(len(rows))), rows, largest + extra), 0, {}, {}
    for stop in (data.draw(st.integers(0, len(rows))), data.draw(st.integers(0, len(rows))), None):
        if stop is not None:
            stop = min(stop, len(plan.turns))
        final, left = execute(plan, rows[first:], plan.capacity, stop=stop, first=first, left=left)
        assert not final.keys() & done.keys(), "final once per batch"
        done |= final
        if stop is not None:
            plan, first = rest_of(plan, stop, largest + other, 4), first + stop
            assert plan.carried.tolist() == sorted(left)
    assert not left
    for row, views in done.items():
        assert views == [i for i, seen in enumerate(rows) if row in seen.tolist()]
    assert done.keys() == set().union(*sets)


def agree(sets: list[np.ndarray], capacity: int, block_rows: int) -> Plan:
    views = list(range(7, 7 + len(sets)))
    got, want = make_plan(views, sets, capacity, block_rows), slow_make_plan(views, sets, capacity, block_rows)
    assert got.capacity == want.capacity and got.traffic == want.traffic and len(got.turns) == len(want.turns)
    np.testing.assert_array_equal(got.union_rows, want.union_rows, strict=True)
    for one, other in zip(got.turns, want.turns, strict=True):
        for field in fields(Turn):
            a, b = getattr(one, field.name), getattr(other, field.name)
            assert type(a) is type(b), field.name
            np.testing.assert_array_equal(a, b, err_msg=field.name, strict=isinstance(a, np.ndarray))
    return got


@given(batches, st.integers(0, 20), st.sampled_from([1, 13, 40_000]), st.sampled_from([1, 4, 2048]))
@settings(max_examples=200, deadline=None)
def test_every_field_is_that_of_the_slow_twin(sets: list[set[int]], extra: int, spread: int, block_rows: int) -> None:
    agree(as_rows(sets, spread), max(map(len, sets)) + extra, block_rows)


@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.2), st.sampled_from([1, 60, 64, 2048]))
@settings(max_examples=60, deadline=None)
def test_plans_of_many_rows_are_those_of_the_slow_twin(seed: int, room: float, block_rows: int) -> None:
    """From no slot to spare to more slots than rows: evictions, reloads, early and late loads, untouched blocks."""
    rng = np.random.default_rng(seed)
    near = rng.random((int(rng.integers(1, 24)), 1)) * 6000
    rows = np.arange(6000)
    seen = (np.abs(rows - near) < rng.integers(10, 1500)) & (rng.random((len(near), 6000)) < rng.random())
    sets = [np.flatnonzero(one).astype(np.int32) * 3 + 500_000 for one in seen]
    largest = max(map(len, sets))
    agree(sets, largest + int(room * (len(np.unique(np.concatenate(sets))) - largest)), block_rows)


def test_partial_gradients_return_to_batches_that_do_not_fit() -> None:
    """The comparison above reaches evictions."""
    sets = [np.flatnonzero(np.random.default_rng(i).random(3000) < 0.3).astype(np.int32) for i in range(12)]
    assert agree(sets, 1100, 64).traffic.loaded_partial > 1000


@pytest.mark.parametrize("rows", [[3, 3], [4, 2], [-1, 2]])
def test_rows_that_do_not_ascend_are_refused(rows: list[int]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        make_plan([0], [np.array(rows, np.int32)], 10)


@given(batches)
@settings(max_examples=50, deadline=None)
def test_plans_load_less_with_more_capacity_down_to_the_union(sets: list[set[int]]) -> None:
    rows = as_rows(sets)
    least, union = max(map(len, sets)), len(set().union(*sets))
    loads = [make_plan(range(len(rows)), rows, c).traffic.loaded for c in range(least, max(least, union) + 2)]
    assert loads == sorted(loads, reverse=True) and loads[-1] == union


def fewest_loads(sets: list[set[int]], capacity: int) -> int:
    """Brute force over everything that may be kept between turns."""

    @cache
    def after(i: int, resident: frozenset[int]) -> int:
        if i == len(sets):
            return 0
        loads = len(sets[i] - resident)
        arena = resident | sets[i]
        options = [frozenset(keep) for k in range(len(arena) + 1) for keep in combinations(sorted(arena), k)]
        following = sets[i + 1] if i + 1 < len(sets) else set()
        return loads + min(after(i + 1, keep) for keep in options if len(keep | following) <= capacity)

    return after(0, frozenset())


@given(st.lists(st.sets(st.integers(0, 5), max_size=3), min_size=2, max_size=5), st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_no_policy_loads_fewer_rows(sets: list[set[int]], extra: int) -> None:
    capacity = max(map(len, sets)) + extra
    assert make_plan(range(len(sets)), as_rows(sets), capacity).traffic.loaded == fewest_loads(sets, capacity)


def test_evicts_the_row_whose_next_use_is_farthest() -> None:
    sets = as_rows([{1, 2, 3}, {4}, {2}, {3}, {1}])
    plan = check(sets, capacity=3)
    partial = ~plan.turns[0].send_final
    assert plan.turns[0].send_rows[partial].tolist() == [1]
    assert plan.turns[4].load_rows.tolist() == [1] and plan.turns[4].load_partial.tolist() == [True]


def test_loads_run_early_when_there_is_room_for_two_views() -> None:
    sets = as_rows([{0, 1, 2, 3}, {4, 5, 6, 7}, {0, 1, 8, 9}])
    assert [turn.load_early for turn in check(sets, capacity=10).turns] == [4, 4, 2]
    assert [turn.load_early for turn in check(sets, capacity=5).turns] == [4, 1, 0]
    assert [turn.load_early for turn in check(sets, capacity=4).turns] == [4, 0, 0]


def test_an_arena_smaller_than_the_largest_view_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2 slots.*needs 3"):
        make_plan([0, 1], as_rows([{1}, {1, 2, 3}]), 2)


def test_an_empty_batch_and_empty_views_have_plans() -> None:
    assert make_plan([], [], 0).turns == ()
    plan = check(as_rows([set(), {5}, set(), {5}]), capacity=1)
    assert plan.traffic.loaded == 1


def test_planning_64_views_of_10k_rows_takes_milliseconds() -> None:
    rng = np.random.default_rng(0)
    starts = np.sort(rng.integers(0, 85_000, 64))
    sets = [np.sort(rng.permutation(15_000)[:10_000] + start).astype(np.int32) for start in starts]
    seconds = []
    for _ in range(3):
        begin = perf_counter()
        plan = make_plan(range(64), sets, 20_000)
        seconds.append(perf_counter() - begin)
    assert plan.traffic.loaded <= plan.traffic.consecutive_reuse
    assert min(seconds) < 0.3  # 0.03 s on an idle core; ten times that still catches a quadratic planner
