"""Where rows are: the store on the host, resident blocks and the arena on the device. Shared by lanes and rendering.

Invariant: a row of a resident block is read and updated on the device only, until `write_back` copies it to the store;
where the device shares the host's memory its rows never leave the store, and a row's position is its id.
"""

from __future__ import annotations

import numpy as np

from clm.device.interface import Arena, Device, ResidentRows
from clm.plan.budget import resident_row_bytes
from clm.store.store import Store

_NOTHING, _EVERYTHING = np.zeros(0, np.int32), slice(None)
Choice = slice | np.ndarray  # picks some of a list of rows


class Tiers:
    """The store [N rows], which of its blocks are resident [blocks] bool, and the arena."""

    def __init__(
        self,
        device: Device,
        store: Store,
        resident_blocks: np.ndarray,
        arena_slots: int,
        largest_view: int | None = None,
    ):
        """largest_view: rows that resident rows are worked on at a time (more are taken in turn), as the budget counts them;
        None: as many as the arena has slots."""
        if len(resident_blocks) != store.blocks:
            raise ValueError(f"{len(resident_blocks)} flags for {store.blocks} blocks")
        self.device, self.store, self.resident_blocks = device, store, resident_blocks
        self.arena: Arena = device.arena(arena_slots)
        self.residents: ResidentRows | None = None
        self.resident_rows = 0
        self.resident_row_bytes = resident_row_bytes(store.moments or "f32", device.shares_host_memory)
        if resident_blocks.any():
            rows = np.flatnonzero(self.resident_mask).astype(np.int32)
            at_once = arena_slots if largest_view is None else largest_view
            self.residents, self.resident_rows = device.residents(store, rows, at_once), len(rows)
        # A block's first position minus its first row: positions of its rows are their ids plus this.
        before = np.cumsum(resident_blocks) - resident_blocks
        self._shift = ((before - np.arange(len(resident_blocks))) * store.block_rows).astype(np.int32)

    @property
    def resident_mask(self) -> np.ndarray:
        """[N] bool: which rows are resident."""
        return np.repeat(self.resident_blocks, self.store.block_rows)[: self.store.rows]

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
        resident = self.resident_blocks[rows // self.store.block_rows]
        return np.flatnonzero(~resident), np.flatnonzero(resident)

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Where resident rows [n] lie in device memory, int32."""
        if self.device.shares_host_memory:
            return rows
        return rows + self._shift[rows // self.store.block_rows]

    def replace_arena(self, slots: int) -> None:
        """Another arena; the old one's memory is free before the new one is taken."""
        if slots != self.arena.slots:
            del self.arena
            self.device.release_unused()
            self.arena = self.device.arena(slots)

    def write_back(self) -> None:
        """Make the store's arrays whole: before it is saved, written as a PLY, or rebuilt."""
        if self.residents is not None:
            self.residents.write_back()

    @property
    def device_bytes(self) -> int:
        return self.arena.bytes + self.resident_rows * self.resident_row_bytes

    @property
    def host_bytes(self) -> int:
        """Bytes of the store in host memory: resident rows count where the device has memory of its own."""
        shared = self.resident_rows if self.device.shares_host_memory else 0
        return self.store.bytes - shared * self.resident_row_bytes
