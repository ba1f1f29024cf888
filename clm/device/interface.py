"""What the lanes need of a device: streams of work, events between them, memory, and the few operations on it.

A stream runs its work in order; streams run beside each other and beside the host. Nothing waits unless it is told to:
`Stream.wait` makes later work of a stream wait for an event, `Event.synchronize` makes the host wait, and each says why.
The operations of a `Device` are called through `Stream.run` only. Three devices implement this: `cpu`, where a stream is
the thread that uses it; `cuda`; and the double of the tests, whose streams run as late, or as early, as the waits admit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from clm.kernels.memory import row_array
from clm.kernels.rows import AdamStep
from clm.store.layout import COLOUR_COLUMNS, GEOMETRY_COLUMNS, GRAD_GEOMETRY_COLUMNS
from clm.store.store import Store

T = TypeVar("T")
Array = Any  # [.., ..] f32 in device memory: numpy on the CPU, a torch tensor on CUDA
Indices = Any  # [n] ids or slots in device memory: int32 numpy on the CPU, an int64 tensor on CUDA


class Event(Protocol):
    """A point in a stream's work."""

    def synchronize(self, why: str) -> None:
        """The host waits until the stream has come here."""

    def seconds(self) -> float:
        """When it was reached, on the clock of `time.perf_counter`; only after the host has waited for it."""


class Moment:
    """An event on the host's own clock: a moment that has passed."""

    def __init__(self) -> None:
        self._seconds = time.perf_counter()

    def synchronize(self, why: str) -> None:
        """It has passed."""

    def seconds(self) -> float:
        return self._seconds


class Stream(Protocol):
    """Work in order, on the device, beside all other streams."""

    def wait(self, event: Event, why: str) -> None:
        """Work handed over from now on waits for `event`."""

    def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Hand over `work(*arguments)`. The result may still be on its way: only reading its value waits for it."""

    def uses(self, array: Array) -> None:
        """Memory of `array`, which was taken for another stream, stays until what was handed over so far is done."""

    def record(self) -> Event:
        """An event that is reached when everything handed over so far is done."""


class Rows(NamedTuple):
    """Parameters of rows in one place: geometry [n, 12], colour [n, >= active columns], f32; colours in staging may be bf16."""

    geometry: Array
    colour: Array


class Gradients(NamedTuple):
    """Gradient rows in one place: grad_geometry [n, 16], grad_colour [n, >= active columns], f32."""

    grad_geometry: Array
    grad_colour: Array


class Staging:
    """One contiguous buffer on the host and its counterpart on the device, `floats` long (the same memory on the CPU).

    Rows are packed: all geometry, then all active colour columns, so that one copy moves exactly what is needed."""

    def __init__(self, host: np.ndarray, device: Array):
        self.host, self.device = host, device

    @property
    def floats(self) -> int:
        return len(self.host)

    @property
    def bytes(self) -> int:
        """Of one side."""
        return self.host.nbytes


def row_floats(count: int, columns: int, bf16_colours: bool = False) -> int:
    """Floats of `count` packed rows with so many active colour columns; two bf16 values share one, the last may be alone."""
    colours = count * columns
    return count * GEOMETRY_COLUMNS + ((colours + 1) // 2 if bf16_colours else colours)


def gradient_floats(count: int, columns: int) -> int:
    """Floats of `count` packed gradient rows."""
    return count * (GRAD_GEOMETRY_COLUMNS + columns)


def packed_rows(flat: Array, count: int, columns: int, bf16: Any = None) -> Rows:
    """Views of the first `count` packed rows of a flat buffer. bf16: colours are packed as such, and this is their dtype in
    `flat`'s library (`np.uint16` on the host, `Device.bf16` there)."""
    if bf16 is None:
        return Rows(*_packed(flat, count, GEOMETRY_COLUMNS, columns))
    middle = count * GEOMETRY_COLUMNS
    colours = flat[middle:].view(bf16)[: count * columns]
    return Rows(flat[:middle].reshape(count, GEOMETRY_COLUMNS), colours.reshape(count, columns))


def packed_gradients(flat: Array, count: int, columns: int) -> Gradients:
    """Views of the first `count` packed gradient rows of a flat buffer."""
    return Gradients(*_packed(flat, count, GRAD_GEOMETRY_COLUMNS, columns))


def _packed(flat: Array, count: int, head: int, columns: int) -> tuple[Array, Array]:
    middle, end = count * head, count * (head + columns)
    return flat[:middle].reshape(count, head), flat[middle:end].reshape(count, columns)


class Arena:
    """Fixed slots in device memory, allocated once: parameters and a gradient row per slot.

    geometry [S, 12], colour [S, 48], grad_geometry [S, 16], grad_colour [S, 48], f32. Which row sits in which slot is the
    plan's knowledge alone."""

    def __init__(self, slots: int, empty: Callable[[int, int], Array] = row_array):
        self.slots = slots
        self.geometry = empty(slots, GEOMETRY_COLUMNS)
        self.colour = empty(slots, COLOUR_COLUMNS)
        self.grad_geometry = empty(slots, GRAD_GEOMETRY_COLUMNS)
        self.grad_colour = empty(slots, COLOUR_COLUMNS)

    @property
    def bytes(self) -> int:
        arrays = (self.geometry, self.colour, self.grad_geometry, self.grad_colour)
        return sum(a.shape[0] * a.shape[1] * 4 for a in arrays)


class ResidentRows(Protocol):
    """Rows of resident blocks in device memory: parameters, moments, stamps and statistics. `positions` [n] are theirs."""

    def fetch(self, step: AdamStep, positions: Indices, slots: Indices, arena: Arena, columns: int) -> None:
        """Catch rows up to `step - 1` into arena slots, colours rounded where the step says so, and zero their
        gradient rows; the resident rows do not change."""

    def adam(
        self, step: AdamStep, positions: Indices, slots: Indices, arena: Arena, columns: int, entries: Staging
    ) -> None:
        """Apply `step` with the gradients at the slots; new cull entries [n, 4] go to `entries`, on the device."""

    def write_back(self, pages: np.ndarray) -> None:
        """Copy the rows of pages [A] (ids, ascending) to the store's arrays on the host, and return when they are there. Rows of
        all other pages are there as they are here."""


class Device(Protocol):
    """Memory and operations; every operation is called through `Stream.run`."""

    kind: str  # "cpu" or "cuda"
    shares_host_memory: bool  # resident rows are the store's own arrays
    bf16: Any  # dtype of bf16 in its arrays; numpy has none and takes the bits as uint16

    def stream(self, name: str) -> Stream: ...
    def start_clock(self) -> None:
        """Called while the device is idle, at the start of a batch: `Event.seconds` counts from here."""

    def free_memory(self) -> tuple[int, int] | None:
        """(bytes that are free now, bytes in all); None: its memory is the host's."""

    def held(self) -> int:
        """Bytes that this process keeps from others, also those that its allocator has in reserve; 0 where nobody counts."""

    def release_unused(self) -> None:
        """Give memory that nobody holds any more back to the device."""

    def arena(self, slots: int) -> Arena: ...
    def staging(self, floats: int) -> Staging: ...
    def residents(self, store: Store, rows: np.ndarray, at_once: int) -> ResidentRows:
        """Copy store rows [n] (ids, ascending) to the device; position i holds rows[i] (position = id where memory is
        shared with the host). at_once: rows that workspaces are made for; more are worked on in turn."""

    def indices(self, lists: list[np.ndarray]) -> list[Indices]:
        """Ids and slots, on the device (the one operation that is called outside a stream)."""

    def numpy(self, array: Array) -> np.ndarray:
        """The array on the host; waits for what makes it."""

    def to_device(self, staging: Staging, floats: int) -> None: ...
    def to_host(self, staging: Staging, floats: int) -> None: ...
    def place(self, rows: Rows, slots: Indices, arena: Arena, columns: int) -> None:
        """Scatter rows into slots, bf16 colours expanded, and zero their gradient rows."""

    def collect(self, arena: Arena, slots: Indices, target: Gradients, columns: int) -> None:
        """Gather the gradient rows at `slots`."""

    def restore(self, source: Gradients, slots: Indices, arena: Arena, columns: int) -> None:
        """Put gradient rows back to `slots`."""
