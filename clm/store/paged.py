"""Rows in pages, wherever they lie: how many of each page are live, where they can be drawn, and the ways to them.

A row's id is page * page_rows + place; the live places of a page are its first `fill`. Where the rows lie is up to `arrays`: in
RAM at their ids, or in frames over a file, so whoever reads or writes rows goes through `reach` or `sweep`.
Invariants: `entries` bounds where each row can be drawn until its next gradient; `bounds` follows `entries` per page; what lies
at free places is undefined.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from clm.errors import ResourceError
from clm.kernels.cull import block_bounds
from clm.kernels.memory import RowPages
from clm.kernels.page_file import page_runs
from clm.kernels.rows import StoreView
from clm.store.arrays import RowArrays, row_bytes_of
from clm.store.frames import LEAST_FRAMES, Frames
from clm.store.layout import CHUNK_ROWS, PAGE_ROWS
from clm.store.pages import live_rows

ENTRY_COLUMNS = 4
MOST_PLACES = 2**31 - 1  # ids are int32


class PagedRows:
    """Rows by page. By id: `entries` [places, 4]; by page: `fill` [pages] i32, `bounds` [pages, 8], `seen` [pages] bool: with a
    row that was drawn since statistics were cleared; `changed` [pages] bool: not as they were when whoever keeps copies of them
    cleared it. `arrays`: all else. Where all pages are in RAM, they are attributes of the store, too."""

    def __init__(
        self,
        capacity: int,
        *,
        moments: str | None = "f32",
        page_rows: int | None = None,
        frames: int | None = None,
        scratch: Path | None = None,
    ):
        """capacity: rows that there is room for. moments: how both Adam moments are stored, a key of MOMENT_TYPES; None: not
        at all. page_rows: PAGE_ROWS where it is None. frames: pages in RAM, the others lie in a file in the folder `scratch`;
        None: all of them are."""
        self.moments, self.page_rows = moments, page_rows or PAGE_ROWS
        self._rows = 0
        self.fill, self.seen = np.zeros(0, np.int32), np.zeros(0, bool)
        self.changed = np.zeros(0, bool)
        self.bounds = np.zeros((0, 8), np.float32)
        places = self._whole_pages(capacity)
        self._entries = RowPages(places, ENTRY_COLUMNS)
        if frames is None:
            self.arrays = RowArrays(places, moments, self.page_rows)
        else:
            assert scratch is not None, "frames are over a file"
            self.arrays = Frames(frames, moments, self.page_rows, scratch)

    def __getattr__(self, name: str) -> np.ndarray:
        arrays = self.__dict__.get("arrays")
        if arrays is not None and name in arrays.names and self.disk is None:
            values: np.ndarray = getattr(arrays, name)
            return values[: self.places]
        raise AttributeError(name)

    @property
    def disk(self) -> Frames | None:
        """The frames, where not all pages are in RAM."""
        return self.arrays if isinstance(self.arrays, Frames) else None

    @property
    def entries(self) -> np.ndarray:
        return self._entries.array[: self.places]

    @property
    def rows(self) -> int:
        """Live rows."""
        return self._rows

    @property
    def pages(self) -> int:
        return len(self.fill)

    @property
    def places(self) -> int:
        """Ids are below this: the live row with the largest id is the one before."""
        return (self.pages - 1) * self.page_rows + int(self.fill[-1]) if self.pages else 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the per-row arrays that a checkpoint must hold; entries and bounds are recomputed from them."""
        return self.arrays.names

    @property
    def capacity(self) -> int:
        return len(self._entries.array)

    @property
    def bytes(self) -> int:
        """Bytes of RAM: of the live rows over all arrays, and of what is left of the system's pages in which they end; of all
        frames and the cull entries where rows lie in a file."""
        partial = int((self.fill[:-1] % self.page_rows > 0).sum()) * mmap.PAGESIZE
        entry_bytes, row_bytes = 4 * ENTRY_COLUMNS, row_bytes_of(self.moments)
        if self.disk is not None:
            return self.disk.capacity * row_bytes + self.rows * entry_bytes + partial
        return self.rows * (row_bytes + entry_bytes) + partial * (len(self.names) + 1)

    def view(self) -> StoreView:
        """Addresses of the arrays as they are now."""
        return self.arrays.view()

    # ---- the rows ----

    def reach(self, rows: np.ndarray, changing: bool = False) -> Iterator[tuple[slice, RowArrays, np.ndarray]]:
        """Rows [n] (ascending ids, which may come more than once) part by part: which of them, the arrays, and the places [..] i32
        in them at which they lie. Their pages are in RAM until the next part is asked for. changing: rows are written."""
        if self.disk is None:
            yield slice(0, len(rows)), self.arrays, rows
            return
        pages, starts = page_runs(rows, self.page_rows)
        ends, most = np.append(starts[1:], len(rows)), self.arrays.most_pages
        for first in range(0, len(pages), most):
            held = pages[first : first + most]
            part = slice(int(starts[first]), int(ends[first + len(held) - 1]))
            with self.arrays.hold(held, changing):
                yield part, self.arrays, self.arrays.at(rows[part])

    def sweep(
        self, pages: np.ndarray | None = None, changing: bool = False, at_once: int = CHUNK_ROWS
    ) -> Iterator[tuple[np.ndarray, RowArrays]]:
        """(pages [A], arrays) a few pages of some [..] (ascending; all) at a time, about `at_once` places or one page. Each
        group is held until the next one is asked for, which is read meanwhile."""
        some = np.arange(self.pages, dtype=np.int32) if pages is None else np.asarray(pages, np.int32)
        some = some[self.fill[some] > 0]
        step = max(1, min(at_once // self.page_rows, self.arrays.most_pages))
        groups = [some[first : first + step] for first in range(0, len(some), step)]
        self.arrays.expect(groups)
        for k, group in enumerate(groups):
            with self.arrays.hold(group, changing):
                yield group, self.arrays
            self.arrays.passed(k)

    def sweep_rows(self, changing: bool = False, at_once: int = CHUNK_ROWS) -> Iterator[tuple[np.ndarray, RowArrays]]:
        """As `sweep`, with the ids [n] i32 of the live rows of the pages instead of the pages."""
        for pages, held in self.sweep(None, changing, at_once):
            yield self.rows_of(pages), held

    def live(self, at_once: int = CHUNK_ROWS) -> Iterator[np.ndarray]:
        """Ids of all live rows, ascending, [n] i32: those of a page or of `at_once` places at a time."""
        step = max(1, at_once // self.page_rows)
        for first in range(0, self.pages, step):
            ids = self.rows_of(np.arange(first, min(first + step, self.pages)))
            if len(ids):
                yield ids

    def rows_of(self, pages: np.ndarray) -> np.ndarray:
        """Ids [n] i32 of the live rows of some pages, page by page."""
        return live_rows(pages, self.fill[pages], self.page_rows)

    # ---- pages ----

    def reserve(self, rows: int) -> None:
        """Room for ids below `rows`. Arrays taken from the store before are of no use afterwards."""
        if rows <= self.capacity:
            return
        places = self._whole_pages(max(rows, min(self.capacity + self.capacity // 2, MOST_PLACES - self.page_rows)))
        self.arrays.reserve(places)
        self._entries.grow(places)

    def _have_pages(self, pages: np.ndarray) -> None:
        """Pages [A], of which some may be new: those have no live row yet."""
        count = int(pages[-1]) + 1 if len(pages) else 0
        if count * self.page_rows > MOST_PLACES:
            raise ResourceError(
                f"The store has room for {MOST_PLACES:,} Gaussians, free places included.",
                "Pass a smaller --max-gaussians.",
            )
        more = max(0, count - self.pages)
        if more:
            self.arrays.set_fill(np.arange(self.pages, count), np.zeros(more, np.int32))
            self.fill = np.append(self.fill, np.zeros(more, np.int32))
            self.seen, self.changed = (np.append(a, np.zeros(more, bool)) for a in (self.seen, self.changed))
            self.bounds = np.append(self.bounds, np.zeros((more, 8), np.float32), axis=0)

    def _set_fill(self, pages: np.ndarray, fill: np.ndarray) -> None:
        self._have_pages(pages)
        self._rows += int(fill.sum()) - int(self.fill[pages].sum())
        self.fill[pages] = fill
        self.changed[pages] = True
        self.arrays.set_fill(pages, fill)

    def refresh_bounds(self, pages: np.ndarray) -> None:
        """Recompute the bounds of pages [A]."""
        block_bounds(self.entries, self.page_rows, self.bounds, np.ascontiguousarray(pages, np.int32), self.fill)

    def keep_on_disk(self, frames: int, scratch: Path) -> None:
        """From now on so many pages are in RAM, the others in a file in the folder `scratch`. Nobody holds rows or has taken
        arrays. Raises ResourceError, before anything moves, where there is no room."""
        frames = max(frames, LEAST_FRAMES)
        if self.disk is None:
            self._move_to(Frames(frames, self.moments, self.page_rows, scratch))
        else:
            self.disk.resize(frames)

    def keep_in_ram(self) -> None:
        """From now on all pages are in RAM, and nothing is on disk."""
        if self.disk is not None:
            self.disk.resize(LEAST_FRAMES)
            self._move_to(RowArrays(self.capacity, self.moments, self.page_rows))

    def _move_to(self, after: RowArrays) -> None:
        """All rows to other arrays; those that had them let go of each page as it is there."""
        before = self.arrays
        with ExitStack() as unless_done:
            unless_done.enter_context(closing(after))
            after.set_fill(np.arange(self.pages), self.fill)
            for pages, _ in self.sweep(at_once=self.page_rows):
                rows = int(self.fill[pages[0]])
                with after.hold(pages, True):
                    here, there = (int(held.frames_of(pages)[0]) * self.page_rows for held in (before, after))
                    for source, target in zip(before.arrays, after.arrays, strict=True):
                        target[there : there + rows] = source[here : here + rows]
                before.release(pages, np.zeros(1, np.int32))
            after.note_written(np.arange(self.pages), self.fill)
            unless_done.pop_all()
        self.arrays = after
        before.close()

    def close(self) -> None:
        """The rows are of no use any more; what they took on a disk is free again."""
        self.arrays.close()

    def _whole_pages(self, rows: int) -> int:
        return -(-rows // self.page_rows) * self.page_rows
