"""The slow twins of `clm.plan.order`: overlaps, Held-Karp, greedy tours, 2-opt and or-opt in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from clm.plan import order
from clm.plan.order import tour_length


def slow_overlap_distances(sets: Sequence[np.ndarray]) -> np.ndarray:
    """What `overlap_distances` must return."""
    count = len(sets)
    distances = np.zeros((count + 1, count + 1), np.int64)
    for i, a in enumerate(sets):
        for j, b in enumerate(sets):
            distances[i, j] = len(np.setxor1d(a, b))
    return distances


@cache
def _subsets_by_size(count: int) -> tuple[np.ndarray, ...]:
    masks = np.arange(1 << count)
    sizes = np.bitwise_count(masks)
    return tuple(masks[sizes == k] for k in range(count + 1))


def slow_exact_path(distances: np.ndarray) -> np.ndarray:
    """Shortest open path through all views: dynamic programming (Held and Karp 1962). [n]"""
    count = len(distances) - 1
    views = np.arange(count)
    between, ends = distances[:count, :count], distances[:count, count]
    unreachable = np.iinfo(np.int64).max // 4
    cost = np.full((1 << count, count), unreachable)  # [subset, last view]
    before = np.zeros((1 << count, count), np.int8)
    cost[1 << views, views] = ends
    for subsets in _subsets_by_size(count)[2:]:
        has_last = (subsets[:, None] >> views) & 1 == 1
        through = cost[subsets[:, None] & ~(1 << views)] + between  # [subset, last, one before last]
        best = through.argmin(axis=2)
        shortest = np.take_along_axis(through, best[:, :, None], axis=2)[:, :, 0]
        cost[subsets] = np.where(has_last, shortest, unreachable)
        before[subsets] = best
    subset = (1 << count) - 1
    last = int((cost[subset] + ends).argmin())
    path = [last]
    while subset & (subset - 1):
        subset, last = subset ^ (1 << last), int(before[subset, last])
        path.append(last)
    return np.array(path[::-1])


def slow_local_search(distances: np.ndarray, seed: int) -> np.ndarray:
    """Short open path through all views: nearest neighbour, 2-opt and or-opt, double-bridge kicks. [n]"""
    rng = np.random.default_rng(seed)
    tour = nearest_neighbour(distances)
    best, best_length, scans = tour, None, 0
    while scans < order._SCANS:
        tour, scans = descend(distances, tour, scans)
        length = tour_length(distances, tour[1:])
        if best_length is None or length < best_length:
            best, best_length = tour, length
        a, b, c = np.sort(rng.choice(np.arange(1, len(best)), 3, replace=False))
        tour = np.concatenate([best[:a], best[b:c], best[a:b], best[c:]])
    return best[1:]


def nearest_neighbour(distances: np.ndarray) -> np.ndarray:
    """The best of the greedy tours that start at each view; the gap is first. [n + 1]"""
    count = len(distances) - 1
    everyone = np.arange(count)
    tours = np.empty((count, count), np.int64)
    tours[:, 0] = everyone
    visited = np.eye(count, dtype=bool)
    for k in range(1, count):
        reach = np.where(visited, np.iinfo(np.int64).max, distances[tours[:, k - 1], :count])
        tours[:, k] = reach.argmin(axis=1)
        visited[everyone, tours[:, k]] = True
    lengths = [tour_length(distances, tour) for tour in tours]
    return np.concatenate([[count], tours[int(np.argmin(lengths))]])


def descend(distances: np.ndarray, tour: np.ndarray, scans: int) -> tuple[np.ndarray, int]:
    """Takes the best of all 2-opt and or-opt moves until none shortens the tour or the scans are spent."""
    while scans < order._SCANS:
        scans += 1
        local = distances[tour][:, tour]
        gain, move = best_reversal(local)
        other_gain, other = best_relocation(local)
        if other_gain > gain:
            gain, move = other_gain, other
        if gain <= 0:
            break
        tour = tour[move]
    return tour, scans


def best_reversal(local: np.ndarray) -> tuple[int, np.ndarray]:
    """2-opt: reverse positions i..j, 1 <= i < j; local [n, n] are distances in tour order. Gain and the new order."""
    size = len(local)
    positions = np.arange(size)
    after = (positions + 1) % size
    edge = local[positions, after]
    # gain[i, j] for reversing i + 1 .. j: edges (i, i + 1) and (j, j + 1) become (i, j) and (i + 1, j + 1)
    gain = np.triu(edge[:, None] + edge[None, :] - local - local[after][:, after], 2)
    i, j = divmod(int(gain.argmax()), size)
    move = positions.copy()
    move[i + 1 : j + 1] = positions[i + 1 : j + 1][::-1]
    return int(gain[i, j]), move


@cache
def _segments(size: int) -> tuple[np.ndarray, ...]:
    """First, last and following position of all runs of 1 to 3, and [j, i]: edge (j, j + 1) is not of run i."""
    runs = [(first, first + length - 1) for length in (1, 2, 3) for first in range(1, size - length + 1)]
    first, last = np.array(runs).T
    positions = np.arange(size)[:, None]
    return first, last, (last + 1) % size, (positions < first - 1) | (positions > last)


def best_relocation(local: np.ndarray) -> tuple[int, np.ndarray]:
    """Or-opt: move positions first .. last (1 to 3 of them) between j and j + 1, either way round. Gain, new order."""
    size = len(local)
    first, last, behind, apart = _segments(size)
    positions = np.arange(size)
    after = local[(positions + 1) % size]  # after[j] = distances from position j + 1
    edge = after.diagonal()
    removed = local[first - 1, first] + local[last, behind] - local[first - 1, behind]
    forward = local[:, first] + after[:, last]
    turned = local[:, last] + after[:, first]
    gain = (removed + edge[:, None] - np.minimum(forward, turned)) * apart
    j, i = divmod(int(gain.argmax()), len(first))
    begin, end = int(first[i]), int(last[i]) + 1
    segment = positions[begin:end] if forward[j, i] <= turned[j, i] else positions[begin:end][::-1]
    if j < begin:
        pieces = [positions[: j + 1], segment, positions[j + 1 : begin], positions[end:]]
    else:
        pieces = [positions[:begin], positions[end : j + 1], segment, positions[j + 1 :]]
    return int(gain[j, i]), np.concatenate(pieces)
