"""A device for tests: memory of its own, and streams that run as late, or as early, as the waits admit.

`lazy`: work runs only when the host waits for something that needs it, and then nothing else runs. `eager`: work runs as
soon as its waits allow. `hasty loads`: so does the load stream, while the others are lazy. `random`: whenever something
runs, some of what else may run does too, from a seed. What nobody has written yet is NaN. Waits whose reason is in
`ignored` are not waited for; `reasons` collects all that were met.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from clm.device.cpu import CpuDevice
from clm.device.interface import Arena, Gradients, Rows, Staging
from clm.kernels import rows as row_kernels
from clm.kernels.memory import row_array
from clm.kernels.rows import AdamStep
from clm.store.store import Store

SCHEDULES = ("lazy", "eager", "hasty loads", "random")


class Deferred:
    """The result of work that may not have run."""

    value: Any = None

    def __float__(self) -> float:
        return float(self.value)


class FakeEvent:
    def __init__(self, stream: FakeStream, position: int):
        self.stream, self.position = stream, position

    def synchronize(self, why: str) -> None:
        self.stream.device.dawdle()
        if self.stream.device.heed(why):
            self.stream.device.drive(self)

    def seconds(self) -> float:
        assert self.stream.done >= self.position, "the host reads a time that the device has not reached"
        return self.stream.times[self.position]


class FakeStream:
    def __init__(self, device: FakeDevice, name: str):
        self.hasty = device.schedule in ("eager", "random") or (device.schedule, name) == ("hasty loads", "load")
        self.device, self.done, self.queued, self.stepping = device, 0, 0, False
        self.work: deque[Callable[[], None] | FakeEvent] = deque()
        self.times = [time.perf_counter()]

    def _queue(self, item: Callable[[], None] | FakeEvent) -> None:
        with self.device.lock:
            self.work.append(item)
            self.queued += 1
            self.device.idle()

    def wait(self, event: FakeEvent, why: str) -> None:
        if self.device.heed(why):
            self._queue(event)

    def run(self, work: Callable[..., Any], *arguments: Any) -> Deferred:
        result = Deferred()

        def carry_out() -> None:
            result.value = work(*arguments)

        self._queue(carry_out)
        return result

    def record(self) -> FakeEvent:
        return FakeEvent(self, self.queued)

    @property
    def ready(self) -> bool:
        """Whether its next item may run now."""
        if not self.work or self.stepping:
            return False
        item = self.work[0]
        return not isinstance(item, FakeEvent) or item.stream.done >= item.position

    def step(self) -> None:
        """Do the next item; work that it waits for is done first."""
        self.stepping = True
        item = self.work[0]
        if isinstance(item, FakeEvent):
            self.device.drive(item)
        else:
            item()
        self.work.popleft()
        self.done += 1
        self.times.append(time.perf_counter())
        self.stepping = False


class FakeResidents:
    """Rows copied to the device; the store's own are overwritten with NaN until they are written back."""

    def __init__(self, device: FakeDevice, store: Store, rows: np.ndarray):
        self.device, self.store, self.rows = device, store, rows
        self.here = Store.of_pages(np.array([len(rows)], np.int32), moments="f32", page_rows=len(rows))
        self.names = [name for name in store.names if name != "keys"]
        for name in self.names:
            getattr(self.here, name)[:] = getattr(store, name)[rows]
        self.before = {name: getattr(self.here, name).copy() for name in self.names}  # what the store has of them
        self._poison()

    def _poison(self) -> None:
        for name in self.names:
            values = getattr(self.store, name)
            values[self.rows] = np.nan if values.dtype == np.float32 else -1

    def fetch(self, step: AdamStep, positions: np.ndarray, slots: np.ndarray, arena: Arena, columns: int) -> None:
        within(slots, arena)
        row_kernels.fetch(self.here, step, positions, arena.geometry, arena.colour, columns, slots, arena)

    def adam(
        self, step: AdamStep, positions: np.ndarray, slots: np.ndarray, arena: Arena, columns: int, entries: Staging
    ) -> None:
        within(slots, arena)
        fresh = entries.device[: 4 * len(positions)].reshape(-1, 4)
        row_kernels.adam(self.here, step, positions, arena, slots, columns, self.here.statistics, fresh)

    def write_back(self, pages: np.ndarray) -> None:
        """Rows of other pages must be as they were."""
        written = np.isin(self.rows // self.store.page_rows, pages)
        for name in self.names:
            here, before = getattr(self.here, name), self.before[name]
            assert here[~written].tobytes() == before[~written].tobytes(), (
                f"{name}: a page that changed is not written back"
            )
            before[written] = here[written]
            getattr(self.store, name)[self.rows] = before


class FakeDevice(CpuDevice):
    shares_host_memory = False

    def __init__(self, schedule: str = "lazy", ignored: tuple[str, ...] = (), seed: int = 0, pause: float = 0.0):
        assert schedule in SCHEDULES
        self.schedule, self.ignored, self.lock = schedule, ignored, threading.RLock()
        self.pause = pause
        self.streams: list[FakeStream] = []
        self.reasons: set[str] = set()
        self._rng = np.random.default_rng(seed)

    def dawdle(self) -> None:
        """The host's update lane comes late to what it waits for, and to what it reads."""
        if threading.current_thread().name.startswith("update"):
            time.sleep(self.pause)

    def heed(self, why: str) -> bool:
        self.reasons.add(why)
        return why not in self.ignored

    def stream(self, name: str) -> FakeStream:
        self.streams.append(FakeStream(self, name))
        return self.streams[-1]

    def drive(self, event: FakeEvent) -> None:
        """Run what `event` needs, and in between what the schedule likes."""
        with self.lock:
            while event.stream.done < event.position:
                event.stream.step()
                if self.schedule == "random":
                    self.idle()

    def idle(self) -> None:
        """The device has a moment: hasty streams run all they can, at random some of it."""
        while True:
            ready = [stream for stream in self.streams if stream.hasty and stream.ready]
            if not ready or (self.schedule == "random" and self._rng.random() < 0.5):
                return
            ready[int(self._rng.integers(len(ready)))].step()

    def arena(self, slots: int) -> Arena:
        assert not any(stream.work for stream in self.streams), "memory is replaced while a stream still works with it"
        return Arena(slots, _nothing_yet)

    def staging(self, floats: int) -> Staging:
        return Staging(_nothing_yet(1, floats).reshape(-1), _nothing_yet(1, floats).reshape(-1))

    def residents(self, store: Store, rows: np.ndarray, at_once: int) -> FakeResidents:
        return FakeResidents(self, store, rows)

    def place(self, rows: Rows, slots: np.ndarray, arena: Arena, columns: int) -> None:
        super().place(rows, within(slots, arena), arena, columns)

    def collect(self, arena: Arena, slots: np.ndarray, target: Gradients, columns: int) -> None:
        super().collect(arena, within(slots, arena), target, columns)

    def restore(self, source: Gradients, slots: np.ndarray, arena: Arena, columns: int) -> None:
        super().restore(source, within(slots, arena), arena, columns)

    def to_device(self, staging: Staging, floats: int) -> None:
        staging.device[:floats] = staging.host[:floats]

    def to_host(self, staging: Staging, floats: int) -> None:
        staging.host[:floats] = staging.device[:floats]


def within(slots: np.ndarray, arena: Arena) -> np.ndarray:
    """The slots; an error where a run without a wait would write beside the arena, which may be another one by now."""
    assert not len(slots) or slots.max() < arena.slots, "beside the arena"
    return slots


def _nothing_yet(rows: int, columns: int) -> np.ndarray:
    array = row_array(rows, columns)
    array[:] = np.nan
    return array
