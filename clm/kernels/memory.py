"""Row arrays for the kernels: aligned to cache lines, and staggered so that arrays walked together do not collide.

A large numpy array starts 16 bytes into a page. Rows of 192 bytes would then touch four cache lines instead of three, and
the same row of every array would fall on the same 4 KB offset, where loads wait for unrelated stores.
"""

from __future__ import annotations

from itertools import count

import numpy as np
from numpy.typing import DTypeLike

_LINE = 64  # bytes
_PAGE = 4096
_turn = count()


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
