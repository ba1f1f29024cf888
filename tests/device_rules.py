"""Promises about a device, tested without one: `PeakBytes` counts live tensors, `NoWaiting` refuses what would wait."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):
    """Inside the context: `peak` is the most bytes that tensors created inside it held at one time.

    A storage counts from the operation that returns it until its last tensor is gone; what operations allocate inside
    themselves is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf, counted=False)
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf, counted=True)
        return result

    def outputs_only(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work` stands for code that is not ours: of what it makes only what it returns counts."""

        def outside(*args: Any) -> Any:
            with _disable_current_modes():
                result = work(*args)
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    self._see(leaf, counted=True)
            return result

        return outside

    def _see(self, tensor: torch.Tensor, counted: bool) -> None:
        """Notice a storage once; one that was there before the context, or came from outside, costs nothing."""
        if tensor.layout != torch.strided:  # a sparse one holds tensors that were seen themselves
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes() if counted else 0
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class NoWaiting(TorchDispatchMode):
    """Inside the context an operation whose result the host must know, or whose size depends on values, is an error."""

    WAITS = (
        "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "unique_consecutive",
        "repeat_interleave", "bincount", "linalg_inv_ex", "linalg_solve_ex", "_linalg_check_errors",
    )  # fmt: skip

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        masked = name in ("index", "index_put_", "_index_put_impl_") and any(
            isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.bool, torch.uint8) for leaf in tree_leaves(args[1])
        )
        if name.rstrip("0123456789") in self.WAITS or masked:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))

    @staticmethod
    def exempt(work: Callable[..., Any]) -> Callable[..., Any]:
        """`work` may wait: it stands for code that is not ours."""

        def outside(*args: Any, **kwargs: Any) -> Any:
            with _disable_current_modes():
                return work(*args, **kwargs)

        return outside
