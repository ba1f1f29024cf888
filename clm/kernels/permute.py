"""Typed face of the permutation kernel (source: `src/permute.cpp`): rows of many arrays brought into another order in place."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import numpy as np

from clm.kernels import load, pointer


@cache
def _library() -> ctypes.CDLL:
    library = load()
    address, long = ctypes.c_void_p, ctypes.c_int64
    library.clm_permutation_walk.argtypes = [address, long, address, address]
    library.clm_permutation_walk.restype = long
    library.clm_permute.argtypes = [address, address, long, address, long]
    library.clm_permute.restype = None
    return library


def permute_rows(arrays: Sequence[np.ndarray], order: np.ndarray) -> None:
    """Row i of every array [N, ...] becomes what its row order[i] was; order [N] i32 (others are converted).

    Scratch: 4.2 bytes per row, whatever the arrays are. ValueError when `order` is not a permutation.
    """
    rows, library = len(order), _library()
    for array in arrays:
        if len(array) != rows or not array.flags.c_contiguous:
            raise TypeError(f"want contiguous arrays of {rows} rows, got {array.dtype} {array.shape}")
    if rows >= 2**31:
        raise ValueError("rows are numbered in 31 bits")
    walk, seen = np.empty(rows, np.int32), np.zeros(-(-rows // 64), np.uint64)
    ids = np.ascontiguousarray(order, np.int32)
    steps = library.clm_permutation_walk(
        pointer(ids, np.int32, None), rows, pointer(seen, np.uint64, None), pointer(walk, np.int32, None)
    )
    if steps < 0:
        raise ValueError("the order of rows names a row twice, or one that does not exist")
    addresses = np.array([array.ctypes.data for array in arrays], np.uint64)
    row_bytes = np.array([array.strides[0] for array in arrays], np.int64)
    library.clm_permute(
        pointer(addresses, np.uint64, None),
        pointer(row_bytes, np.int64, None),
        len(arrays),
        pointer(walk, np.int32, None),
        steps,
    )
