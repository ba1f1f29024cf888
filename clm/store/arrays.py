"""Arrays of rows: everything of a row but its cull entry. `RowArrays` keeps all pages in RAM; `frames.Frames` has the same face
for pages of which only some are in RAM.

Whoever reads or writes rows holds their pages meanwhile and works at the places that `at` says. In RAM holding is free, and
a row lies at its id.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from clm.kernels.memory import RowPages
from clm.kernels.numbers import STATISTICS
from clm.kernels.rows import StoreView
from clm.store.layout import COLOUR_COLUMNS, GEOMETRY_COLUMNS

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

MOMENT_TYPES: dict[str, type] = {"f32": np.float32, "bf16": np.uint16}
_EVERY_PAGE = 2**31 - 1


def columns_of(moments: str | None) -> dict[str, tuple[int, DTypeLike]]:
    """(width, type) of each array of rows, in the order in which files have them. moments: a key of MOMENT_TYPES; None: a
    store that only renders."""
    columns: dict[str, tuple[int, DTypeLike]] = {
        "geometry": (GEOMETRY_COLUMNS, np.float32),
        "colour": (COLOUR_COLUMNS, np.float32),
    }
    if moments is not None:
        kind = MOMENT_TYPES[moments]
        columns |= {f"{m}_geometry": (GEOMETRY_COLUMNS, kind) for m in "mv"}
        columns |= {f"{m}_colour": (COLOUR_COLUMNS, kind) for m in "mv"}
        columns |= {"stamp": (1, np.int32), "keys": (1, np.uint64), "statistics": (STATISTICS, np.float32)}
    return columns


def row_bytes_of(moments: str | None) -> int:
    """Bytes of a row in all of its arrays."""
    return sum(width * np.dtype(kind).itemsize for width, kind in columns_of(moments).values())


class RowArrays:
    """`geometry` [places, 12], `colour` [places, 48], moments of the same shapes, `stamp` [places] i32, `keys` [places] u64,
    `statistics` [places, 4]; which of them there are, `columns_of` says. What lies at free places is undefined."""

    geometry: np.ndarray
    colour: np.ndarray
    m_geometry: np.ndarray
    v_geometry: np.ndarray
    m_colour: np.ndarray
    v_colour: np.ndarray
    stamp: np.ndarray
    keys: np.ndarray
    statistics: np.ndarray

    def __init__(self, places: int, moments: str | None, page_rows: int):
        self.moments, self.page_rows = moments, page_rows
        self.names = tuple(columns_of(moments))
        self._memory = {name: RowPages(places, *kind) for name, kind in columns_of(moments).items()}
        self.written = np.zeros(0, np.int32)  # the largest fill that each page ever had: places behind it are zero
        self._held = np.zeros(0, np.int32)  # the largest since its memory was given back
        self._view: StoreView | None = None
        self._name_arrays()

    def _name_arrays(self) -> None:
        for name, memory in self._memory.items():
            array = memory.array
            setattr(self, name, array.reshape(-1) if name in ("stamp", "keys") else array)

    @property
    def arrays(self) -> list[np.ndarray]:
        return [getattr(self, name) for name in self.names]

    @property
    def capacity(self) -> int:
        """Places."""
        return len(self.geometry)

    def view(self) -> StoreView:
        """Addresses of the arrays as they are now."""
        if self._view is None:
            held = (field[0] for field in StoreView._fields_ if field[0] in self.names)
            addresses = {name: getattr(self, name).ctypes.data for name in held}
            item = 0 if self.moments is None else np.dtype(MOMENT_TYPES[self.moments]).itemsize
            self._view = StoreView(moment_bytes=item, **addresses)
        return self._view

    # ---- rows while they are held ----

    @property
    def most_pages(self) -> int:
        """How many pages can be held at once by one caller."""
        return _EVERY_PAGE

    @contextmanager
    def hold(self, pages: np.ndarray, changing: bool) -> Iterator[None]:
        """Have pages [A] (ascending) in RAM, where they stay until the end. changing: their rows are written."""
        yield

    def at(self, rows: np.ndarray) -> np.ndarray:
        """Places [M] i32 of rows [M] i32 of pages that are held."""
        return rows

    def frames_of(self, pages: np.ndarray) -> np.ndarray:
        """Where the rows of pages [A] begin, in pages: [A] i64."""
        return np.asarray(pages, np.int64)

    def expect(self, ticks: list[np.ndarray], after: int = 0) -> None:
        """Pages that will be held, in order: ticks[k] [A] ascending is the k-th after the first `after` that were expected."""

    def passed(self, tick: int) -> None:
        """The pages of a tick were held."""

    # ---- pages that come and go ----

    def reserve(self, places: int) -> None:
        """Room for so many places. Arrays taken before are of no use afterwards."""
        if places > self.capacity:
            self._shape(places)

    def _shape(self, places: int, anew: bool = False) -> None:
        """Arrays of so many places, not fewer than there were unless they are made `anew`."""
        self._view = None
        for name in self.names:
            delattr(self, name)  # pages under an array cannot move
        if anew:
            self._memory.clear()  # the old memory is free before new memory is taken
            self._memory = {name: RowPages(places, *kind) for name, kind in columns_of(self.moments).items()}
        for memory in self._memory.values():
            memory.grow(places)
        self._name_arrays()

    def reserve_pages(self, pages: int) -> None:
        """Room for so many pages, which `set_fill` makes. Raises ResourceError where there is none."""

    def set_fill(self, pages: np.ndarray, fill: np.ndarray) -> None:
        """Pages [A], maybe new ones, have fill [A] i32 live rows now."""
        more = (int(pages[-1]) + 1 if len(pages) else 0) - len(self._held)
        if more > 0:
            self.written, self._held = (np.append(a, np.zeros(more, np.int32)) for a in (self.written, self._held))
        self._held[pages] = np.maximum(self._held[pages], fill)

    def note_written(self, pages: np.ndarray, fill: np.ndarray) -> None:
        """All live rows of pages [A] are written."""
        self.written[pages] = np.maximum(self.written[pages], fill)

    def release(self, pages: np.ndarray, fill: np.ndarray) -> None:
        """Memory of places of pages [A] that became free goes back to the system."""
        shrunk = self._held[pages] > fill
        for page, rows in zip(pages[shrunk].tolist(), fill[shrunk].tolist(), strict=True):
            for memory in self._memory.values():
                memory.release(page * self.page_rows + rows, (page + 1) * self.page_rows)
        self._held[pages] = fill

    def clear_statistics(self, pages: np.ndarray) -> None:
        """Statistics of pages [A], which nobody holds, begin anew."""
        for page in pages.tolist():
            self.statistics[page * self.page_rows : (page + 1) * self.page_rows] = 0

    def close(self) -> None:
        """Nobody uses the rows any more."""
