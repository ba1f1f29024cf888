"""Typed face of the kernel that moves rows one by one (source: `src/move.cpp`)."""

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
    library.clm_move_rows.argtypes = [address, address, long, address, address, address, long]
    library.clm_move_rows.restype = None
    return library


def move_rows(arrays: Sequence[np.ndarray], source: np.ndarray, target: np.ndarray, runs: np.ndarray) -> None:
    """Row target[k] of every array [N, ...] becomes what row source[k] is by then, for k = 0, 1, ...; both [M] i32.

    runs [R + 1] i64 cut the list: no run may touch a row that another one reads or writes. IndexError for rows beyond N."""
    if len(source) == 0:
        return
    _check_rows(arrays, source, target)
    if runs[0] != 0 or runs[-1] != len(source) or len(source) != len(target):
        raise ValueError(f"runs from {runs[0]} to {runs[-1]} of {len(source)} moves")
    addresses, row_bytes = _addresses(arrays)
    _library().clm_move_rows(
        pointer(addresses, np.uint64, None),
        pointer(row_bytes, np.int64, None),
        len(arrays),
        pointer(source, np.int32, None),
        pointer(target, np.int32, None),
        pointer(runs, np.int64, None),
        len(runs) - 1,
    )


def _addresses(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Address and bytes of a row of each array."""
    addresses = np.array([array.ctypes.data for array in arrays], np.uint64)
    return addresses, np.array([array.strides[0] for array in arrays], np.int64)


def _check_rows(arrays: Sequence[np.ndarray], *lists: np.ndarray) -> None:
    shortest = min(map(len, arrays))
    for rows in lists:
        if rows.min() < 0 or rows.max() >= shortest:
            raise IndexError("a row that does not exist")
