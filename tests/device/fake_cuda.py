"""cuda:0 without CUDA: torch's fake tensors know shape, dtype and device of everything, and compute nothing.

What a fake tensor refuses is what goes wrong only on a GPU: two devices in one operation, and a value that the host wants to
know (`.item()`, `bool()`, a size that depends on values). torch asks a device guard before each operation, and the CPU build
has none for CUDA: meta's, which does nothing, takes its place in libc10's registry for as long as the context lasts.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from clm.device.cuda import CudaDevice, CudaResidents, CudaStaging
from clm.device.interface import Arena
from clm.store.store import Store
from scripts.doubles.cuda import Cuda

_REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry
_CUDA, _META, _SLOTS = 1, 14, 15  # c10::DeviceType; as many slots as are touched


def guards() -> Any:
    """The device guards by device type, as libc10 has them; skips the test where they cannot be reached."""
    try:
        library = ctypes.CDLL(str(next(Path(torch.__file__).parent.glob("lib/libc10.*"))))
        return (ctypes.c_void_p * _SLOTS).in_dll(library, _REGISTRY)
    except (StopIteration, OSError, ValueError) as error:
        pytest.skip(f"this torch does not show its registry of device guards ({error})")


class Mode(FakeTensorMode):
    """One thread at a time: a mode knows only one thread, and fake tensors enter the mode that made them."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = threading.RLock()

    def __enter__(self) -> Mode:
        self.turn.acquire()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.turn.release()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "conv" in func.__name__:  # the one operation that is used and whose devices torch does not compare
            places = {each.device for each in args if isinstance(each, Tensor)}
            assert len(places) == 1, f"{func}: expected all tensors to be on the same device, but found {places}"
        return super().__torch_dispatch__(func, types, args, kwargs)

    def in_turn(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def alone(*arguments: Any, **options: Any) -> Any:
            with self.turn:
                return work(*arguments, **options)

        return alone


class FakeTensorCuda(Cuda):
    """Whatever runs on a stream runs on fake tensors."""

    def __init__(self, mode: Mode):
        super().__init__()
        self._mode = mode

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        with self._mode:
            yield


class FakeTensorDevice(CudaDevice):
    """The CUDA device at cuda:0, all of it fake tensors: also what is made outside a stream."""

    def __init__(self) -> None:
        self.mode = Mode()
        super().__init__(FakeTensorCuda(self.mode), "cuda:0")

    def arena(self, slots: int) -> Arena:
        with self.mode:
            return super().arena(slots)

    def staging(self, floats: int) -> CudaStaging:
        with self.mode:
            return super().staging(floats)

    def residents(self, store: Store, rows: np.ndarray, at_once: int) -> CudaResidents:
        with self.mode:
            return super().residents(store, rows, at_once)

    def indices(self, lists: list[np.ndarray]) -> list[Tensor]:
        with self.mode:
            return super().indices(lists)


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeTensorDevice]:
    """A device at cuda:0, while CUDA's guard does nothing and pinned memory is memory."""
    registry = guards()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "pin_memory", lambda tensor, device=None: tensor)
        before, registry[_CUDA] = registry[_CUDA], registry[_META]
        try:
            device = FakeTensorDevice()
            # Lanes also slice tensors outside of streams, where no mode is entered.
            patch.setattr(
                FakeTensor, "__torch_dispatch__", staticmethod(device.mode.in_turn(FakeTensor.__torch_dispatch__))
            )
            yield device
        finally:
            registry[_CUDA] = before
