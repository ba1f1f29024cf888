"""Partial gradients of rows that left the arena before their last use, kept on the host until the row comes back.

The sum of a row's gradient keeps its order: what it had is put back before the next view adds to it, bit for bit.
"""

from __future__ import annotations

import numpy as np

from clm.kernels import rows as row_kernels
from clm.kernels.memory import row_array
from clm.kernels.rows import GradientRows
from clm.store.layout import COLOUR_COLUMNS, GRAD_GEOMETRY_COLUMNS


class GradientBuffer:
    """A place on the host for gradient rows: grad_geometry [n, 16] f32, grad_colour [n, 48] f32."""

    def __init__(self, rows: int):
        self.grad_geometry = row_array(rows, GRAD_GEOMETRY_COLUMNS)
        self.grad_colour = row_array(rows, COLOUR_COLUMNS)

    @property
    def rows(self) -> int:
        return len(self.grad_geometry)

    @property
    def bytes(self) -> int:
        return self.grad_geometry.nbytes + self.grad_colour.nbytes


class ParkedGradients:
    """Grows by appending; a row parked again shadows its earlier place. Lives for one batch."""

    def __init__(self) -> None:
        # (buffer, sorted ids, latest place of each): one attribute, replaced whole, because the load lane looks rows up
        # while the send-back lane parks others. Places are never reused, so an older tuple stays right.
        self._state = GradientBuffer(0), np.zeros(0, np.int32), np.zeros(0, np.int32)
        self._used = 0

    @property
    def rows(self) -> np.ndarray:
        """Ids [K] i32, ascending, of all rows that were ever parked."""
        return self._state[1]

    def park(self, rows: np.ndarray, source: GradientRows, positions: np.ndarray, columns: int) -> None:
        """Copy the gradient rows at `positions` [K] of `source` away; `rows` [K] are their ids."""
        buffer, known, places = self._state
        end = self._used + len(rows)
        if end > buffer.rows:
            grown = GradientBuffer(max(end, 2 * buffer.rows))
            row_kernels.move_gradients(buffer, None, grown, None, self._used, columns)
            buffer = grown
        new = np.arange(self._used, end, dtype=np.int32)
        row_kernels.move_gradients(source, np.ascontiguousarray(positions), buffer, new, len(rows), columns)
        self._used = end
        # The first occurrence wins in np.unique, so the newest places go first.
        known, first = np.unique(np.concatenate([rows, known]), return_index=True)
        self._state = buffer, known, np.concatenate([new, places])[first]

    def copy_to(self, rows: np.ndarray, target: GradientRows, columns: int) -> None:
        """The gradients of parked rows [K], packed into `target` in their order."""
        buffer, known, places = self._state
        positions = np.ascontiguousarray(places[np.searchsorted(known, rows)])
        row_kernels.move_gradients(buffer, positions, target, None, len(rows), columns)
