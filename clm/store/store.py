"""The store: every row of the scene with both Adam moments, a step stamp and a key per row, in pages (`paged`).

A row's parameters are those of its stamp: only `fetch` and `settle` know the exact ones. A row's `keys` entry is its identity,
whose lower bits are in its geometry, too. A store without moments (rendering) holds parameters and entries only. Moments are
f32 or bf16 (uint16, the upper half of the f32): only the row kernels read their values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from clm.kernels import rows as row_kernels
from clm.kernels.grow import put_rows
from clm.kernels.move import move_rows
from clm.kernels.rows import AdamStep
from clm.store.arrays import RowArrays
from clm.store.gifts import FreePages
from clm.store.growth import Growth
from clm.store.identity import first_keys, identity_floats
from clm.store.layout import CHUNK_ROWS, COLOUR_COLUMNS, GEOMETRY_COLUMNS, IDENTITY
from clm.store.paged import ENTRY_COLUMNS, PagedRows
from clm.store.pages import Moves, pages_of, plan_growth, plan_merges

_GROUP_ROWS = 1 << 17  # of the pages that change at a time


class Store(PagedRows):
    """Rows with what trains them: made, grown, settled."""

    @classmethod
    def from_rows(cls, geometry: np.ndarray, colour: np.ndarray, *, moments: str | None = "f32") -> Store:
        """A store holding copies of the given rows, with zero moments."""
        store = cls(len(geometry), moments=moments)
        store.append(geometry, colour)
        return store

    @classmethod
    def of_pages(
        cls,
        fill: np.ndarray,
        *,
        moments: str | None,
        page_rows: int,
        frames: int | None = None,
        scratch: Path | None = None,
    ) -> Store:
        """A store with so many live rows in each page, all of them to be written: what a checkpoint is read into."""
        store = cls(len(fill) * page_rows, moments=moments, page_rows=page_rows, frames=frames, scratch=scratch)
        store._set_fill(np.arange(len(fill)), fill)
        store.arrays.note_written(np.arange(len(fill)), store.fill)
        return store

    # ---- rows that come and go ----

    def append(self, geometry: np.ndarray, colour: np.ndarray, keys: np.ndarray | None = None) -> None:
        """Add rows behind the last one, with zero moments, stamps and statistics (as the in-core reference does for new rows).

        keys [K] u64; None: first rows, which are numbered in the order in which they come."""
        first, count = self.places, len(geometry)
        self.reserve(first + count)
        theirs = first_keys(first, first + count) if keys is None else keys
        pages = np.arange(first // self.page_rows, -(-(first + count) // self.page_rows))
        step = max(1, min(CHUNK_ROWS // self.page_rows, self.arrays.most_pages))
        for group in np.split(pages, range(step, len(pages), step)):
            last = min((int(group[-1]) + 1) * self.page_rows, first + count) if len(group) else first
            ids = np.arange(max(first, int(group[0]) * self.page_rows) if len(group) else first, last, dtype=np.int32)
            self._set_fill(group, np.minimum(last - group * self.page_rows, self.page_rows))
            piece = slice(int(ids[0]) - first, last - first) if len(ids) else slice(0, 0)
            with self.arrays.hold(group, True):
                self._put(ids, geometry[piece], colour[piece], theirs[piece])
            self.arrays.note_written(group, self.fill[group])

    def apply(self, growth: Growth) -> np.ndarray:
        """Carry out a growth; returns the pages [A] i32 that changed, ascending: only they are read or written.

        Entries and bounds are those of the rows as they are now. Memory: children of a few pages at a time."""
        size = self.page_rows
        affected = np.union1d(growth.leave // size, growth.parents // size).astype(np.int32)
        self._reserve_pages(affected, growth)
        free, changed = FreePages(np.flatnonzero(self.fill == 0).tolist(), self.pages), [affected]
        step = max(1, min(_GROUP_ROWS // size, self.arrays.most_pages // 4))
        groups = [affected[first : first + step] for first in range(0, len(affected), step)]
        self.arrays.expect(groups)
        for k, pages in enumerate(groups):
            ends = np.array([pages[0], pages[-1] + 1], np.int64) * size
            gone, come = (slice(*np.searchsorted(ids, ends)) for ids in (growth.leave, growth.parents))
            geometry, colour = growth.make(come)
            leave, parents = growth.leave[gone], growth.parents[come]
            fill, bounds = self.fill[pages], self.bounds[pages]
            moves = plan_growth(pages, fill, bounds, leave, parents, self.entries, geometry, size, free)
            self._carry_out(moves, geometry, colour, growth.keys[come])
            self.arrays.passed(k)
            changed.append(moves.pages)
        pages = np.unique(np.concatenate(changed))
        self.refresh_bounds(pages)
        merges = plan_merges(pages, self.fill, self.bounds, self.entries, size)
        if len(merges.pages):
            nothing = np.zeros((0, GEOMETRY_COLUMNS), np.float32), np.zeros((0, COLOUR_COLUMNS), np.float32)
            for moves in [merges] if self.disk is None else merges.by_run(size):
                self._carry_out(moves, *nothing, np.zeros(0, np.uint64))
            self.refresh_bounds(merges.pages)
            pages = np.union1d(pages, merges.pages)
        self.arrays.release(pages, self.fill[pages])
        return pages.astype(np.int32)

    def empty_pages(self, pages: np.ndarray) -> None:
        """The rows of pages [A] (ascending) are somewhere else now."""
        none = np.zeros(len(pages), np.int32)
        self._set_fill(pages, none)
        self.seen[pages] = False
        self.arrays.release(pages, none)
        self.refresh_bounds(pages)

    @contextmanager
    def filling(self, pages: np.ndarray, fill: np.ndarray) -> Iterator[RowArrays]:
        """Pages [A] (ascending) that are empty or new, with fill [A] rows, all of which are written inside."""
        self.arrays.reserve_pages(max(self.pages, int(pages[-1]) + 1))
        self.reserve((int(pages[-1]) + 1) * self.page_rows)
        self._set_fill(pages, fill.astype(np.int32))
        with self.arrays.hold(pages, True):
            yield self.arrays
        self.arrays.note_written(pages, self.fill[pages])

    def _reserve_pages(self, affected: np.ndarray, growth: Growth) -> None:
        """Room for the pages that a growth may make, or ResourceError, while the rows are as they were."""
        edges = np.append(affected, affected[-1:] + 1).astype(np.int64) * self.page_rows
        gone, come = (np.diff(np.searchsorted(ids, edges)) for ids in (growth.leave, growth.parents))
        share = (self.fill[affected] - gone + come) / self.page_rows
        parts = np.maximum(np.ceil(share), 1.0)
        self.arrays.reserve_pages(self.pages + int((parts - 1.0).sum()))

    def _carry_out(self, moves: Moves, geometry: np.ndarray, colour: np.ndarray, keys: np.ndarray) -> None:
        """Rows move, and children with this geometry [C, 12], colour [C, 48] and keys [C] u64 come to their places."""
        if len(moves.pages):
            self.reserve((int(moves.pages[-1]) + 1) * self.page_rows)
        self._have_pages(moves.pages)
        with self.arrays.hold(moves.pages, True):
            source, target = self.arrays.at(moves.source), self.arrays.at(moves.target)
            move_rows(self.arrays.arrays, source, target, moves.runs)
            move_rows([self._entries.array], moves.source, moves.target, moves.runs)
            self._set_fill(moves.pages, moves.fill)
            self._put(moves.children, geometry, colour, keys)
        self.arrays.note_written(moves.pages, moves.fill)
        left, came = moves.source // self.page_rows, moves.target // self.page_rows
        self.seen[came[self.seen[left]]] = True

    def _put(self, ids: np.ndarray, geometry: np.ndarray, colour: np.ndarray, keys: np.ndarray) -> None:
        """New rows at ids [K], which are live already and held, and their entries: all else of them is zero. Memory that was
        never written is not touched."""
        held, identified = self.arrays, None
        if self.moments is not None:
            identified = np.ascontiguousarray(keys), held.keys, held.statistics, held.written
        mine, coloured = (np.ascontiguousarray(array, np.float32) for array in (geometry, colour))
        put_rows(held, ids, held.at(ids), mine, coloured, self.entries, self.page_rows, identified)

    def identify(self) -> None:
        """Write the bits of their keys that all rows carry in their geometry."""
        for ids, held in self.sweep_rows(changing=True):
            at = held.at(ids)
            held.geometry[at, IDENTITY] = identity_floats(held.keys[at])

    # ---- every row ----

    def settle(
        self, step: AdamStep, then: Callable[[RowArrays, np.ndarray], None] | None = None, stamp: int | None = None
    ) -> None:
        """Write every row back as it is after `step - 1`; then(arrays, places [n]) changes some rows at a time further, and
        cull entries and bounds follow. stamp: of rows that ever had a gradient, under the tables of the next leg."""
        self.changed[:] = True
        for ids, held in self.sweep_rows(changing=True):
            at = held.at(ids)
            row_kernels.settle(held, step, at)
            if stamp is not None:
                held.stamp[at[held.stamp[at] > 0]] = stamp
            if then is not None:
                then(held, at)
                self._refresh_rows(step, ids, held)
        if then is not None:
            self.refresh_bounds(np.arange(self.pages, dtype=np.int32))

    def refresh(self, step: AdamStep | None) -> None:
        """Recompute all cull entries and bounds (after loading, or a change of schedule)."""
        for ids, held in self.sweep_rows():
            self._refresh_rows(step, ids, held)
        self.refresh_bounds(np.arange(self.pages, dtype=np.int32))

    def _refresh_rows(self, step: AdamStep | None, ids: np.ndarray, held: RowArrays) -> None:
        fresh = np.empty((len(ids), ENTRY_COLUMNS), np.float32)
        row_kernels.cull_entries(held, step, held.at(ids), fresh)
        row_kernels.put_entries(ids, fresh, self.entries)

    def publish(self, rows: np.ndarray) -> None:
        """Entries of `rows` [n] (ascending ids) are new: their pages' bounds follow, and the pages count as seen."""
        pages = pages_of(rows, self.page_rows)
        self.seen[pages] = self.changed[pages] = True
        self.refresh_bounds(pages)

    def see_again(self) -> None:
        """Flags of the pages with drawn rows, from the statistics: after loading."""
        for ids, held in self.sweep_rows():
            self.seen[ids[held.statistics[held.at(ids), 0] > 0] // self.page_rows] = True

    def exact_chunks(self, step: AdamStep | None, size: int = CHUNK_ROWS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(geometry, colour) of all rows caught up to `step - 1`, about `size` rows at a time; the store is not changed."""
        for ids, held in self.sweep_rows(at_once=size):
            geometry = np.empty((len(ids), GEOMETRY_COLUMNS), np.float32)
            colour = np.empty((len(ids), COLOUR_COLUMNS), np.float32)
            row_kernels.fetch(held, step, held.at(ids), geometry, colour, COLOUR_COLUMNS)
            yield geometry, colour
