"""Where rows are: the store on the host, resident pages and the arena on the device. Shared by lanes and rendering.

Invariant: a row of a resident page is read and updated on the device only, until `write_back` copies the pages that changed to the
store; where the device shares the host's memory its rows never leave the store, and a row's position is its id.
"""

from __future__ import annotations

import numpy as np

from clm.device.interface import Arena, Device, ResidentRows
from clm.plan.budget import resident_row_bytes
from clm.store.pages import pages_of
from clm.store.store import Store

_NOTHING, _EVERYTHING = np.zeros(0, np.int32), slice(None)
Choice = slice | np.ndarray  # picks some of a list of rows


class Tiers:
    """The store, which of its pages are resident [pages] bool, and the arena."""

    def __init__(
        self,
        device: Device,
        store: Store,
        resident_pages: np.ndarray,
        arena_slots: int,
        largest_view: int | None = None,
    ):
        """largest_view: rows that resident rows are worked on at a time (more are taken in turn), as the budget counts them;
        None: as many as the arena has slots."""
        if len(resident_pages) != store.pages:
            raise ValueError(f"{len(resident_pages)} flags for {store.pages} pages")
        self.device, self.store = device, store
        self.arena: Arena = device.arena(arena_slots)
        self.residents: ResidentRows | None = None
        self._at_once = arena_slots if largest_view is None else largest_view
        self.resident_row_bytes = resident_row_bytes(store.moments or "f32", device.shares_host_memory)
        self._settle_in(resident_pages)

    def _settle_in(self, resident_pages: np.ndarray) -> None:
        """Residents are the rows of these pages now. A device with memory of its own takes them from the store."""
        self.resident_pages = resident_pages
        self._ahead = np.zeros(len(resident_pages), bool)  # pages that the store does not have as the device has them
        fill = np.where(resident_pages, self.store.fill, 0).astype(np.int64)
        self.resident_rows = int(fill.sum())
        # A page's first position minus its first row: positions of its rows are their ids plus this.
        first = np.arange(len(fill), dtype=np.int64) * self.store.page_rows
        self._shift = np.cumsum(fill) - fill - first
        if self.resident_rows:
            # Where memory is shared, rows are resident where they are: nobody needs a list as long as the store.
            shared = self.device.shares_host_memory
            rows = _NOTHING if shared else self.store.rows_of(np.flatnonzero(resident_pages))
            self.residents = self.device.residents(self.store, rows, self._at_once)

    def update(self) -> None:
        """Pages of the store hold other rows now. New pages are resident where all others are; the arena stays."""
        everywhere = bool(self.resident_pages[self.store.fill[: len(self.resident_pages)] > 0].all())
        more = self.store.pages - len(self.resident_pages)
        self.residents = None  # the old memory is free before new memory is taken
        self.device.release_unused()
        self._settle_in(np.append(self.resident_pages, np.full(more, everywhere)) | everywhere)

    @property
    def rows_of_resident_pages(self) -> int:
        """Live rows of resident pages now; `resident_rows` is as of the last update."""
        flags = self.resident_pages
        return int(self.store.fill[: len(flags)][flags].sum())

    @property
    def resident_mask(self) -> np.ndarray:
        """[places] bool: which rows are resident."""
        return np.repeat(self.resident_pages, self.store.page_rows)[: self.store.places]

    @property
    def resident(self) -> ResidentRows:
        """The resident rows, where there are some."""
        assert self.residents is not None
        return self.residents

    @property
    def everything_resident(self) -> bool:
        return self.resident_rows == self.store.rows > 0

    def split(self, rows: np.ndarray) -> tuple[Choice, Choice]:
        """Which of `rows` [n] are on the host, and which are resident."""
        if self.residents is None:
            return _EVERYTHING, _NOTHING
        if self.everything_resident:
            return _NOTHING, _EVERYTHING
        resident = self.resident_pages[rows // self.store.page_rows]
        return np.flatnonzero(~resident), np.flatnonzero(resident)

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Where resident rows [n] lie in device memory, int32."""
        if self.device.shares_host_memory:
            return rows
        return (rows + self._shift[rows // self.store.page_rows]).astype(np.int32)

    def replace_arena(self, slots: int) -> None:
        """Another arena; the old one's memory is free before the new one is taken."""
        if slots != self.arena.slots:
            del self.arena
            self.device.release_unused()
            self.arena = self.device.arena(slots)

    def about_to_change(self, rows: np.ndarray) -> None:
        """Rows [n] (ascending ids) are updated from now on, wherever they are."""
        self._ahead[pages_of(rows, self.store.page_rows)] = True

    def write_back(self) -> None:
        """Make the store's arrays whole: before it is saved, written as a PLY, or rebuilt."""
        if self.residents is not None:
            self.residents.write_back(np.flatnonzero(self._ahead & self.resident_pages))
        self._ahead[:] = False

    @property
    def device_bytes(self) -> int:
        return self.arena.bytes + self.resident_rows * self.resident_row_bytes

    @property
    def host_bytes(self) -> int:
        """Bytes of the store in host memory: resident rows count where the device has memory of its own."""
        shared = self.resident_rows if self.device.shares_host_memory else 0
        return self.store.bytes - shared * self.resident_row_bytes
