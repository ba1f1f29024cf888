"""Row arrays for the kernels: aligned to cache lines, and staggered so that arrays walked together do not collide.

A large numpy array starts 16 bytes into a page. Rows of 192 bytes would then touch four cache lines instead of three, and
the same row of every array would fall on the same 4 KB offset, where loads wait for unrelated stores. `RowPages` are row
arrays that grow without a second copy of themselves, and give back what they no longer need.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from itertools import count

import numpy as np
from numpy.typing import DTypeLike

_LINE = 64  # bytes
_PAGE = 4096
_turn = count()
_PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_NORESERVE", 0)
_M_MMAP_THRESHOLD, _LARGE = -3, 4 << 20  # glibc's mallopt


def row_array(rows: int, width: int, dtype: DTypeLike = np.float32, *, zeroed: bool = False) -> np.ndarray:
    """[rows, width], C-contiguous, 64-byte aligned; each call starts at another offset within the page.

    `zeroed` maps zero pages lazily (capacity costs nothing until it is written); otherwise the content is undefined.
    """
    stagger = next(_turn) * 5 * _LINE % _PAGE
    make = np.zeros if zeroed else np.empty
    size = rows * width * np.dtype(dtype).itemsize
    raw = make(size + _PAGE + _LINE, np.uint8)
    start = -raw.ctypes.data % _LINE + stagger
    return raw[start : start + size].view(dtype).reshape(rows, width)


class RowPages:
    """A row array [rows, width] in pages of its own, zero until they are written, at 0 bytes of memory until then."""

    def __init__(self, rows: int, width: int, dtype: DTypeLike = np.float32):
        self._width, self._dtype = width, np.dtype(dtype)
        self._stagger = next(_turn) * 5 * _LINE % _PAGE
        self._map: mmap.mmap | None = None
        self.array = np.empty((0, width), self._dtype)
        self.grow(rows)

    def grow(self, rows: int) -> None:
        """Room for `rows`; new ones are zero. Linux moves the pages (unless an array over them is still held somewhere), so
        nothing is copied; elsewhere the array is copied once. `array` is another one afterwards."""
        size = self._stagger + max(1, rows) * self._width * self._dtype.itemsize
        before, self.array = self.array, np.empty((0, self._width), self._dtype)
        kept = before.shape[0]
        if sys.platform == "linux" and self._map is not None:
            del before  # pages under an array cannot move
            if hasattr(mmap, "MADV_NOHUGEPAGE"):
                # What grows has free places, which huge pages would fill. The whole map: the system moves equal parts only.
                self._map.madvise(mmap.MADV_NOHUGEPAGE)
            try:
                self._map.resize(size)
                self.array = self._over(self._map, rows)
                return
            except (BufferError, OSError, SystemError):
                before = self._over(self._map, kept)
        self._map = mmap.mmap(-1, size, flags=_PRIVATE) if _PRIVATE else mmap.mmap(-1, size)
        if size >= _LARGE and hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)  # as numpy does
        self.array = self._over(self._map, rows)
        self.array[:kept] = before

    def release(self, first: int, last: int) -> None:
        """Rows first..last-1 are not needed: whole pages of them go back to the system. Their content is undefined."""
        start, end = (self._stagger + row * self._width * self._dtype.itemsize for row in (first, last))
        start, end = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED") and start < end:
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)

    def _over(self, pages: mmap.mmap, rows: int) -> np.ndarray:
        flat = np.frombuffer(pages, self._dtype, rows * self._width, self._stagger)
        return flat.reshape(rows, self._width)


def return_freed_memory() -> None:
    """From now on large arrays that are freed go back to the system at once (glibc would keep up to 32 MB of each)."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _LARGE)


class Room:
    """Memory for rows of floats that is kept from use to use: what is large and new is cleared by the system each time."""

    def __init__(self) -> None:
        self._flat = np.empty(0, np.float32)

    def rows(self, count: int, columns: int) -> np.ndarray:
        """[count, columns] f32; what it gave before is of no use any more."""
        if count * columns > len(self._flat):
            self._flat = np.empty(count * columns * 5 // 4, np.float32)
        return self._flat[: count * columns].reshape(count, columns)
