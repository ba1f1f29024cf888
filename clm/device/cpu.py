"""The CPU as a device: its memory is the host's, and a stream is the thread that uses it, so its work is done at once.

Staging has one buffer for both sides, copies between them are nothing, and resident rows are the store's own: what is
left of a device is the order of the work, which the lanes' threads keep by waiting for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from clm.device.interface import Arena, Event, Gradients, Moment, Rows, Staging
from clm.kernels import rows as row_kernels
from clm.kernels.memory import row_array
from clm.kernels.rows import AdamStep
from clm.store.store import Store

T = TypeVar("T")


class CpuStream:
    def wait(self, event: Event, why: str) -> None:
        """Nothing to wait for: an event is recorded after its work is done."""

    def run(self, work: Callable[..., T], *arguments: Any) -> T:
        return work(*arguments)

    def uses(self, array: np.ndarray) -> None:
        """It is there as long as somebody holds it."""

    def record(self) -> Moment:
        return Moment()


class CpuResidents:
    """Resident rows in the store's own arrays: a row's position is its id."""

    def __init__(self, store: Store):
        self._store = store

    def fetch(self, step: AdamStep, positions: np.ndarray, slots: np.ndarray, arena: Arena, columns: int) -> None:
        row_kernels.fetch(self._store, step, positions, arena.geometry, arena.colour, columns, slots, arena)

    def adam(
        self, step: AdamStep, positions: np.ndarray, slots: np.ndarray, arena: Arena, columns: int, entries: Staging
    ) -> None:
        fresh = entries.device[: 4 * len(positions)].reshape(-1, 4)
        row_kernels.adam(self._store, step, positions, arena, slots, columns, self._store.statistics, fresh)

    def write_back(self, pages: np.ndarray) -> None:
        """They are where they belong."""


class CpuDevice:
    kind = "cpu"
    shares_host_memory = True
    bf16 = np.uint16

    def stream(self, name: str) -> CpuStream:
        return CpuStream()

    def start_clock(self) -> None:
        """The host's clock runs anyway."""

    def free_memory(self) -> None:
        """It is the host's."""

    def held(self) -> int:
        return 0

    def release_unused(self) -> None:
        """Python has freed it already."""

    def arena(self, slots: int) -> Arena:
        return Arena(slots)

    def staging(self, floats: int) -> Staging:
        buffer = row_array(1, floats).reshape(-1)
        return Staging(buffer, buffer)

    def residents(self, store: Store, rows: np.ndarray, at_once: int) -> CpuResidents:
        return CpuResidents(store)

    def indices(self, lists: list[np.ndarray]) -> list[np.ndarray]:
        return [np.ascontiguousarray(ids, np.int32) for ids in lists]

    def numpy(self, array: np.ndarray) -> np.ndarray:
        return array

    def to_device(self, staging: Staging, floats: int) -> None:
        """One buffer for both sides."""

    def to_host(self, staging: Staging, floats: int) -> None:
        """One buffer for both sides."""

    def place(self, rows: Rows, slots: np.ndarray, arena: Arena, columns: int) -> None:
        row_kernels.place(rows, slots, arena.geometry, arena.colour, arena, columns)

    def collect(self, arena: Arena, slots: np.ndarray, target: Gradients, columns: int) -> None:
        row_kernels.move_gradients(arena, slots, target, None, len(slots), columns)

    def restore(self, source: Gradients, slots: np.ndarray, arena: Arena, columns: int) -> None:
        row_kernels.move_gradients(source, None, arena, slots, len(slots), columns)
