"""The order of views is short, exact where it claims to be, and a function of the sets and the seed alone."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clm.plan import order
from clm.plan.order import exact_path, local_search, order_views, overlap_distances, tour_length
from clm.plan.residency import make_plan

batches = st.lists(st.sets(st.integers(0, 40), max_size=20), min_size=2, max_size=6)


def as_rows(sets: list[set[int]], spread: int = 1) -> list[np.ndarray]:
    return [np.array(sorted(s), np.int32) * spread for s in sets]


def line_of_views(count: int, seed: int, rows: int = 4000, size: int = 300) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    starts = rng.permutation(np.linspace(0, rows - size, count).astype(int))
    return [np.arange(start, start + size, dtype=np.int32) for start in starts]


@given(batches, st.sampled_from([1, 50, 9000]), st.sampled_from([1, 4, 2048]))
@settings(max_examples=100, deadline=None)
def test_distances_are_symmetric_differences(sets: list[set[int]], spread: int, block_rows: int) -> None:
    want = [[len(a ^ b) for b in sets] for a in sets]
    distances = overlap_distances(as_rows(sets, spread), block_rows)
    np.testing.assert_array_equal(distances[:-1, :-1], want)
    assert not distances[-1].any() and not distances[:, -1].any()


def test_sampled_distances_are_close(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = line_of_views(12, 0, rows=100_000, size=20_000)
    exact = overlap_distances(sets, 2048)
    monkeypatch.setattr(order, "_PAIR_WORDS", 1 << 12)
    sampled = overlap_distances(sets, 2048)
    assert not np.array_equal(exact, sampled)
    assert np.abs(exact - sampled).max() < 0.03 * 20_000


@given(batches)
@settings(max_examples=60, deadline=None)
def test_small_batches_are_ordered_exactly(sets: list[set[int]]) -> None:
    rows = as_rows(sets)
    path = order_views(rows, 41, 8, seed=0)
    assert sorted(path) == list(range(len(sets)))
    distances = overlap_distances(rows, 8)
    best = min(tour_length(distances, np.array(p)) for p in permutations(range(len(sets))))
    assert tour_length(distances, path) == best
    assert len(sets[path[0]]) >= len(sets[path[-1]]), "the smaller end goes last"


@given(batches)
@settings(max_examples=60, deadline=None)
def test_path_length_and_ends_give_the_loads_of_consecutive_reuse(sets: list[set[int]]) -> None:
    rows = as_rows(sets)
    path = order_views(rows, 41, 8, seed=0)
    plan = make_plan(path.tolist(), [rows[i] for i in path], 41)
    ends = len(rows[path[0]]) + len(rows[path[-1]])
    assert tour_length(overlap_distances(rows, 8), path) + ends == 2 * plan.traffic.consecutive_reuse


@pytest.mark.parametrize("count", [11, 16, 40])
def test_local_search_straightens_a_line_of_views(count: int) -> None:
    sets = line_of_views(count, seed=count)
    distances = overlap_distances(sets, 64)
    along = np.argsort([rows[0] for rows in sets])
    assert tour_length(distances, order_views(sets, 4000, 64, seed=0)) <= tour_length(distances, along)


def test_local_search_is_near_the_optimum() -> None:
    rng = np.random.default_rng(5)
    excess = []
    for trial in range(8):
        centres = rng.uniform(0, 100, (10, 2))
        grid = np.stack(np.meshgrid(np.arange(100), np.arange(100)), axis=-1).reshape(-1, 2)
        sets = [np.flatnonzero(np.linalg.norm(grid - c, axis=1) < 25).astype(np.int32) for c in centres]
        distances = overlap_distances(sets, 256)
        best = tour_length(distances, exact_path(distances))
        excess.append(tour_length(distances, local_search(distances, trial)) / best - 1)
    assert min(excess) >= 0 and np.mean(excess) < 0.01 and max(excess) < 0.03


def test_moves_gain_what_they_claim() -> None:
    rng = np.random.default_rng(1)
    for trial in range(200):
        points = rng.integers(0, 1000, (int(rng.integers(11, 20)), 2))
        distances = np.abs(points[:, None] - points[None]).sum(axis=2)
        local = np.roll(distances, 1, axis=0)[:, np.roll(np.arange(len(points)), 1)]  # the empty set comes first
        before = tour_length(distances, np.arange(len(points) - 1))
        for best_move in (order._best_reversal, order._best_relocation):
            gain, move = best_move(local)
            assert sorted(move) == list(range(len(points))) and move[0] == 0
            assert gain <= 0 or tour_length(distances, move[1:] - 1) == before - gain, trial


def test_order_is_reproducible_under_its_seed() -> None:
    rng = np.random.default_rng(0)
    sets = [np.unique(rng.integers(0, 5000, 900)).astype(np.int32) for _ in range(20)]
    first = order_views(sets, 5000, 64, seed=3)
    np.testing.assert_array_equal(first, order_views(sets, 5000, 64, seed=3))
    np.testing.assert_array_equal(np.sort(first), np.arange(20))


def test_trivial_batches() -> None:
    assert order_views([], 10, 4, 0).tolist() == []
    assert order_views(as_rows([{3}]), 10, 4, 0).tolist() == [0]
    assert order_views(as_rows([{3}, {1, 2, 3}]), 10, 4, 0).tolist() == [1, 0]
    assert sorted(order_views(as_rows([set(), set(), set()]), 10, 4, 0)) == [0, 1, 2]
    with pytest.raises(ValueError, match="outside"):
        order_views(as_rows([{3}, {10}]), 10, 4, 0)
