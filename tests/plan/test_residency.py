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
    capacity: int,
    *,
    stop: int | None = None,
    left: Sums | None = None,
) -> tuple[Sums, Sums]:
    """Runs a plan with dictionaries; returns for each row the views whose gradients were summed, in that order: of rows
    that are final, and of those that are not when the run stops before turn `stop`. `left`: what an earlier part left."""
    arena: dict[int, int] = {}  # slot -> row
    gradients: Sums = {}  # slot -> views summed so far
    partial: Sums = dict(left or {})  # row -> partial sum on the host, where it stays until a newer one is parked
    final: Sums = {}
    occupied_before: set[int] = set()  # slots taken while the previous turn computes
    for turn in plan.turns[:stop]:
        for k, (row, slot) in enumerate(zip(turn.load_rows.tolist(), turn.load_slots.tolist(), strict=True)):
            assert 0 <= slot < capacity
            assert slot not in arena, "overwritten before its gradient has left"
            assert row not in arena.values(), "loaded twice"
            assert row not in final, "loaded after its last use"
            if k < turn.load_early:
                assert slot not in occupied_before, "an early load needs a slot that is free before"
            assert bool(turn.load_partial[k]) == (row in partial)
            arena[slot], gradients[slot] = row, list(partial.get(row, []))
        for group in (slice(0, turn.load_early), slice(turn.load_early, None)):
            assert np.all(np.diff(turn.load_rows[group]) > 0) and np.all(np.diff(turn.load_slots[group]) > 0)
        for row, slot in zip(turn.rows.tolist(), turn.slots.tolist(), strict=True):
            assert arena.get(slot) == row, "a turn finds its row in its slot"
            if turn.adds:
                gradients[slot].append(turn.view)
                partial.pop(row, None)
        occupied_before = set(arena)
        for k, (row, slot) in enumerate(zip(turn.send_rows.tolist(), turn.send_slots.tolist(), strict=True)):
            assert arena.pop(slot) == row and row not in final
            gradient = gradients.pop(slot)
            if k < turn.finals:
                assert turn.adds and row in turn.rows and row not in partial, "its last use adds, and it is not parked"
                final[row] = gradient
            elif k < turn.finals + turn.partials:
                assert gradient, "nothing is parked that has no gradient"
                partial[row] = gradient
            else:
                assert gradient == partial.get(row, []), "what is dropped has no gradient that the host has not"
        for group in np.split(turn.send_rows, [turn.finals, turn.finals + turn.partials]):
            assert np.all(np.diff(group) > 0)
    if stop is None:
        assert not arena and not partial, "everything has left at the end"
    else:
        rows, slots = held_after(plan, stop)
        held = {slot: row for slot, row in arena.items() if gradients[slot]}
        assert dict(zip(slots.tolist(), rows.tolist(), strict=True)) == held
        partial |= {row: gradients[slot] for slot, row in held.items()}
    return final, partial


def check_turns(plan: Plan, views: list[int], sets: list[np.ndarray], capacity: int) -> None:
    """Each view is projected from its first row to its last, then rasterised, and gets its gradients on the way back."""
    turns = list(plan.turns)
    for view, rows in zip(views, sets, strict=True):
        there = [turns.pop(0)]
        while not there[-1].renders:
            there.append(turns.pop(0))
        back = [there[-1], *(turns.pop(0) for _ in there[1:])]
        assert all(turn.view == view and np.array_equal(turn.view_rows, rows) for turn in there + back)
        assert [turn.begins for turn in there] == [True] + [False] * (len(there) - 1)
        assert all(turn.projects and turn.adds == (turn is there[-1]) for turn in there)
        assert all(turn.adds and turn.projects == (turn is there[-1]) for turn in back)
        pieces = [(turn.first, turn.rows.tolist()) for turn in there]
        assert pieces == [(turn.first, turn.rows.tolist()) for turn in reversed(back)]
        assert [row for _, piece in pieces for row in piece] == rows.tolist()
        assert [first for first, _ in pieces] == np.cumsum([0, *(len(piece) for _, piece in pieces[:-1])]).tolist()
        sizes = [len(piece) for _, piece in pieces]
        if len(rows) <= capacity:
            assert sizes == [len(rows)]
        else:
            assert 1 <= max(sizes) - 1 <= min(sizes) <= max(sizes) <= max(1, capacity // 2) or max(sizes) == 1
            assert len(sizes) == -(-len(rows) // max(1, capacity // 2)), "no more pieces than needed"
    assert not turns and plan.views == views


def check(sets: list[np.ndarray], capacity: int, page_rows: int = 4) -> Plan:
    views = list(range(100, 100 + len(sets)))
    plan = make_plan(views, sets, capacity, page_rows)
    check_turns(plan, views, sets, capacity)
    final, _ = execute(plan, capacity)
    union = sorted(set().union(*(s.tolist() for s in sets)))
    assert plan.union_rows.tolist() == union == sorted(final)
    for row, summed in final.items():
        assert summed == [v for v, rows in zip(views, sets, strict=True) if row in rows.tolist()], "in batch order"
    traffic, turns = plan.traffic, plan.turns
    assert traffic.loaded == sum(len(turn.load_rows) for turn in turns) == sum(len(turn.send_rows) for turn in turns)
    assert traffic.sent_back == sum(turn.finals + turn.partials for turn in turns)
    assert traffic.loaded_partial == traffic.sent_back - len(union)
    if all(turn.adds for turn in turns):
        assert traffic.sent_back == traffic.loaded, "every row that leaves has a gradient"
    assert traffic.lower_bound == len(union) <= traffic.loaded <= traffic.consecutive_reuse <= traffic.no_reuse
    kept = [set(a.rows.tolist()) & set(b.rows.tolist()) for a, b in pairwise(turns)]
    assert traffic.consecutive_reuse == traffic.no_reuse - sum(map(len, kept))
    assert traffic.no_reuse == sum(len(turn.rows) for turn in turns)
    assert traffic.bytes_loaded == 240 * traffic.loaded + 256 * traffic.loaded_partial
    assert traffic.bytes_sent_back == 256 * traffic.sent_back
    if capacity >= len(union):
        assert traffic.loaded == len(union)
    return plan


batches = st.lists(st.sets(st.integers(0, 30), max_size=14), min_size=1, max_size=9)
slots = st.integers(1, 40)  # from every view in pieces of one row to the whole union


def as_rows(sets: list[set[int]], spread: int = 1) -> list[np.ndarray]:
    return [np.array(sorted(s), np.int32) * spread for s in sets]


@given(batches, slots, st.sampled_from([1, 13, 40_000]), st.sampled_from([1, 4, 2048]))
@settings(max_examples=300, deadline=None)
def test_every_plan_can_be_executed_and_predicts_its_traffic(
    sets: list[set[int]], capacity: int, spread: int, page_rows: int
) -> None:
    check(as_rows(sets, spread), capacity, page_rows)


@given(batches, slots, slots, slots, st.data())
@settings(max_examples=300, deadline=None)
def test_a_batch_that_goes_on_in_another_arena_sums_in_batch_order(
    sets: list[set[int]], capacity: int, second: int, third: int, data: st.DataObject
) -> None:
    """Interrupted twice, also in the middle of a view in pieces: the second time within the rest of the first."""
    rows, done, left = as_rows(sets), {}, {}
    plan = make_plan(list(range(len(rows))), rows, capacity)
    for smaller in (second, third):
        stop = data.draw(st.integers(0, len(plan.turns)))
        final, left = execute(plan, plan.capacity, stop=stop, left=left)
        assert not final.keys() & done.keys(), "final once per batch"
        done |= final
        plan = rest_of(plan, stop, smaller, 4)
        assert plan.carried.tolist() == sorted(left)
    final, left = execute(plan, plan.capacity, left=left)
    assert not left and not final.keys() & done.keys()
    done |= final
    for row, views in done.items():
        assert views == [i for i, seen in enumerate(rows) if row in seen.tolist()]
    assert done.keys() == set().union(*sets)


@given(batches, slots)
@settings(max_examples=100, deadline=None)
def test_views_that_are_only_rendered_take_one_pass_and_send_nothing_back(sets: list[set[int]], capacity: int) -> None:
    rows, views = as_rows(sets), list(range(len(sets)))
    plan = make_plan(views, rows, capacity, 4, trains=False)
    assert all(turn.projects and not turn.adds for turn in plan.turns)
    execute(plan, capacity)
    assert plan.traffic.sent_back == plan.traffic.loaded_partial == 0 and plan.views == views
    trained = make_plan(views, rows, capacity, 4)
    assert [t.rows.tolist() for t in plan.turns] == [t.rows.tolist() for t in trained.turns if t.projects]


def agree(sets: list[np.ndarray], capacity: int, page_rows: int, trains: bool = True) -> Plan:
    views = list(range(7, 7 + len(sets)))
    got = make_plan(views, sets, capacity, page_rows, trains=trains)
    want = slow_make_plan(views, sets, capacity, page_rows, trains)
    assert got.capacity == want.capacity and got.traffic == want.traffic and len(got.turns) == len(want.turns)
    np.testing.assert_array_equal(got.union_rows, want.union_rows, strict=True)
    for one, other in zip(got.turns, want.turns, strict=True):
        for field in fields(Turn):
            a, b = getattr(one, field.name), getattr(other, field.name)
            assert type(a) is type(b), field.name
            np.testing.assert_array_equal(a, b, err_msg=field.name, strict=isinstance(a, np.ndarray))
    return got


@given(batches, slots, st.sampled_from([1, 13, 40_000]), st.sampled_from([1, 4, 2048]), st.booleans())
@settings(max_examples=300, deadline=None)
def test_every_field_is_that_of_the_slow_twin(
    sets: list[set[int]], capacity: int, spread: int, page_rows: int, trains: bool
) -> None:
    agree(as_rows(sets, spread), capacity, page_rows, trains)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 2.2), st.sampled_from([1, 60, 64, 2048]))
@settings(max_examples=60, deadline=None)
def test_plans_of_many_rows_are_those_of_the_slow_twin(seed: int, room: float, page_rows: int) -> None:
    """From views in twenty pieces to more slots than rows: evictions, reloads, early and late loads, untouched blocks."""
    rng = np.random.default_rng(seed)
    near = rng.random((int(rng.integers(1, 24)), 1)) * 6000
    rows = np.arange(6000)
    seen = (np.abs(rows - near) < rng.integers(10, 1500)) & (rng.random((len(near), 6000)) < rng.random())
    sets = [np.flatnonzero(one).astype(np.int32) * 3 + 500_000 for one in seen]
    largest, union = max(map(len, sets)), len(np.unique(np.concatenate(sets)))
    capacity = int(room * largest) if room < 1 else largest + int((room - 1) * (union - largest))
    agree(sets, max(1, capacity), page_rows)


def test_partial_gradients_return_to_batches_that_do_not_fit() -> None:
    """The comparison above reaches evictions, with and without a gradient."""
    sets = [np.flatnonzero(np.random.default_rng(i).random(3000) < 0.3).astype(np.int32) for i in range(12)]
    assert agree(sets, 1100, 64).traffic.loaded_partial > 1000
    traffic = agree(sets, 400, 64).traffic
    assert traffic.loaded_partial > 1000 and traffic.loaded - traffic.sent_back > 1000


@pytest.mark.parametrize("rows", [[3, 3], [4, 2], [-1, 2]])
def test_rows_that_do_not_ascend_are_refused(rows: list[int]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        make_plan([0], [np.array(rows, np.int32)], 10)


def test_the_highest_row_has_plans_and_places_beyond_it_are_refused() -> None:
    last = np.array([2**31 - 1], np.int32)
    for page_rows in (2048, 2**20):
        assert check([last, last], 1, page_rows).traffic.loaded == 1
    with pytest.raises(ValueError, match="2147483647 places"):
        make_plan([0, 1], [np.array([0], np.int32), last], 10, 2**30)
    with pytest.raises(TypeError, match="int32"):
        make_plan([0], [np.array([2**31], np.int64)], 10)


@given(batches)
@settings(max_examples=50, deadline=None)
def test_plans_load_less_with_more_capacity_down_to_the_union(sets: list[set[int]]) -> None:
    """As long as the turns are the same."""
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
    first = plan.turns[0]
    assert first.partials == 1 and first.send_rows[first.finals :].tolist() == [1]
    assert plan.turns[4].load_rows.tolist() == [1] and plan.turns[4].load_partial.tolist() == [True]


def test_loads_run_early_when_there_is_room_for_two_views() -> None:
    sets = as_rows([{0, 1, 2, 3}, {4, 5, 6, 7}, {0, 1, 8, 9}])
    assert [turn.load_early for turn in check(sets, capacity=10).turns] == [4, 4, 2]
    assert [turn.load_early for turn in check(sets, capacity=5).turns] == [4, 1, 0]
    assert [turn.load_early for turn in check(sets, capacity=4).turns] == [4, 0, 0]


def test_the_pieces_at_the_turn_are_still_there() -> None:
    """Six rows in four slots: three pieces of two. The last two pieces are loaded once, the first one twice."""
    plan = check(as_rows([set(range(6))]), 4)
    assert [turn.rows.tolist() for turn in plan.turns] == [[0, 1], [2, 3], [4, 5], [2, 3], [0, 1]]
    assert [turn.load_rows.tolist() for turn in plan.turns] == [[0, 1], [2, 3], [4, 5], [], [0, 1]]
    assert plan.traffic.sent_back == 6 and plan.traffic.loaded_partial == 0, "nothing had a gradient when it left"


def test_rows_without_slots_are_refused() -> None:
    with pytest.raises(ValueError, match=r"without slots.*1 rows"):
        make_plan([0, 1], as_rows([set(), {1}]), 0)


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


@given(batches, slots, st.integers(2, 4))
@settings(max_examples=150, deadline=None)
def test_groups_of_several_ranks_are_projected_before_they_are_rasterised_and_sum_in_batch_order(
    sets: list[set[int]], capacity: int, ranks: int
) -> None:
    rows = as_rows(sets)
    plan = make_plan(list(range(len(rows))), rows, capacity, 4, ranks=ranks)
    final, _ = execute(plan, capacity)
    for row, summed in final.items():
        assert summed == [view for view, mine in enumerate(sets) if row in mine], "in batch order"
    assert plan.views == list(range(len(rows))) and sorted(final) == plan.union_rows.tolist()
    groups = -(-len(rows) // ranks)
    sent, drawn, whole = 0, 0, {view: 0 for view in range(len(rows))}
    for turn in plan.turns:
        assert turn.position == turn.view and turn.projects != turn.adds
        group = turn.position // ranks
        if turn.projects:
            assert group == sent <= drawn + 1, "at most one group travels while another is rasterised"
            whole[turn.view] += len(turn.rows)
            assert not turn.sends or all(whole[v] == len(rows[v]) for v in range(min(len(rows), (group + 1) * ranks)))
            sent += turn.sends
        else:
            drawn += turn.draws
            assert group == drawn - 1 < sent, "its splats were sent, and it was rasterised"
    assert sent == drawn == groups
