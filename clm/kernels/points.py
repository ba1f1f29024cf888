"""Typed face of the kernels that read COLMAP's points (source: `src/points.cpp`), a piece of the file at a time."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np

from clm.kernels import load, pointer


@cache
def _library() -> ctypes.CDLL:
    library = load()
    address, long = ctypes.c_void_p, ctypes.c_int64
    library.clm_points_of_records.argtypes = [address, long, long, *[address] * 4]
    library.clm_points_of_lines.argtypes = [address, long, *[address] * 4]
    library.clm_points_of_records.restype = library.clm_points_of_lines.restype = long
    return library


def _arrays(ids: np.ndarray, places: np.ndarray, colours: np.ndarray) -> tuple[ctypes.c_void_p, ...]:
    return (
        pointer(ids, np.uint64, None),
        pointer(places, np.float64, len(ids), 3),
        pointer(colours, np.uint8, len(ids), 3),
    )


def points_of_records(data: bytes, ids: np.ndarray, places: np.ndarray, colours: np.ndarray) -> tuple[int, int]:
    """Records of points3D.bin that begin in `data`, at most as many as there is room for, into ids [P] u64, places [P, 3] f64,
    colours [P, 3] u8; returns (how many, their bytes, which may be more than the data). No point: cut off, or damaged."""
    used = ctypes.c_int64()
    arrays = _arrays(ids, places, colours)
    count = _library().clm_points_of_records(data, len(data), len(ids), *arrays, ctypes.addressof(used))
    return count, used.value


def points_of_lines(text: bytes, ids: np.ndarray, places: np.ndarray, colours: np.ndarray) -> tuple[int, int]:
    """As `points_of_records`, of whole lines of points3D.txt; returns (how many points, lines read). -1 points: the line behind
    those is none of a point. There must be room for a point of every line."""
    if not text.endswith(b"\n") or len(ids) < text.count(b"\n"):
        raise ValueError("whole lines, and room for a point of each of them")
    used = ctypes.c_int64()
    arrays = _arrays(ids, places, colours)
    count = _library().clm_points_of_lines(text, len(text), *arrays, ctypes.addressof(used))
    return count, used.value
