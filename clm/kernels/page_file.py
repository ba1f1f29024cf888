"""Typed face of the kernels that move pages between RAM and a file (source: `src/page_file.cpp`)."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np

from clm.kernels import load, pointer

i32, i64, u64 = np.int32, np.int64, np.uint64
ENDED_EARLY, OTHER_CHECKSUM = -1, -2  # beside numbers of the system's errors


class PageArrays(ctypes.Structure):
    """Addresses of arrays of rows and bytes of a row of each."""

    _fields_ = (
        ("arrays", ctypes.c_void_p),
        ("row_bytes", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("page_rows", ctypes.c_int64),
    )

    @classmethod
    def of(cls, arrays: list[np.ndarray], page_rows: int) -> PageArrays:
        """Of C-contiguous arrays [frames * page_rows, ...], which must not be moved while this is in use."""
        addresses = np.array([array.ctypes.data for array in arrays], u64)
        row_bytes = np.array([array.strides[0] for array in arrays], i64)
        made = cls(addresses.ctypes.data, row_bytes.ctypes.data, len(arrays), page_rows)
        made.kept = addresses, row_bytes, arrays  # type: ignore[attr-defined]
        return made


@cache
def _library() -> ctypes.CDLL:
    library = load()
    address, long = ctypes.c_void_p, ctypes.c_int64
    library.clm_swap_pages.argtypes = [ctypes.c_int, address, long, *[address] * 9]
    library.clm_swap_pages.restype = ctypes.c_int
    library.clm_places.argtypes = [address, long, address, long, address]
    library.clm_places.restype = None
    library.clm_page_runs.argtypes = [address, long, long, address, address]
    library.clm_page_runs.restype = long
    return library


def swap_pages(
    file: int,
    arrays: PageArrays,
    frames: np.ndarray,
    out: tuple[np.ndarray, np.ndarray, np.ndarray],
    come: tuple[np.ndarray, np.ndarray, np.ndarray],
    buffer: np.ndarray,
) -> tuple[int, int, bool]:
    """One after the other, for each of frames [K] i64: its rows go to the file, then others come into it. out and come: where
    in the file (bytes, multiples of 4096) [K] i64, how many rows [K] i32 (0: none go, or come), checksums [K] u64, which are
    written for those that go. buffer: 4096-aligned u8, for a page.

    Returns (error, entry, whether what had to go had gone): 0, a number of the system's errors, ENDED_EARLY or
    OTHER_CHECKSUM."""
    count, done = len(frames), np.zeros(2, i64)
    error = _library().clm_swap_pages(
        file,
        ctypes.byref(arrays),
        count,
        pointer(frames, i64, None),
        pointer(out[0], i64, count),
        pointer(out[1], i32, count),
        pointer(out[2], u64, count),
        pointer(come[0], i64, count),
        pointer(come[1], i32, count),
        pointer(come[2], u64, count),
        pointer(buffer, np.uint8, None),
        pointer(done, i64, None),
    )
    return int(error), int(done[0]), bool(done[1])


def page_runs(rows: np.ndarray, page_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Pages [A] i32 of rows [M] i32 (ascending, not once each), and where the rows of each begin [A] i64."""
    most = len(rows) and min(len(rows), int(rows[-1]) // page_rows - int(rows[0]) // page_rows + 1)
    pages, starts = np.empty(most, i32), np.empty(most, i64)
    count = _library().clm_page_runs(
        pointer(rows, i32, None), len(rows), page_rows, pointer(pages, i32, None), pointer(starts, i64, None)
    )
    return pages[:count], starts[:count]


def places(rows: np.ndarray, frame_of: np.ndarray, page_rows: int) -> np.ndarray:
    """Places [M] i32 of rows [M] i32, whose pages lie in frames frame_of [pages] i32."""
    at = np.empty(len(rows), i32)
    _library().clm_places(
        pointer(rows, i32, None), len(rows), pointer(frame_of, i32, None), page_rows, pointer(at, i32, None)
    )
    return at
