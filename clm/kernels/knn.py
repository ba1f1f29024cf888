"""Typed face of the nearest-neighbour kernel (source: `src/knn.cpp`), used once per run, to size the first rows.

Exact, threaded, and independent of the thread count: the squared distances are bitwise those of testing every pair.
"""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np

from clm.kernels import load, pointer

MAX_NEIGHBOURS = 8
_LEAF_POINTS = 8


@cache
def _library() -> ctypes.CDLL:
    library = load()
    address = ctypes.c_void_p
    library.clm_knn.argtypes = [address, ctypes.c_int64, ctypes.c_int, ctypes.c_int, address, address, address]
    library.clm_knn.restype = None
    return library


def nearest_squared(points: np.ndarray, k: int) -> np.ndarray:
    """Squared distances [P, k] f32, ascending, from each of points [P, 3] f32 to its k nearest other points.

    Another point at the same place counts, with distance zero; infinite where there are fewer than k other points.
    Scratch: 17 bytes per point. ValueError for a non-finite point or k outside 1..8.
    """
    count = len(points)
    if not 1 <= k <= MAX_NEIGHBOURS or count >= 2**31:
        raise ValueError(f"k must lie in 1..{MAX_NEIGHBOURS} and the number of points below 2^31")
    if not np.isfinite(points).all():
        raise ValueError("points must be finite")
    levels = 0
    while count >> levels > _LEAF_POINTS:
        levels += 1
    items, nodes = np.empty((count, 4), np.float32), np.empty((2**levels - 1, 2), np.float32)
    squared = np.empty((count, k), np.float32)
    _library().clm_knn(
        pointer(points, np.float32, None, 3),
        count,
        k,
        levels,
        pointer(items, np.float32, None, 4),
        pointer(nodes, np.float32, None, 2),
        pointer(squared, np.float32, None, k),
    )
    return squared
