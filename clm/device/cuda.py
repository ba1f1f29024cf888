"""A CUDA device: streams and events of torch, registered host memory for staging, row operations as torch indexing.

Copies between host and device run beside the computation because they have streams of their own and because staging is
page-locked where it lies (registered: exactly as large as it is, while torch's own pinned memory rounds up to powers of
two). Where a system refuses that (WSL2, some containers) staging is pinned memory, and where it refuses both, ordinary
memory: slower, never wrong. Nothing here waits for the device but `numpy`, `indices` (for its own small copy) and
`start_clock` (while it is idle), and the host sleeps while it waits for an event: the kernels need its cores.

torch's allocator keeps freed memory for the stream that was current when it was allocated, and hands it out again at once.
Hence two rules: there is one stream per name, so that a pool is never left behind by a stream that nobody uses any more;
and what several streams use (arena, staging, resident rows, index lists) is freed only while the lanes are idle.
All of `torch.cuda` that is used comes through `cuda`, so that tests can run the rest on CPU tensors.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from clm.device.cuda_adam import adam_rows, fetch_rows
from clm.device.cuda_tables import DeviceAdam, DeviceStep
from clm.device.interface import Arena, Event, Gradients, Rows, Staging
from clm.device.workspace import Workspace
from clm.errors import OutOfDeviceMemory, ResourceError
from clm.kernels.rows import AdamStep
from clm.plan.budget import device_work_bytes
from clm.store.arrays import RowArrays
from clm.store.layout import CHUNK_ROWS
from clm.store.store import Store
from clm.units import format_bytes

T = TypeVar("T")
_COPIED = ("geometry", "colour", "m_geometry", "v_geometry", "m_colour", "v_colour", "stamp", "statistics")  # of a row


class CudaEvent:
    def __init__(self, device: CudaDevice, event: Any):
        self._device, self.event = device, event

    def synchronize(self, why: str) -> None:
        self.event.synchronize()

    def seconds(self) -> float:
        return self._device.seconds(self.event)


class CudaStream:
    def __init__(self, device: CudaDevice):
        self._device = device
        self._stream = device.cuda.Stream(device=device.where)

    def wait(self, event: Event, why: str) -> None:
        assert isinstance(event, CudaEvent)
        self._stream.wait_event(event.event)

    def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Raises OutOfDeviceMemory, outside the handler: its context would keep the memory of `work` (see gsplat.py)."""
        try:
            with self._device.cuda.stream(self._stream):
                return work(*arguments)
        except torch.OutOfMemoryError:
            pass
        raise OutOfDeviceMemory(
            "The device ran out of memory while rows were moved or updated.",
            "Pass a smaller --gpu-memory, or end other programs that use the device.",
        )

    def uses(self, array: Tensor) -> None:
        if array.is_cuda:
            array.record_stream(self._stream)

    def record(self) -> CudaEvent:
        event = self._device.event()
        event.record(self._stream)
        return CudaEvent(self._device, event)


class CudaStaging(Staging):
    """Host memory as torch sees it beside the numpy view: copies from page-locked memory do not wait."""

    def __init__(self, host: np.ndarray, device: Tensor, host_tensor: Tensor | None = None):
        super().__init__(host, device)
        self.host_tensor = torch.from_numpy(host) if host_tensor is None else host_tensor


class CudaResidents:
    """Rows on the device with moments, stamps and statistics, [n, ..]; `rows` are their ids in the store, ascending.

    All memory that catching up and Adam ever need is taken here, so a step never runs out of it half-way."""

    geometry: Tensor
    colour: Tensor
    m_geometry: Tensor
    v_geometry: Tensor
    m_colour: Tensor
    v_colour: Tensor
    stamp: Tensor
    statistics: Tensor

    def __init__(self, device: CudaDevice, store: Store, rows: np.ndarray, at_once: int):
        self._device, self._store, self._rows = device, store, rows
        self._adam: DeviceAdam | None = None
        self._steps: dict[tuple[int, float, bool, float], DeviceStep] = {}
        for name in _COPIED:
            values = getattr(store.arrays, name)
            dtype = torch.int32 if values.dtype == np.int32 else torch.float32
            setattr(self, name, device.empty((len(rows), *values.shape[1:]), dtype, "resident Gaussians"))
        for here, held, there in self._pieces(np.arange(len(rows)), changing=False):
            for name in _COPIED:  # returns when it has arrived: any stream may read it
                getattr(self, name)[here].copy_(_widened(getattr(held, name)[there]))
        # Two, because rows are caught up on one stream while others are updated on another.
        self._fetching, self._updating = (device.workspace(min(at_once, len(rows))) for _ in range(2))

    def _pieces(self, positions: np.ndarray, changing: bool) -> Iterator[tuple[slice, RowArrays, slice | np.ndarray]]:
        """(positions, arrays that hold the rows, their places there) of runs of consecutive rows at positions [n] (ascending),
        CHUNK_ROWS at most: the one way to the store's rows, of which a few are held at a time."""
        edges = np.flatnonzero((np.diff(self._rows[positions]) != 1) | (np.diff(positions) != 1)) + 1
        for run in np.split(positions, edges):
            for first in range(0, len(run), CHUNK_ROWS):
                some = self._rows[run[first : first + CHUNK_ROWS]]
                for part, held, at in self._store.reach(some, changing):
                    begin = int(run[first]) + part.start
                    together = bool((np.diff(at) == 1).all())  # in RAM; pages in frames may lie apart
                    yield (
                        slice(begin, begin + len(at)),
                        held,
                        slice(int(at[0]), int(at[-1]) + 1) if together else at,
                    )

    def _at(self, step: AdamStep) -> DeviceStep:
        """The step's constants; the tables of a run are uploaded once."""
        if self._adam is None:
            self._adam = DeviceAdam(step.tables, self._device.where)
        key = step.step, step.gradient_scale, bool(step.bf16_colours), step.variance_until
        if key not in self._steps:
            self._steps = {key: self._adam.at(step.step, round(1.0 / step.gradient_scale), *key[2:])}
        return self._steps[key]

    def fetch(self, step: AdamStep, positions: Tensor, slots: Tensor, arena: Arena, columns: int) -> None:
        fetch_rows(self, self._at(step), positions, arena.geometry, arena.colour, columns, slots, self._fetching)
        _zero_gradients(arena, slots, columns)

    def adam(
        self, step: AdamStep, positions: Tensor, slots: Tensor, arena: Arena, columns: int, entries: Staging
    ) -> None:
        fresh = entries.device[: 4 * len(positions)].view(-1, 4)
        adam_rows(self, self._at(step), positions, arena, slots, columns, self.statistics, fresh, self._updating)

    def write_back(self, pages: np.ndarray) -> None:
        wanted = self._rows // self._store.page_rows
        positions = np.flatnonzero(np.isin(wanted, pages, kind="table"))
        for here, held, there in self._pieces(positions, changing=True):
            for name in _COPIED:
                values = getattr(held, name)
                values = values.view(np.int16) if values.dtype == np.uint16 else values  # torch knows their bits so
                rows = values[there]
                fresh = _narrowed(getattr(self, name)[here], values.dtype)
                torch.from_numpy(rows).copy_(fresh)  # waits: the store is read next
                if not isinstance(there, slice):
                    values[there] = rows


def _widened(values: np.ndarray) -> Tensor:
    """A row array of the store; bf16 moments (their bits as uint16) become f32, which the device keeps."""
    if values.dtype == np.uint16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16).float()
    return torch.from_numpy(values)


def _narrowed(values: Tensor, dtype: np.dtype) -> Tensor:
    """Back to what the store keeps; bits of bf16 as int16, rounded to nearest: this happens once per rebuild, not per step."""
    return values.to(torch.bfloat16).view(torch.int16) if dtype == np.int16 else values


class CudaDevice:
    kind = "cuda"
    shares_host_memory = False
    bf16 = torch.bfloat16

    def __init__(self, cuda: Any = torch.cuda, where: str = "cuda", say: Callable[[str], None] = lambda text: None):
        """say: hears once what is slower than it should be here."""
        self.cuda, self.where, self._say = cuda, torch.device(where), say
        self._lock_pages: Callable[[int], CudaStaging | None] = self._registered
        self._streams: dict[str, CudaStream] = {}
        self._index_stream = self.stream("indices")
        self.start_clock()

    def stream(self, name: str) -> CudaStream:
        """The stream of that name, made once: the allocator's pools belong to streams, and the 33rd stream that torch makes
        is the first one again, so that lanes would wait for each other unseen."""
        if name not in self._streams:
            self._streams[name] = CudaStream(self)
        return self._streams[name]

    def event(self) -> Any:
        """blocking: who waits for it sleeps. CUDA's default is to spin, which takes a core from Adam and gathering."""
        return self.cuda.Event(enable_timing=True, blocking=True)

    def start_clock(self) -> None:
        """Event times are single-precision milliseconds since this event, so it is set anew for every batch."""
        self._origin = self.event()
        self._origin.record()
        self._origin.synchronize()  # the device is idle: this moment is the host's, too
        self._began = time.perf_counter()

    def seconds(self, event: Any) -> float:
        """When a recorded and reached event was, on the host's clock."""
        return self._began + 1e-3 * self._origin.elapsed_time(event)

    def free_memory(self) -> tuple[int, int]:
        free, total = self.cuda.mem_get_info(self.where)
        return free + self.cuda.memory_reserved(self.where) - self.cuda.memory_allocated(self.where), total

    def held(self) -> int:
        """What torch's allocator has reserved: freed memory stays with it, and gaps between pieces in use do."""
        return int(self.cuda.memory_reserved(self.where))

    def release_unused(self) -> None:
        self.cuda.empty_cache()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, what: str) -> Tensor:
        """Device memory for `what`; ResourceError where there is not enough."""
        size = math.prod(shape) * dtype.itemsize
        return self._taken(lambda: torch.empty(shape, dtype=dtype, device=self.where), size, what)

    @staticmethod
    def _taken(take: Callable[[], T], size: int, what: str) -> T:
        try:
            return take()
        except torch.OutOfMemoryError:
            pass
        raise ResourceError(
            f"The device has no room left for {format_bytes(size)} of {what}.",
            "Pass a smaller --gpu-memory, or end other programs that use the device.",
        )

    def arena(self, slots: int) -> Arena:
        return Arena(slots, lambda rows, columns: self.empty((rows, columns), torch.float32, "arena"))

    def staging(self, floats: int) -> CudaStaging:
        """Registered memory; from the first refusal on pinned memory, and from its first one on ordinary memory."""
        if not floats:
            return CudaStaging(np.empty(0, np.float32), self.empty((0,), torch.float32, "staging"))
        staging = self._lock_pages(floats)
        if staging is None and self._lock_pages == self._registered:
            self._lock_pages = self._pinned
            staging = self._pinned(floats)
        if staging is None:
            self._lock_pages = self._pageable
            self._say(
                "CUDA may not page-lock host memory here, so copies wait for the device and nothing overlaps them. "
                "Raise the limit of locked memory (`ulimit -l`), or the container's, for full speed."
            )
            staging = self._pageable(floats)
        return staging

    def _registered(self, floats: int) -> CudaStaging | None:
        host = _own_pages(floats)
        staging = CudaStaging(
            host, self.empty((floats,), torch.float32, "staging")
        )  # may raise: before pages are locked
        if int(self.cuda.cudart().cudaHostRegister(host.ctypes.data, host.nbytes, 0)) != 0:
            self._forget_error()
            return None
        weakref.finalize(staging, self.cuda.cudart().cudaHostUnregister, host.ctypes.data)
        return staging

    def _pinned(self, floats: int) -> CudaStaging | None:
        try:
            host = torch.empty(floats, pin_memory=True)
        except RuntimeError:
            return None
        return CudaStaging(host.numpy(), self.empty((floats,), torch.float32, "staging"), host)

    def _pageable(self, floats: int) -> CudaStaging:
        return CudaStaging(_own_pages(floats), self.empty((floats,), torch.float32, "staging"))

    def _forget_error(self) -> None:
        """A refused call stays this thread's last error, and the next kernel would report it as its own: one is launched for
        that."""
        with contextlib.suppress(RuntimeError):
            torch.ones(1, device=self.where)

    def residents(self, store: Store, rows: np.ndarray, at_once: int) -> CudaResidents:
        return CudaResidents(self, store, rows, at_once)

    def workspace(self, rows: int) -> Workspace:
        return self._taken(lambda: Workspace(rows, self.where), device_work_bytes(rows), "workspace")

    def indices(self, lists: list[np.ndarray]) -> list[Tensor]:
        """All lists in one small copy, on a stream of its own: the host waits for nothing else, and any stream may use them
        when this returns. They must be kept until the work that uses them is done."""
        flat = torch.from_numpy(np.concatenate(lists, dtype=np.int32))
        with contextlib.suppress(RuntimeError):  # from pageable memory the copy is as right, only slower
            flat = flat.pin_memory() if self.where.type == "cuda" else flat
        # index_copy_ and index_fill_ insist on int64: widened on the device, half the bytes cross the bus.
        there = self._index_stream.run(lambda: flat.to(self.where, non_blocking=True).long())
        self._index_stream.record().synchronize("index lists are on the device before any stream uses them")
        return list(there.split([len(ids) for ids in lists]))

    def numpy(self, array: Tensor) -> np.ndarray:
        """C-contiguous, which an image of the rasteriser is not."""
        return array.detach().contiguous().cpu().numpy()

    def to_device(self, staging: Staging, floats: int) -> None:
        assert isinstance(staging, CudaStaging)
        staging.device[:floats].copy_(staging.host_tensor[:floats], non_blocking=True)

    def to_host(self, staging: Staging, floats: int) -> None:
        assert isinstance(staging, CudaStaging)
        staging.host_tensor[:floats].copy_(staging.device[:floats], non_blocking=True)

    def place(self, rows: Rows, slots: Tensor, arena: Arena, columns: int) -> None:
        arena.geometry.index_copy_(0, slots, rows.geometry)
        # What expanding bf16 takes is less than what its two staging buffers save of the bytes that were set aside.
        arena.colour[:, :columns].index_copy_(0, slots, rows.colour.float())
        _zero_gradients(arena, slots, columns)

    def collect(self, arena: Arena, slots: Tensor, target: Gradients, columns: int) -> None:
        torch.index_select(arena.grad_geometry, 0, slots, out=target.grad_geometry)
        torch.index_select(arena.grad_colour[:, :columns], 0, slots, out=target.grad_colour)

    def restore(self, source: Gradients, slots: Tensor, arena: Arena, columns: int) -> None:
        arena.grad_geometry.index_copy_(0, slots, source.grad_geometry)
        arena.grad_colour[:, :columns].index_copy_(0, slots, source.grad_colour)


def _own_pages(floats: int) -> np.ndarray:
    """Host memory [floats] f32 on pages of its own: pages are what is locked, and none may be locked twice."""
    return np.frombuffer(mmap.mmap(-1, 4 * floats), np.float32) if floats else np.empty(0, np.float32)


def _zero_gradients(arena: Arena, slots: Tensor, columns: int) -> None:
    arena.grad_geometry.index_fill_(0, slots, 0.0)
    arena.grad_colour[:, :columns].index_fill_(0, slots, 0.0)
