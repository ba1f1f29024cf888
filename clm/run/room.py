"""Where a store is made before anything is known of what views see: in RAM where it fits, else over a few frames on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clm.formats.ordered import BUCKET_ROWS
from clm.plan.budget import CULL_BYTES, GROWTH_ROW_BYTES, PARAMETER_BYTES
from clm.store.arrays import row_bytes_of
from clm.store.frames import LEAST_FRAMES
from clm.store.layout import CHUNK_ROWS, PAGE_ROWS
from clm.store.store import Store

_MOST_FRAMES = 256  # while a store is made: who makes it needs memory, too


@dataclass(frozen=True)
class Room:
    """Bytes of host memory for rows, and the folder for those that it has no room for; None: there is none."""

    bytes: int
    scratch: Path | None
    everything: bool = False  # whether all rows go to disk, however few they are

    @property
    def bucket_rows(self) -> int:
        """Rows of a PLY that are held at once while they are brought into order."""
        return max(CHUNK_ROWS, min(BUCKET_ROWS, self.bytes // 8 // PARAMETER_BYTES))

    def frames(self, rows: int, moments: str | None, page_rows: int = PAGE_ROWS) -> int | None:
        """Pages of a store of so many rows that RAM holds at first; None: all."""
        growth = 0 if moments is None else GROWTH_ROW_BYTES
        fits = rows * (row_bytes_of(moments) + CULL_BYTES + growth) <= self.bytes
        if self.scratch is None or (fits and not self.everything):
            return None
        page = page_rows * row_bytes_of(moments)
        return max(LEAST_FRAMES, min(_MOST_FRAMES, (self.bytes - rows * CULL_BYTES) // 2 // page))

    def empty(self, rows: int, moments: str | None) -> Store:
        """An empty store with room for so many rows."""
        frames = self.frames(rows, moments)
        return Store(rows, moments=moments, frames=frames, scratch=self.scratch)

    def of_pages(self, fill: np.ndarray, moments: str, page_rows: int) -> Store:
        """`Store.of_pages`."""
        frames = self.frames(int(fill.sum()), moments, page_rows)
        return Store.of_pages(fill, moments=moments, page_rows=page_rows, frames=frames, scratch=self.scratch)
