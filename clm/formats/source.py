"""Rows in an input, by their numbers, and a store of them in another order than the input's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Protocol

import numpy as np

from clm.errors import ClmError, ResourceError
from clm.formats.ordered import in_order
from clm.formats.rows import Rows
from clm.progress import Report, counted, rows_of
from clm.store.layout import MEANS
from clm.store.order import plain_entries
from clm.store.paged import MOST_PLACES
from clm.store.store import Store

FAR = 1e5  # coordinates beyond are taken for georeferenced

Make = Callable[[int, str | None], Store]  # an empty store for so many rows, with such moments


class Source(Protocol):
    """Rows that a run can start from, by their numbers in the input."""

    def entries(self) -> np.ndarray:
        """Centre and bounding radius [N, 4] f32 of every row, a fresh array."""
        ...

    def chunks(self, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows `numbers` [n] i32, each named once, in that order, some at a time: geometry [k, 12] and colour [k, 48] f32."""
        ...


def in_ram(rows: int, moments: str | None) -> Store:
    """An empty store with room for so many rows in RAM."""
    return Store(rows, moments=moments)


def store_of(source: Source, order: np.ndarray, moments: str | None, make: Make, report: Report) -> Store:
    """A store of rows `order` [n] i32 of a source, in that order; a row's key is its number. Memory: a chunk."""
    store, done = make(len(order), moments), 0
    what = f"making {len(order):,} Gaussians"
    with ExitStack() as unless_done:
        unless_done.enter_context(closing(store))
        for geometry, colour in counted(source.chunks(order), what, len(order), "Gaussians", report, rows_of):
            last = done + len(geometry)
            store.append(geometry, colour, order[done:last].astype(np.uint64))
            done = last
        unless_done.pop_all()
    store.refresh_bounds(np.arange(store.pages, dtype=np.int32))
    return store


class FileSource:
    """The usable rows of a model in a file, which stay in the file until they are asked for."""

    def __init__(
        self,
        ply: Rows,
        offset: np.ndarray,
        scratch: Path,
        bucket_rows: int,
        warn: Callable[[str], None],
        report: Report,
    ):
        """offset [3] f64: subtracted from places that are far away. scratch, bucket_rows: of `in_order`."""
        self._ply, self._offset = ply, offset.astype(np.float32)
        self._scratch, self._bucket_rows, self._warn, self._report = scratch, bucket_rows, warn, report
        self._numbers: np.ndarray | None = None  # in the file, where some of its rows cannot be used
        self._far = False

    def entries(self) -> np.ndarray:
        ply, rows = self._ply, 0
        if ply.count > MOST_PLACES:
            raise ResourceError(
                f"{ply.path} holds {ply.count:,} Gaussians, and a store has room for {MOST_PLACES:,}.",
                "Take a part of it.",
            )
        entries, numbers = np.empty((ply.count, 4), np.float32), np.empty(ply.count, np.int32)
        pieces = ply.numbered()
        what = f"reading places in {ply.path.name}"
        for piece in counted(pieces, what, ply.count, "Gaussians", self._report, lambda piece: len(piece.numbers)):
            last = rows + len(piece.numbers)
            entries[rows:last], numbers[rows:last] = plain_entries(piece.geometry), piece.numbers
            rows = last
        for message in ply.messages:
            self._warn(message)
        if rows == 0:
            raise ClmError(f"{ply.path} holds no usable Gaussian.", "Start from another file, or without one.")
        # Georeferenced coordinates: float32 has metres of rounding there already.
        self._far = bool(np.abs(entries[:rows, :3]).max() > FAR)
        if self._far:
            entries[:rows, :3] -= self._offset
        if rows < ply.count:
            self._numbers = numbers[:rows].copy()
        return entries[:rows]

    def chunks(self, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        numbers = numbers if self._numbers is None else self._numbers[numbers]
        for geometry, colour in in_order(
            self._ply, numbers, self._scratch, self._report, bucket_rows=self._bucket_rows
        ):
            if self._far:
                geometry[:, MEANS] -= self._offset
            yield geometry, colour
