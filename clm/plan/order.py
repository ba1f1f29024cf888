"""The order of a batch's views: neighbours share as many rows as possible.

The distance of two views is |A xor B|, the length of an order is that of its open path. The search runs on closed tours
through one more node, the gap, at distance 0 from every view: cut there, the shortest tour is the shortest open path. A
path and its reverse cost the same: the one that ends with the smaller view is taken, as its update is the tail that
nothing hides. Distances and tours are computed by `clm.kernels.plan`.

Exact (Held-Karp) up to 10 views, 2-opt and or-opt with seeded kicks above. The search is bounded by a count of
neighbourhood scans, never by time, so the order is a function of the sets and the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from clm.kernels import plan

EXACT_VIEWS = 10
_SCANS = 20  # neighbourhood scans of the local search: tours of 16 and 64 real views end within 1.1% of those after 600


def shared_rows(sets: Sequence[np.ndarray], page_rows: int) -> np.ndarray:
    """|A & B| of sorted int32 sets, [n, n] i64, their sizes on the diagonal.

    Exact, so that the order of views is a function of the sets alone, however their rows are numbered and shared out.
    """
    sizes = np.array([len(rows) for rows in sets], np.int64)
    shared = plan.overlaps([np.ascontiguousarray(rows) for rows in sets], page_rows)
    shared = np.minimum(shared, np.minimum(sizes[:, None], sizes[None, :]))
    np.fill_diagonal(shared, sizes)
    return shared


def overlap_distances(shared: np.ndarray) -> np.ndarray:
    """|A xor B| of sets of which `shared_rows` is [n, n], and zeros in the last row and column (the gap): [n + 1, n + 1] i64."""
    count, sizes = len(shared), np.diagonal(shared)
    distances = np.zeros((count + 1, count + 1), np.int64)
    distances[:count, :count] = sizes[:, None] + sizes[None, :] - 2 * shared
    return distances


def order_views(
    sets: Sequence[np.ndarray],
    universe_rows: int,
    page_rows: int,
    seed: int,
    totals: Callable[[np.ndarray], np.ndarray] = lambda counts: counts,
) -> np.ndarray:
    """Permutation [n] int64 of one batch's views; `sets` are their sorted int32 rows, all below `universe_rows`. totals: of
    counts [..] i64 of these rows makes those of all rows, where others have more of them."""
    for i, rows in enumerate(sets):
        if len(rows) and (rows[0] < 0 or rows[-1] >= universe_rows):
            raise ValueError(f"view {i} has rows outside [0, {universe_rows})")
    count = len(sets)
    if count < 2:
        return np.arange(count)
    shared = totals(shared_rows(sets, page_rows))
    distances, sizes = overlap_distances(shared), np.diagonal(shared)
    path = exact_path(distances) if count <= EXACT_VIEWS else local_search(distances, seed)
    return path[::-1].copy() if sizes[path[0]] < sizes[path[-1]] else path


def tour_length(distances: np.ndarray, path: np.ndarray) -> int:
    """Length of gap -> path -> gap: that of the open path."""
    gap = len(distances) - 1
    stops = np.concatenate([[gap], path, [gap]])
    return int(distances[stops[:-1], stops[1:]].sum())


def exact_path(distances: np.ndarray) -> np.ndarray:
    """Shortest open path through all views: dynamic programming (Held and Karp 1962). [n]"""
    return plan.exact_order(distances)


def local_search(distances: np.ndarray, seed: int) -> np.ndarray:
    """Short open path through all views: nearest neighbour, 2-opt and or-opt, double-bridge kicks. [n]"""
    rng = np.random.default_rng(seed)
    tour = plan.greedy_tour(distances)
    best, best_length, scans = tour, None, 0
    while scans < _SCANS:
        tour, used = plan.descend(distances, tour, _SCANS - scans)
        scans += used
        length = tour_length(distances, tour[1:])
        if best_length is None or length < best_length:
            best, best_length = tour, length
        a, b, c = np.sort(rng.choice(np.arange(1, len(best)), 3, replace=False))
        tour = np.concatenate([best[:a], best[b:c], best[a:b], best[c:]])
    return best[1:]
