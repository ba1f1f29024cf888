"""The store: every row of the scene with both Adam moments and one step stamp per row, in host memory.

Invariants: the first `rows` entries of every array are live; `entries` bounds where each row can be drawn until its next
gradient; `bounds` follows `entries` per block of `block_rows` consecutive rows. A row's parameters are those of its stamp:
only `fetch` and `settle` know the exact ones. A store without moments (rendering) holds parameters and entries only.
Moments are f32 or bf16 (uint16, the upper half of the f32): only the row kernels read their values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from clm.gaussians.layout import BLOCK_ROWS, CHUNK_ROWS, COLOUR_COLUMNS, GEOMETRY_COLUMNS
from clm.kernels import rows as row_kernels
from clm.kernels.cull import block_bounds
from clm.kernels.memory import row_array
from clm.kernels.rows import AdamStep, StoreView

_PARAMETERS = {"geometry": GEOMETRY_COLUMNS, "colour": COLOUR_COLUMNS}
_MOMENTS = {
    "m_geometry": GEOMETRY_COLUMNS,
    "v_geometry": GEOMETRY_COLUMNS,
    "m_colour": COLOUR_COLUMNS,
    "v_colour": COLOUR_COLUMNS,
}
MOMENT_TYPES: dict[str, type] = {"f32": np.float32, "bf16": np.uint16}


class Store:
    """Rows on the host. `geometry` [N, 12], `colour` [N, 48], moments of the same shapes, `stamp` [N] i32, `statistics`
    [N, 2] (views that drew the row, summed screen gradient), `entries` [N, 4], `bounds` [blocks, 8]."""

    def __init__(self, capacity: int, *, moments: str | None = "f32", block_rows: int = BLOCK_ROWS):
        """moments: how both Adam moments are stored, a key of MOMENT_TYPES; None: not at all."""
        self.rows = 0
        self.moments = moments
        self.block_rows = block_rows
        self.bounds = np.zeros((0, 8), np.float32)
        self._arrays: dict[str, np.ndarray] = {
            name: row_array(capacity, width, zeroed=True) for name, width in {**_PARAMETERS, "entries": 4}.items()
        }
        if moments is not None:
            for name, width in _MOMENTS.items():
                self._arrays[name] = row_array(capacity, width, MOMENT_TYPES[moments], zeroed=True)
            self._arrays["stamp"] = np.zeros(capacity, np.int32)
            self._arrays["statistics"] = row_array(capacity, 2, zeroed=True)
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

    def append(self, geometry: np.ndarray, colour: np.ndarray) -> None:
        """Add rows at the tail with zero moments, stamps and statistics (as the in-core reference does for new rows)."""
        first, self.rows = self.rows, self.rows + len(geometry)
        self._reserve(self.rows)
        self._arrays["geometry"][first : self.rows] = geometry
        self._arrays["colour"][first : self.rows] = colour
        for name in self._arrays.keys() - _PARAMETERS.keys():
            self._arrays[name][first : self.rows] = 0

    def take(self, order: np.ndarray) -> None:
        """Keep rows `order` [K] (ids, in the new order); K may be smaller than N. One array is copied at a time."""
        for name, array in self._arrays.items():
            array[: len(order)] = array[order] if len(order) else 0
            self._arrays[name] = array
        self.rows = len(order)

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

    def _reserve(self, rows: int) -> None:
        if rows <= self.capacity:
            return
        capacity = max(rows, self.capacity + self.capacity // 2)
        self._view = None
        for name, array in self._arrays.items():
            if array.ndim == 2:
                grown = row_array(capacity, array.shape[1], array.dtype, zeroed=True)
            else:
                grown = np.zeros(capacity, array.dtype)
            grown[: len(array)] = array
            self._arrays[name] = grown
