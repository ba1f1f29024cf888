"""Device memory for the temporaries of operations on rows, taken once, so that none of them can run out of memory half-way."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from clm.plan.budget import DEVICE_ROWS, device_work_bytes

_ALIGNED = 16  # bytes: any vector load


class Workspace:
    """Device memory that the temporaries of `rows` rows are cut from, one behind the other; one per stream that works."""

    def __init__(self, rows: int, device: torch.device | str):
        """rows: worked on at a time, at most; DEVICE_ROWS where it is more."""
        self.rows = max(1, min(rows, DEVICE_ROWS))
        self._bytes = torch.empty(device_work_bytes(self.rows), dtype=torch.uint8, device=device)
        self._taken = 0

    def take(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory for a tensor, uninitialised; only within a `part`."""
        first, size = self._taken, math.prod(shape) * dtype.itemsize
        self._taken = first + -(-size // _ALIGNED) * _ALIGNED
        assert self._taken <= len(self._bytes), "DEVICE_ROW_WORK holds the temporaries of a row"
        return self._bytes[first : first + size].view(dtype).view(shape)

    @contextmanager
    def part(self) -> Iterator[None]:
        """What is taken inside is free again afterwards."""
        before = self._taken
        try:
            yield
        finally:
            self._taken = before

    def select(self, values: Tensor, ids: Tensor, dim: int = 0) -> Tensor:
        """`values.index_select(dim, ids)` for 1-D or 2-D values."""
        shape = list(values.shape)
        shape[dim] = len(ids)
        return torch.index_select(values, dim, ids, out=self.take(*shape, dtype=values.dtype))

    def copied(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """The values in another dtype; themselves where they have it."""
        return values if values.dtype == dtype else self.take(*values.shape, dtype=dtype).copy_(values)
