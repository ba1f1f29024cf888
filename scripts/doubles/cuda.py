"""What `clm.device.cuda` uses of torch.cuda, without CUDA: streams do everything at once, memory is the host's."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any


class Event:
    def __init__(self, enable_timing: bool, blocking: bool):
        assert enable_timing and blocking, "the host sleeps while it waits"
        self.at: float | None = None

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        assert self.at is not None, "an event is recorded before anybody waits for it"

    def elapsed_time(self, other: Event) -> float:
        assert self.at is not None and other.at is not None
        return 1e3 * (other.at - self.at)


class Stream:
    def __init__(self, device: Any):
        self.waited: list[Event] = []

    def wait_event(self, event: Event) -> None:
        assert event.at is not None, "CUDA would not wait for an event that is not recorded"
        self.waited.append(event)


class Runtime:
    """cudart: registered ranges of host memory."""

    def __init__(self) -> None:
        self.registered: dict[int, int] = {}
        self.asked = self.code = 0

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        assert address not in self.registered
        self.asked += 1
        if self.code == 0:
            self.registered[address] = size
        return self.code

    def cudaHostUnregister(self, address: int) -> int:
        del self.registered[address]
        return 0


class Cuda:
    """What `CudaDevice` uses of torch.cuda."""

    def __init__(self) -> None:
        self.runtime, self.Event, self.Stream = Runtime(), Event, Stream
        self.free, self.reserved = 22 << 30, 0

    def cudart(self) -> Runtime:
        return self.runtime

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        yield

    def empty_cache(self) -> None:
        pass

    def mem_get_info(self, where: Any) -> tuple[int, int]:
        return self.free, 24 << 30

    def memory_reserved(self, where: Any) -> int:
        return self.reserved

    def memory_allocated(self, where: Any) -> int:
        return self.reserved
