"""The order of views is short, exact where it claims to be, and a function of the sets and the seed alone."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clm.kernels.plan import descend, greedy_tour
from clm.plan import order
from clm.plan.order import exact_path, local_search, order_views, shared_rows, tour_length
from clm.plan.residency import make_plan
from tests.plan import slow_order
from tests.plan.slow_order import slow_exact_path, slow_local_search, slow_overlap_distances

batches = st.lists(st.sets(st.integers(0, 40), max_size=20), min_size=2, max_size=6)


def as_rows(sets: list[set[int]], spread: int = 1) -> list[np.ndarray]:
    return [np.array(sorted(s), np.int32) * spread for s in sets]


def overlap_distances(sets: list[np.ndarray], page_rows: int) -> np.ndarray:
    return order.overlap_distances(shared_rows(sets, page_rows))


def line_of_views(count: int, seed: int, rows: int = 4000, size: int = 300) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    starts = rng.permutation(np.linspace(0, rows - size, count).astype(int))
    return [np.arange(start, start + size, dtype=np.int32) for start in starts]


@given(batches, st.sampled_from([1, 50, 9000]), st.sampled_from([1, 4, 2048]))
@settings(max_examples=100, deadline=None)
def test_distances_are_symmetric_differences(sets: list[set[int]], spread: int, page_rows: int) -> None:
    want = [[len(a ^ b) for b in sets] for a in sets]
    distances = overlap_distances(as_rows(sets, spread), page_rows)
    np.testing.assert_array_equal(distances[:-1, :-1], want)
    assert not distances[-1].any() and not distances[:, -1].any()


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 7, 64, 2048]))
@settings(max_examples=60, deadline=None)
def test_distances_are_those_of_the_slow_twin_however_rows_are_numbered(seed: int, page_rows: int) -> None:
    rng = np.random.default_rng(seed)
    universe = int(rng.integers(1, 20_000))
    share = rng.random(int(rng.integers(1, 20)))
    sets = [np.flatnonzero(rng.random(universe) < p).astype(np.int32) for p in share]
    want = slow_overlap_distances(sets)
    np.testing.assert_array_equal(overlap_distances(sets, page_rows), want, strict=True)
    numbers = np.sort(rng.choice(10 * universe, universe, replace=False)).astype(np.int32)
    rng.shuffle(numbers)
    others = [np.sort(numbers[rows]) for rows in sets]
    np.testing.assert_array_equal(overlap_distances(others, page_rows), want)


def random_distances(rng: np.random.Generator, count: int, most: int) -> np.ndarray:
    """Symmetric, zero on the diagonal and to the gap; many ties when `most` is small."""
    upper = np.triu(rng.integers(0, most, (count + 1, count + 1)), 1)
    upper[:, count] = 0
    return upper + upper.T


@given(st.integers(0, 2**32 - 1), st.integers(1, 10), st.sampled_from([2, 5, 1_000_000]))
@settings(max_examples=80, deadline=None)
def test_exact_paths_are_those_of_the_slow_twin(seed: int, count: int, most: int) -> None:
    distances = random_distances(np.random.default_rng(seed), count, most)
    np.testing.assert_array_equal(exact_path(distances), slow_exact_path(distances), strict=True)


@given(st.integers(0, 2**32 - 1), st.integers(3, 40), st.sampled_from([2, 5, 100, 1_000_000]))
@settings(max_examples=80, deadline=None)
def test_local_search_takes_the_moves_of_the_slow_twin(seed: int, count: int, most: int) -> None:
    distances = random_distances(np.random.default_rng(seed), count, most)
    np.testing.assert_array_equal(greedy_tour(distances), slow_order.nearest_neighbour(distances), strict=True)
    tour = np.concatenate([[count], np.random.default_rng(seed + 1).permutation(count)])
    got, used = descend(distances, tour, order._SCANS)
    want, scans = slow_order.descend(distances, tour, 0)
    assert used == scans
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(local_search(distances, seed), slow_local_search(distances, seed), strict=True)


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
        for best_move in (slow_order.best_reversal, slow_order.best_relocation):
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
    with pytest.raises(ValueError, match="ascending"):
        order_views([np.array([3, 3], np.int32), np.array([1], np.int32)], 10, 4, 0)


def test_the_gap_stays_first_and_every_node_once() -> None:
    distances = random_distances(np.random.default_rng(0), 5, 10)
    with pytest.raises(ValueError, match="every node once"):
        descend(distances, np.array([5, 0, 1, 1, 2, 3]), 3)
    assert descend(distances, np.array([5, 0, 1, 4, 2, 3]), 3)[0][0] == 5


@given(st.integers(0, 2**32 - 1), st.integers(2, 4))
@settings(max_examples=30, deadline=None)
def test_rows_shared_out_over_ranks_give_the_order_of_all_rows(seed: int, ranks: int) -> None:
    rng = np.random.default_rng(seed)
    sets = [np.flatnonzero(rng.random(600) < p).astype(np.int32) for p in rng.random(int(rng.integers(2, 14)))]
    edges = [0, *np.sort(rng.integers(0, 601, ranks - 1)).tolist(), 600]
    theirs = [[rows[(rows >= a) & (rows < b)] - a for rows in sets] for a, b in pairwise(edges)]
    total = sum(shared_rows(mine, 64) for mine in theirs)
    for mine in theirs:
        path = order_views(mine, 600, 64, 0, lambda counts: total)
        np.testing.assert_array_equal(path, order_views(sets, 600, 64, 0))
