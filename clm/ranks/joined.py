"""Ranks that are several, over process groups of torch.distributed. See `clm.ranks.ranks` for what the calls do.

gloo mixes what two threads send on one group, so each lane has a group of its own. A float sum of four ranks is not the sum in
their order, so nothing but integers is reduced. Arrays of the host go as they lie, without a copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from clm.ranks.ranks import Arrays, Ranks

T = TypeVar("T")


class JoinedRanks(Ranks):
    """One lane of several ranks: a process group that one thread at a time uses."""

    def __init__(
        self,
        rank: int,
        world: int,
        local_rank: int,
        local_world: int,
        new_group: Callable[[str], Any],
        goodbye: Callable[[], None] = lambda: None,
        talking: Callable[[], AbstractContextManager[None]] = nullcontext,
    ):
        """new_group(lane): makes a process group of all ranks, on every rank when it is called; goodbye: called when this rank
        needs the others no more; talking: entered by whatever waits for another rank."""
        self.rank, self.world = rank, world
        self.local_rank, self.local_world = local_rank, local_world
        self._new_group, self._goodbye, self._talking = new_group, goodbye, talking
        self._group = new_group("main")
        self._lanes: list[JoinedRanks] = [self]
        self._sent, self._seconds = np.zeros(world, np.int64), 0.0

    def lane(self, name: str) -> Ranks:
        other = object.__new__(JoinedRanks)
        other.__dict__.update(self.__dict__)
        other._group = self._new_group(name)
        other._sent, other._seconds = np.zeros(self.world, np.int64), 0.0
        self._lanes.append(other)  # one list for all lanes
        return other

    @property
    def sent_bytes(self) -> np.ndarray:
        return np.sum([lane._sent for lane in self._lanes], axis=0)

    @property
    def seconds(self) -> float:
        return sum(lane._seconds for lane in self._lanes)

    @contextmanager
    def _counted(self, bytes_to_each: np.ndarray | int) -> Iterator[None]:
        """A call that sends so much to each other rank."""
        began = time.perf_counter()
        with self._talking():
            yield
        self._seconds += time.perf_counter() - began
        sent = np.broadcast_to(np.asarray(bytes_to_each, np.int64), (self.world,)).copy()
        sent[self.rank] = 0
        self._sent += sent

    def totals(self, numbers: np.ndarray) -> np.ndarray:
        summed = torch.from_numpy(np.array(numbers, np.int64))  # a copy, which is written
        with self._counted(summed.nbytes):
            dist.all_reduce(summed, group=self._group)
        return summed.numpy()

    def gather(self, thing: T) -> list[T]:
        things: list[Any] = [None] * self.world
        with self._counted(0):
            dist.all_gather_object(things, thing, group=self._group)
        return things

    def of_first(self, thing: T) -> T:
        things: list[Any] = [thing if self.first else None]
        with self._counted(0):
            dist.broadcast_object_list(things, src=0, group=self._group)
        return things[0]

    def stacked(self, array: np.ndarray) -> np.ndarray:
        mine = _tensor(np.ascontiguousarray(array))
        all_of_them = [torch.empty_like(mine) for _ in range(self.world)]
        with self._counted(mine.nbytes):
            dist.all_gather(all_of_them, mine, group=self._group)
        return np.stack([_array(tensor, array) for tensor in all_of_them])

    def joined(self, rows: np.ndarray) -> np.ndarray:
        counts = self.stacked(np.array([len(rows)], np.int64))[:, 0]
        padded = np.zeros((int(counts.max()), *rows.shape[1:]), rows.dtype)
        padded[: len(rows)] = rows
        return np.concatenate([part[:n] for part, n in zip(self.stacked(padded), counts.tolist(), strict=True)])

    def exchange(
        self,
        rows: Any,
        counts: np.ndarray,
        coming: np.ndarray | None = None,
        into: Callable[[int], np.ndarray] | None = None,
    ) -> tuple[Any, np.ndarray]:
        counts = np.ascontiguousarray(counts, np.int64)
        if coming is None:
            asked = torch.empty(self.world, dtype=torch.int64)
            with self._counted(8):
                dist.all_to_all_single(asked, torch.from_numpy(counts), group=self._group)
            coming = asked.numpy()
        mine = rows if isinstance(rows, Tensor) else _tensor(np.ascontiguousarray(rows))
        total, row_bytes = int(coming.sum()), mine[:1].nbytes if len(mine) else 0
        if into is None or isinstance(rows, Tensor):
            theirs = torch.empty((total, *mine.shape[1:]), dtype=mine.dtype, device=mine.device)
        else:
            theirs = _tensor(into(total))
        with self._counted(counts * row_bytes):
            dist.all_to_all_single(theirs, mine, coming.tolist(), counts.tolist(), group=self._group)
        return theirs if isinstance(rows, Tensor) else _array(theirs, rows), coming

    def to_first(self, chunks: Iterable[Arrays]) -> Iterator[Arrays]:
        if self.first:
            yield from chunks
            for source in range(1, self.world):
                while (arrays := self._receive(source)) is not None:
                    yield arrays
            return
        for arrays in chunks:
            self._send([(array.shape, array.dtype.str) for array in arrays])
            for array in arrays:
                self._send_array(np.ascontiguousarray(array))
        self._send(None)

    def _send(self, thing: Any) -> None:
        with self._counted(0):
            dist.send_object_list([thing], dst=0, group=self._group)

    def _send_array(self, array: np.ndarray) -> None:
        to_first = np.where(np.arange(self.world) == 0, array.nbytes, 0)
        with self._counted(to_first):
            if array.size:
                dist.send(torch.from_numpy(array.reshape(-1).view(np.uint8)), dst=0, group=self._group)

    def _receive(self, source: int) -> Arrays | None:
        """The next chunk of another rank; None: it has no more."""
        things: list[Any] = [None]
        with self._talking():
            dist.recv_object_list(things, src=source, group=self._group)
            if things[0] is None:
                return None
            arrays = [np.empty(shape, kind) for shape, kind in things[0]]
            for array in arrays:
                if array.size:
                    dist.recv(torch.from_numpy(array.reshape(-1).view(np.uint8)), src=source, group=self._group)
        return tuple(arrays)

    def close(self) -> None:
        self._goodbye()


def _tensor(array: np.ndarray) -> Tensor:
    """The same memory; keys are u64, which collectives do not know."""
    return torch.from_numpy(array.view(np.int64) if array.dtype == np.uint64 else array)


def _array(tensor: Tensor, like: np.ndarray) -> np.ndarray:
    array: np.ndarray = tensor.numpy()
    return array.view(np.uint64) if like.dtype == np.uint64 else array
