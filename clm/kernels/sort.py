"""Typed face of the sorting kernels (source: `src/sort.cpp`): the order of rows in space. Results do not depend on threads."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np

from clm.kernels import load, pointer


@cache
def _library() -> ctypes.CDLL:
    library = load()
    address, long = ctypes.c_void_p, ctypes.c_int64
    library.clm_sort_keys.argtypes = [address, long, address, address, address, address]
    library.clm_sort_keys.restype = None
    library.clm_sort_rows.argtypes = [address, address, address, address, long]
    library.clm_sort_rows.restype = ctypes.c_int32
    return library


def space_keys(entries: np.ndarray, low: np.ndarray, edge: float, class_edges: np.ndarray) -> np.ndarray:
    """Keys [N] u64 of cull entries [N, 4] f32: how many of `class_edges` [3] f32 lie below the radius, then the Morton code
    of the centre (20 bits per axis) in the cube of corner `low` [3] f64 and this edge; what lies outside clamps to its faces.
    A cube, because in a flat box cells are flat, too: rows of one footprint would lie in as many layers as it has sides."""
    keys, edges = np.empty(len(entries), np.uint64), np.full(3, edge)  # held: an address does not keep its array
    _library().clm_sort_keys(
        pointer(entries, np.float32, None, 4),
        len(entries),
        pointer(low, np.float64, 3),
        pointer(edges, np.float64, 3),
        pointer(class_edges, np.float32, 3),
        pointer(keys, np.uint64, None),
    )
    return keys


def sorted_rows(keys: np.ndarray) -> np.ndarray:
    """Rows [N] i32 in ascending order of their keys [N] u64, which are overwritten; equal keys in ascending order of rows.

    Memory: 12 bytes per row beside the keys and what is returned, while it sorts; ValueError beyond 2^31 - 1 rows."""
    count = len(keys)
    if count >= 2**31:
        raise ValueError("rows are numbered in 31 bits")
    ids, id_scratch, key_scratch = np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.uint64)
    failed = _library().clm_sort_rows(
        pointer(keys, np.uint64, None),
        pointer(ids, np.int32, None),
        pointer(key_scratch, np.uint64, None),
        pointer(id_scratch, np.int32, None),
        count,
    )
    if failed:
        raise MemoryError("no memory to sort rows")
    return ids
