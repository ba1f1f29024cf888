"""The arena: fixed slots on the device that rows are loaded into, each with a gradient row. Allocated once per size.

Invariant: which row sits in which slot is the plan's knowledge alone; the arena is just memory.
"""

from __future__ import annotations

from clm.gaussians.layout import COLOUR_COLUMNS, GEOMETRY_COLUMNS, GRAD_GEOMETRY_COLUMNS
from clm.kernels.memory import row_array
from clm.plan.budget import arena_bytes


class GradientBuffer:
    """A place for gradient rows: grad_geometry [n, 16] f32, grad_colour [n, 48] f32."""

    def __init__(self, rows: int):
        self.grad_geometry = row_array(rows, GRAD_GEOMETRY_COLUMNS)
        self.grad_colour = row_array(rows, COLOUR_COLUMNS)

    @property
    def rows(self) -> int:
        return len(self.grad_geometry)

    @property
    def bytes(self) -> int:
        return self.grad_geometry.nbytes + self.grad_colour.nbytes


class Arena(GradientBuffer):
    """Slots on the CPU device: geometry [S, 12] f32, colour [S, 48] f32 and their gradient rows."""

    def __init__(self, slots: int):
        super().__init__(slots)
        self.geometry = row_array(slots, GEOMETRY_COLUMNS)
        self.colour = row_array(slots, COLOUR_COLUMNS)

    @property
    def slots(self) -> int:
        return self.rows

    @property
    def bytes(self) -> int:
        return arena_bytes(self.slots)


class RowStaging:
    """Host buffer that gathered rows pass through on their way to the device."""

    def __init__(self, rows: int):
        self.geometry = row_array(rows, GEOMETRY_COLUMNS)
        self.colour = row_array(rows, COLOUR_COLUMNS)

    @property
    def rows(self) -> int:
        return len(self.geometry)

    @property
    def bytes(self) -> int:
        return self.geometry.nbytes + self.colour.nbytes
