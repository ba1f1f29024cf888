"""The store: every row of the scene with both Adam moments, a step stamp and a key per row, in pages of host memory.

A row's id is page * page_rows + place; the live places of a page are its first `fill`. Invariants: `entries` bounds where
each row can be drawn until its next gradient; `bounds` follows `entries` per page; what lies at free places is undefined. A
row's parameters are those of its stamp: only `fetch` and `settle` know the exact ones. A row's `keys` entry is its
identity, whose lower bits are in its geometry, too. A store without moments (rendering) holds parameters and entries only.
Moments are f32 or bf16 (uint16, the upper half of the f32): only the row kernels read their values.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator

import numpy as np

from clm.errors import ResourceError
from clm.kernels import rows as row_kernels
from clm.kernels.cull import block_bounds
from clm.kernels.grow import put_rows
from clm.kernels.memory import RowPages
from clm.kernels.permute import move_rows, permute_rows
from clm.kernels.rows import AdamStep, StoreView
from clm.store.growth import Growth
from clm.store.identity import first_keys, identity_floats
from clm.store.layout import CHUNK_ROWS, COLOUR_COLUMNS, GEOMETRY_COLUMNS, IDENTITY, PAGE_ROWS
from clm.store.pages import FreePages, Moves, live_rows, plan_growth, plan_merges

_PARAMETERS = {"geometry": GEOMETRY_COLUMNS, "colour": COLOUR_COLUMNS}
_MOMENTS = {
    "m_geometry": GEOMETRY_COLUMNS,
    "v_geometry": GEOMETRY_COLUMNS,
    "m_colour": COLOUR_COLUMNS,
    "v_colour": COLOUR_COLUMNS,
}
_GROUP_ROWS = 1 << 17  # of the pages that change at a time
MOST_PLACES = 2**31 - 1  # ids are int32
MOMENT_TYPES: dict[str, type] = {"f32": np.float32, "bf16": np.uint16}


class Store:
    """Rows on the host: `geometry` [places, 12], `colour` [places, 48], moments of the same shapes, `stamp` [places] i32,
    `keys` [places] u64, `statistics` [places, 2] (views that drew the row, summed screen gradient), `entries` [places, 4];
    `fill` [pages] i32, `bounds` [pages, 8], `seen` [pages] bool: pages with a row that was drawn since statistics were cleared;
    `changed` [pages] bool: pages that are not as they were when whoever keeps copies of them cleared it."""

    def __init__(self, capacity: int, *, moments: str | None = "f32", page_rows: int | None = None):
        """capacity: rows that there is room for. moments: how both Adam moments are stored, a key of MOMENT_TYPES; None: not
        at all. page_rows: PAGE_ROWS where it is None."""
        self.moments, self.page_rows = moments, page_rows or PAGE_ROWS
        self._rows = 0
        self.fill, self.seen = np.zeros(0, np.int32), np.zeros(0, bool)
        self.changed = np.zeros(0, bool)
        self._written = np.zeros(0, np.int32)  # the largest fill that each page ever had: places behind it are zero
        self._held = np.zeros(0, np.int32)  # the largest since its memory was given back
        self.bounds = np.zeros((0, 8), np.float32)
        places = self._whole_pages(capacity)
        self._memory = {name: RowPages(places, width) for name, width in {**_PARAMETERS, "entries": 4}.items()}
        if moments is not None:
            for name, width in _MOMENTS.items():
                self._memory[name] = RowPages(places, width, MOMENT_TYPES[moments])
            self._memory["stamp"] = RowPages(places, 1, np.int32)
            self._memory["keys"] = RowPages(places, 1, np.uint64)
            self._memory["statistics"] = RowPages(places, 2)
        self._arrays: dict[str, np.ndarray] = {}
        self._name_arrays()
        self._row_bytes = sum(a.itemsize * math.prod(a.shape[1:]) for a in self._arrays.values())
        self._view: StoreView | None = None

    @classmethod
    def from_rows(cls, geometry: np.ndarray, colour: np.ndarray, *, moments: str | None = "f32") -> Store:
        """A store holding copies of the given rows, with zero moments."""
        store = cls(len(geometry), moments=moments)
        store.append(geometry, colour)
        return store

    @classmethod
    def from_chunks(cls, count: int, chunks: Iterator[tuple[np.ndarray, np.ndarray]], *, moments: str | None) -> Store:
        """A store filled from streamed (geometry, colour) chunks of at most `count` rows in all."""
        store = cls(count, moments=moments)
        for geometry, colour in chunks:
            store.append(geometry, colour)
        return store

    @classmethod
    def of_pages(cls, fill: np.ndarray, *, moments: str | None, page_rows: int) -> Store:
        """A store with so many live rows in each page, all of them zero: what a checkpoint is read into."""
        store = cls(len(fill) * page_rows, moments=moments, page_rows=page_rows)
        store._set_fill(np.arange(len(fill)), fill)
        store._written = store.fill.copy()
        return store

    def __getattr__(self, name: str) -> np.ndarray:
        arrays = self.__dict__.get("_arrays", {})
        if name in arrays:
            return arrays[name][: self.places]
        raise AttributeError(name)

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
        return tuple(name for name in self._arrays if name != "entries")

    @property
    def capacity(self) -> int:
        return len(self._arrays["geometry"])

    @property
    def bytes(self) -> int:
        """Bytes of the live rows over all arrays, and of what is left of the system's pages in which they end."""
        partial = int((self.fill[:-1] % self.page_rows > 0).sum())
        return self.rows * self._row_bytes + partial * len(self._arrays) * mmap.PAGESIZE

    def view(self) -> StoreView:
        """Addresses of the arrays as they are now."""
        if self._view is None:
            held = (field[0] for field in StoreView._fields_ if field[0] in self._arrays)
            addresses = {name: self._arrays[name].ctypes.data for name in held}
            item = 0 if self.moments is None else np.dtype(MOMENT_TYPES[self.moments]).itemsize
            self._view = StoreView(moment_bytes=item, **addresses)
        return self._view

    def live(self, at_once: int = CHUNK_ROWS) -> Iterator[np.ndarray]:
        """Ids of all live rows, ascending, [n] i32: those of a page or of `at_once` places at a time."""
        step = max(1, at_once // self.page_rows)
        for first in range(0, self.pages, step):
            pages = np.arange(first, min(first + step, self.pages))
            ids = live_rows(pages, self.fill[pages], self.page_rows)
            if len(ids):
                yield ids

    def rows_of(self, pages: np.ndarray) -> np.ndarray:
        """Ids [n] i32 of the live rows of some pages, page by page."""
        return live_rows(pages, self.fill[pages], self.page_rows)

    def runs(self, at_once: int = CHUNK_ROWS) -> Iterator[slice]:
        """Ids of all live rows, ascending, as runs of at most `at_once` places or one page."""
        step = max(1, at_once // self.page_rows)
        first = 0
        while first < self.pages:
            last = first + 1  # pages that are full go together with the next one
            while last < self.pages and last - first < step and self.fill[last - 1] == self.page_rows:
                last += 1
            end = (last - 1) * self.page_rows + int(self.fill[last - 1])
            if end > first * self.page_rows:
                yield slice(first * self.page_rows, end)
            first = last

    # ---- rows that come and go ----

    def reserve(self, rows: int) -> None:
        """Room for ids below `rows`. Arrays taken from the store before are of no use afterwards."""
        if rows <= self.capacity:
            return
        places = self._whole_pages(max(rows, min(self.capacity + self.capacity // 2, MOST_PLACES - self.page_rows)))
        self._view = None
        self._arrays.clear()
        for memory in self._memory.values():
            memory.grow(places)
        self._name_arrays()

    def append(self, geometry: np.ndarray, colour: np.ndarray, keys: np.ndarray | None = None) -> None:
        """Add rows behind the last one, with zero moments, stamps and statistics (as the in-core reference does for new rows).

        keys [K] u64; None: first rows, which are numbered in the order in which they come."""
        first, count = self.places, len(geometry)
        self.reserve(first + count)
        pages = np.arange(first // self.page_rows, -(-(first + count) // self.page_rows))
        self._set_fill(pages, np.minimum(first + count - pages * self.page_rows, self.page_rows))
        for at in range(0, count, CHUNK_ROWS):
            piece, ids = slice(at, at + CHUNK_ROWS), slice(first + at, first + min(at + CHUNK_ROWS, count))
            theirs = first_keys(ids.start, ids.stop) if keys is None else keys[piece]
            rows = np.arange(ids.start, ids.stop, dtype=np.int32)
            mine, coloured = (np.ascontiguousarray(array[piece], np.float32) for array in (geometry, colour))
            self._put(rows, mine, coloured, theirs)
        self._note_written(pages)

    def reorder(self, order: np.ndarray) -> None:
        """Row i becomes what row order[i] [N] was. Every page but the last must be full.

        In place: besides the store this takes 4.2 bytes per row. ValueError for an `order` that loses a row."""
        if self.places != self.rows:
            raise ValueError("only rows without free places between them are put into another order")
        if len(order) != self.rows:
            raise ValueError(f"an order of {len(order)} rows for {self.rows}")
        self.changed[:] = True
        permute_rows([array[: self.rows] for array in self._arrays.values()], order)

    def apply(self, growth: Growth) -> np.ndarray:
        """Carry out a growth; returns the pages [A] i32 that changed, ascending: only they are read or written.

        Entries and bounds are those of the rows as they are now. Memory: children of a few pages at a time."""
        size = self.page_rows
        affected = np.union1d(growth.leave // size, growth.parents // size).astype(np.int32)
        free, changed = FreePages(np.flatnonzero(self.fill == 0).tolist(), self.pages), [affected]
        step = max(1, _GROUP_ROWS // size)
        for first in range(0, len(affected), step):
            pages = affected[first : first + step]
            ends = np.array([pages[0], pages[-1] + 1], np.int64) * size
            gone, come = (slice(*np.searchsorted(ids, ends)) for ids in (growth.leave, growth.parents))
            geometry, colour = growth.make(come)
            leave, parents = growth.leave[gone], growth.parents[come]
            moves = plan_growth(pages, self.fill[pages], leave, parents, self.entries, geometry, size, free)
            self._carry_out(moves)
            self._put(moves.children, geometry, colour, growth.keys[come])
            self._note_written(moves.pages)
            changed.append(moves.pages)
        pages = np.unique(np.concatenate(changed))
        self.refresh_bounds(pages)
        merges = plan_merges(self.fill, self.bounds, size)
        if len(merges.pages):
            self._carry_out(merges)
            self._note_written(merges.pages)
            self.refresh_bounds(merges.pages)
            pages = np.union1d(pages, merges.pages)
        self._release(pages)
        return pages.astype(np.int32)

    def _carry_out(self, moves: Moves) -> None:
        if len(moves.pages):
            self.reserve((int(moves.pages[-1]) + 1) * self.page_rows)
        move_rows(list(self._arrays.values()), moves.source, moves.target, moves.runs)
        self._set_fill(moves.pages, moves.fill)
        source, target = moves.source // self.page_rows, moves.target // self.page_rows
        self.seen[target[self.seen[source]]] = True

    def _set_fill(self, pages: np.ndarray, fill: np.ndarray) -> None:
        count = int(pages[-1]) + 1 if len(pages) else 0
        if count * self.page_rows > MOST_PLACES:
            raise ResourceError(
                f"The store has room for {MOST_PLACES:,} Gaussians, free places included.",
                "Pass a smaller --max-gaussians.",
            )
        more = max(0, count - self.pages)
        if more:
            new = np.zeros(more, np.int32)
            self.fill, self._written, self._held = (np.append(a, new) for a in (self.fill, self._written, self._held))
            self.seen, self.changed = (np.append(a, np.zeros(more, bool)) for a in (self.seen, self.changed))
            self.bounds = np.append(self.bounds, np.zeros((more, 8), np.float32), axis=0)
        self._rows += int(fill.sum()) - int(self.fill[pages].sum())
        self.fill[pages] = fill
        self.changed[pages] = True
        self._held[pages] = np.maximum(self._held[pages], fill)

    def _put(self, ids: np.ndarray, geometry: np.ndarray, colour: np.ndarray, keys: np.ndarray) -> None:
        """New rows at ids [K], which are live already, and their entries: all else of them is zero. Memory that was never
        written is not touched."""
        arrays, identified = self._arrays, None
        if self.moments is not None:
            identified = np.ascontiguousarray(keys), arrays["keys"], arrays["statistics"], self._written
        put_rows(self, ids, geometry, colour, arrays["entries"], self.page_rows, identified)

    def _note_written(self, pages: np.ndarray) -> None:
        self._written[pages] = np.maximum(self._written[pages], self.fill[pages])

    def identify(self) -> None:
        """Write the bits of their keys that all rows carry in their geometry."""
        for run in self.runs():
            self.geometry[run, IDENTITY] = identity_floats(self.keys[run])

    def _release(self, pages: np.ndarray) -> None:
        """Memory of places that became free goes back to the system."""
        for page in pages[self._held[pages] > self.fill[pages]].tolist():
            first, last = page * self.page_rows + int(self.fill[page]), (page + 1) * self.page_rows
            for memory in self._memory.values():
                memory.release(first, last)
        self._held[pages] = self.fill[pages]

    def settle(self, step: AdamStep) -> None:
        """Write every row back as it is after `step - 1`."""
        self.changed[:] = True
        for ids in self.live():
            row_kernels.settle(self, step, ids)

    # ---- what follows from the rows ----

    def refresh(self, step: AdamStep | None) -> None:
        """Recompute all cull entries and bounds (after loading, or a change of schedule)."""
        for ids in self.live():
            row_kernels.cull_entries(self, step, ids, self.entries)
        self.refresh_bounds(np.arange(self.pages, dtype=np.int32))

    def refresh_bounds(self, pages: np.ndarray) -> None:
        """Recompute the bounds of pages [A]."""
        block_bounds(self.entries, self.page_rows, self.bounds, np.ascontiguousarray(pages, np.int32), self.fill)

    def publish(self, rows: np.ndarray) -> None:
        """Entries of `rows` [n] (ascending ids) are new: their pages' bounds follow, and the pages count as seen."""
        edges = np.searchsorted(rows, np.arange(self.pages + 1, dtype=np.int64) * self.page_rows)
        pages = np.flatnonzero(np.diff(edges))
        self.seen[pages] = self.changed[pages] = True
        self.refresh_bounds(pages)

    def see_again(self) -> None:
        """Flags of the pages with drawn rows, from the statistics: after loading."""
        for run in self.runs():
            drawn = np.flatnonzero(self.statistics[run, 0]) + run.start
            self.seen[drawn // self.page_rows] = True

    def exact_chunks(self, step: AdamStep | None, size: int = CHUNK_ROWS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(geometry, colour) of all rows caught up to `step - 1`, about `size` rows at a time; the store is not changed."""
        for ids in self.live(size):
            geometry = np.empty((len(ids), GEOMETRY_COLUMNS), np.float32)
            colour = np.empty((len(ids), COLOUR_COLUMNS), np.float32)
            row_kernels.fetch(self, step, ids, geometry, colour, COLOUR_COLUMNS)
            yield geometry, colour

    def _whole_pages(self, rows: int) -> int:
        return -(-rows // self.page_rows) * self.page_rows

    def _name_arrays(self) -> None:
        self._arrays.update((name, memory.array) for name, memory in self._memory.items())
        for name in self._arrays.keys() & {"stamp", "keys"}:
            self._arrays[name] = self._arrays[name].reshape(-1)
