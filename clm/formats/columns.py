"""Columns that lie one after the other in a file, each written and read at its own place, so that rows can stream."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import IO

import numpy as np


class ColumnWriter:
    """Writes `count` rows as columns, each of so many bytes a row, the first of which begins `start` bytes into the file."""

    def __init__(self, file: IO[bytes], start: int, widths: Sequence[int], count: int):
        file.flush()
        self._file, self._count, self._done = file.fileno(), count, 0
        self._widths, self._starts = list(widths), column_starts(start, widths, count)

    def write(self, columns: Sequence[np.ndarray]) -> None:
        """The next k rows of every column, each an array of k rows of its width."""
        rows = len(columns[0])
        for array, start, width in zip(columns, self._starts, self._widths, strict=True):
            if not width:
                continue
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            assert len(data) == rows * width and self._done + rows <= self._count
            write_at(self._file, data.data, start + self._done * width)
        self._done += rows

    def finish(self) -> int:
        """Rows written, which are all."""
        assert self._done == self._count
        return self._done


def column_starts(start: int, widths: Sequence[int], count: int) -> list[int]:
    """Where each column begins, in bytes."""
    return [start + count * sum(widths[:k]) for k in range(len(widths))]


def write_at(file: int, data: memoryview, at: int) -> None:
    """All of `data` at byte `at` of a descriptor."""
    while len(data):
        done = os.pwrite(file, data, at)
        data, at = data[done:], at + done


def read_at(file: int, count: int, at: int) -> np.ndarray:
    """`count` bytes [count] u8 from byte `at` of a descriptor, fewer where the file ends."""
    out = np.empty(count, np.uint8)
    done = 0
    while done < count:
        got = os.preadv(file, [out.data[done:]], at + done)
        if not got:
            break
        done += got
    return out[:done]
