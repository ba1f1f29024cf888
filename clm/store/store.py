"""The store: every row of the scene with both Adam moments and one step stamp per row, in host memory.

Invariants: the first `rows` entries of every array are live; `entries` bounds where each row can be drawn until its next
gradient; `bounds` follows `entries` per block of `block_rows` consecutive rows. A row's parameters are those of its stamp:
only `fetch` and `settle` know the exact ones. A store without moments (rendering) holds parameters and entries only.
A row's `keys` entry is its identity, whose lower bits are in its geometry, too.
Moments are f32 or bf16 (uint16, the upper half of the f32): only the row kernels read their values.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator

import numpy as np

from clm.kernels import rows as row_kernels
from clm.kernels.cull import block_bounds
from clm.kernels.memory import RowPages
from clm.kernels.permute import permute_rows
from clm.kernels.rows import AdamStep, StoreView
from clm.store.identity import first_keys, identity_floats
from clm.store.layout import BLOCK_ROWS, CHUNK_ROWS, COLOUR_COLUMNS, GEOMETRY_COLUMNS, IDENTITY

_PARAMETERS = {"geometry": GEOMETRY_COLUMNS, "colour": COLOUR_COLUMNS}
_MOMENTS = {
    "m_geometry": GEOMETRY_COLUMNS,
    "v_geometry": GEOMETRY_COLUMNS,
    "m_colour": COLOUR_COLUMNS,
    "v_colour": COLOUR_COLUMNS,
}
_MOVED_ROWS = 1 << 13  # at a time: 1.5 MB of the widest array
MOMENT_TYPES: dict[str, type] = {"f32": np.float32, "bf16": np.uint16}


class Store:
    """Rows on the host. `geometry` [N, 12], `colour` [N, 48], moments of the same shapes, `stamp` [N] i32, `keys` [N] u64,
    `statistics` [N, 2] (views that drew the row, summed screen gradient), `entries` [N, 4], `bounds` [blocks, 8]."""

    def __init__(self, capacity: int, *, moments: str | None = "f32", block_rows: int = BLOCK_ROWS):
        """moments: how both Adam moments are stored, a key of MOMENT_TYPES; None: not at all."""
        self._rows = self._written = 0  # rows from `_written` on were never live: their arrays are zero
        self.moments = moments
        self.block_rows = block_rows
        self.bounds = np.zeros((0, 8), np.float32)
        self._pages = {name: RowPages(capacity, width) for name, width in {**_PARAMETERS, "entries": 4}.items()}
        if moments is not None:
            for name, width in _MOMENTS.items():
                self._pages[name] = RowPages(capacity, width, MOMENT_TYPES[moments])
            self._pages["stamp"] = RowPages(capacity, 1, np.int32)
            self._pages["keys"] = RowPages(capacity, 1, np.uint64)
            self._pages["statistics"] = RowPages(capacity, 2)
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

    def __getattr__(self, name: str) -> np.ndarray:
        arrays = self.__dict__.get("_arrays", {})
        if name in arrays:
            return arrays[name][: self.rows]
        raise AttributeError(name)

    @property
    def rows(self) -> int:
        return self._rows

    @rows.setter
    def rows(self, rows: int) -> None:
        self._rows, self._written = rows, max(self._written, rows)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the per-row arrays that a checkpoint must hold; entries and bounds are recomputed from them."""
        return tuple(name for name in self._arrays if name != "entries")

    @property
    def capacity(self) -> int:
        return len(self._arrays["geometry"])

    @property
    def bytes(self) -> int:
        """Bytes of the live rows over all arrays."""
        return self.rows * self._row_bytes

    @property
    def blocks(self) -> int:
        return -(-self.rows // self.block_rows)

    def view(self) -> StoreView:
        """Addresses of the arrays as they are now."""
        if self._view is None:
            held = (field[0] for field in StoreView._fields_ if field[0] in self._arrays)
            addresses = {name: self._arrays[name].ctypes.data for name in held}
            item = 0 if self.moments is None else np.dtype(MOMENT_TYPES[self.moments]).itemsize
            self._view = StoreView(moment_bytes=item, **addresses)
        return self._view

    def reserve(self, rows: int) -> None:
        """Room for so many rows. Arrays taken from the store before are of no use afterwards."""
        if rows <= self.capacity:
            return
        capacity = max(rows, self.capacity + self.capacity // 2)
        self._view = None
        self._arrays.clear()
        for pages in self._pages.values():
            pages.grow(capacity)
        self._name_arrays()

    def append(self, geometry: np.ndarray, colour: np.ndarray, keys: np.ndarray | None = None) -> None:
        """Add rows at the tail with zero moments, stamps and statistics (as the in-core reference does for new rows).

        keys [K] u64; None: first rows, which are numbered in the order in which they come."""
        first, written = self.rows, self._written
        self.reserve(first + len(geometry))
        self.rows = first + len(geometry)
        self._arrays["geometry"][first : self.rows] = geometry
        self._arrays["colour"][first : self.rows] = colour
        for name in self._arrays.keys() - _PARAMETERS.keys():
            self._arrays[name][first : min(self.rows, written)] = 0  # zeros behind that take no memory yet
        if self.moments is not None:
            self._arrays["keys"][first : self.rows] = first_keys(first, self.rows) if keys is None else keys
            self.identify(first, self.rows)

    def identify(self, first: int, last: int) -> None:
        """Write the bits of their keys that rows first..last-1 carry in their geometry."""
        for at in range(first, last, CHUNK_ROWS):
            piece = slice(at, min(at + CHUNK_ROWS, last))
            self._arrays["geometry"][piece, IDENTITY] = identity_floats(self._arrays["keys"][piece])

    def take(self, order: np.ndarray) -> None:
        """Keep rows `order` [K] (ids, in the new order): fewer rows in ascending order, or all rows in any order.

        In place: besides the store this takes 4.2 bytes per row. ValueError for any other `order`."""
        if len(order) == self.rows:
            permute_rows([array[: self.rows] for array in self._arrays.values()], order)
            return
        if len(order) and (np.diff(order).min(initial=1) < 1 or order[0] < 0 or order[-1] >= self.rows):
            raise ValueError("rows to keep must be in the store, and ascend unless all of them are kept")
        moved = bisect_left(range(len(order)), 1, key=lambda i: order[i] - i)  # those before are where they belong
        for array in self._arrays.values():
            for first in range(moved, len(order), _MOVED_ROWS):
                # Rows only move towards the front, so what a piece overwrites was read by it or before.
                piece = order[first : first + _MOVED_ROWS]
                array[first : first + len(piece)] = array[piece]
        self.rows = len(order)
        self.release()

    def release(self) -> None:
        """Memory of rows that are no longer live goes back to the system."""
        for pages in self._pages.values():
            pages.release(self.rows)

    def refresh(self, step: AdamStep | None) -> None:
        """Recompute all cull entries and block bounds (after densification, loading, or a change of schedule)."""
        row_kernels.cull_entries(self, step, 0, self.rows, self.entries)
        self.bounds = np.zeros((self.blocks, 8), np.float32)
        block_bounds(self.entries, self.block_rows, self.bounds)

    def refresh_blocks(self, rows: np.ndarray) -> None:
        """Recompute the bounds of the blocks that hold `rows` (sorted ids)."""
        edges = np.searchsorted(rows, np.arange(self.blocks + 1, dtype=rows.dtype) * self.block_rows)
        blocks = np.flatnonzero(np.diff(edges)).astype(np.int32)
        block_bounds(self.entries, self.block_rows, self.bounds, blocks)

    def exact_chunks(self, step: AdamStep | None, size: int = CHUNK_ROWS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(geometry, colour) of all rows caught up to `step - 1`, `size` rows at a time; the store is not changed."""
        for first in range(0, self.rows, size):
            ids = np.arange(first, min(first + size, self.rows), dtype=np.int32)
            geometry = np.empty((len(ids), GEOMETRY_COLUMNS), np.float32)
            colour = np.empty((len(ids), COLOUR_COLUMNS), np.float32)
            row_kernels.fetch(self, step, ids, geometry, colour, COLOUR_COLUMNS)
            yield geometry, colour

    def _name_arrays(self) -> None:
        self._arrays.update((name, pages.array) for name, pages in self._pages.items())
        for name in self._arrays.keys() & {"stamp", "keys"}:
            self._arrays[name] = self._arrays[name].reshape(-1)
