"""Staging between host and device: rows and gradients pass in parcels, through a few buffers that are taken in turn.

A parcel is at most `CHUNK_ROWS` rows, so what is page-locked, and its counterpart on the device, does not grow with the scene.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from clm.device.interface import Device, Event, Staging
from clm.plan.budget import staging_depth
from clm.store.layout import CHUNK_ROWS
from clm.stream.handover import Outcome


class Buffer:
    """One staging buffer, and what must have happened before it is written again."""

    def __init__(self, staging: Staging):
        self.staging = staging
        self.left: Event | None = None  # its rows are on the device
        self.read: Outcome[None] | None = None  # the host has used what came back in it


class Ring:
    """Buffers of one direction, taken in turn."""

    def __init__(self, device: Device, parcel_rows: int = CHUNK_ROWS):
        self._device, self._parcel_rows = device, parcel_rows
        self._buffers: list[Buffer] = []
        self._taken = 0

    def reserve(self, rows: int, floats: Callable[[int], int], in_turn: bool = True) -> None:
        """While no lane works: room for turns that move up to `rows` rows, of which `floats(n)` says how long n are. Each
        buffer gets a quarter more, up to a whole parcel. in_turn False: one buffer is enough."""
        # Within one memory nothing is under way while the next parcel is made.
        depth = staging_depth(rows, self._parcel_rows) if in_turn and not self._device.shares_host_memory else 1
        least = floats(min(rows, self._parcel_rows))
        sizes = [buffer.staging.floats for buffer in self._buffers]
        if least and (len(sizes) < depth or min(sizes) < least):
            size = max(min(least + least // 4, floats(self._parcel_rows)), *sizes, 0)
            self._buffers.clear()  # the old memory is free before new memory is taken
            self._buffers = [Buffer(self._device.staging(size)) for _ in range(max(depth, len(sizes)))]
        for buffer in self._buffers:
            buffer.left = buffer.read = None

    def parcels(self, count: int) -> Iterator[slice]:
        """Consecutive parts of `count` rows, each for one buffer."""
        for first in range(0, count, self._parcel_rows):
            yield slice(first, min(first + self._parcel_rows, count))

    def take(self) -> Buffer:
        self._taken += 1
        return self._buffers[self._taken % len(self._buffers)]

    @property
    def bytes(self) -> int:
        """Of one side."""
        return sum(buffer.staging.bytes for buffer in self._buffers)
