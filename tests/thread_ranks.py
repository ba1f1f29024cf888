"""Ranks that are threads of one process, for tests: no torch, no sockets, and a rank that fails ends the others at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from clm.ranks import Ranks
from clm.ranks.ranks import Arrays

T = TypeVar("T")
_PATIENCE = 60.0  # seconds


class _Meeting:
    """Where all ranks bring something, and see what all have brought."""

    def __init__(self, world: int):
        self.barrier, self._brought = threading.Barrier(world), [None] * world

    def swap(self, rank: int, thing: Any) -> list[Any]:
        self._brought[rank] = thing
        self.barrier.wait(_PATIENCE)
        everything = list(self._brought)
        self.barrier.wait(_PATIENCE)
        return everything


class _World:
    """What the ranks share: a meeting for each lane."""

    def __init__(self, world: int):
        self.world, self._lock = world, threading.Lock()
        self.meetings: dict[str, _Meeting] = {}

    def meeting(self, lane: str) -> _Meeting:
        with self._lock:
            return self.meetings.setdefault(lane, _Meeting(self.world))

    def abort(self) -> None:
        for meeting in self.meetings.values():
            meeting.barrier.abort()


class ThreadRanks(Ranks):
    def __init__(self, shared: _World, rank: int, lane: str = "main"):
        self.rank, self.world, self.local_rank, self.local_world = rank, shared.world, rank, shared.world
        self._shared, self._meeting, self.sent = shared, shared.meeting(lane), np.zeros(shared.world, np.int64)

    @property
    def sent_bytes(self) -> np.ndarray:
        return self.sent

    def lane(self, name: str) -> Ranks:
        other = ThreadRanks(self._shared, self.rank, name)
        other.sent = self.sent
        return other

    def totals(self, numbers: np.ndarray) -> np.ndarray:
        return np.sum(self._meeting.swap(self.rank, np.array(numbers, np.int64)), axis=0)

    def gather(self, thing: T) -> list[T]:
        return self._meeting.swap(self.rank, thing)

    def stacked(self, array: np.ndarray) -> np.ndarray:
        return np.stack(self._meeting.swap(self.rank, array.copy()))

    def of_first(self, thing: T) -> T:
        return self._meeting.swap(self.rank, thing)[0]

    def joined(self, rows: np.ndarray) -> np.ndarray:
        return np.concatenate(self._meeting.swap(self.rank, rows.copy()))

    def exchange(
        self,
        rows: Any,
        counts: np.ndarray,
        coming: np.ndarray | None = None,
        into: Callable[[int], np.ndarray] | None = None,
    ) -> tuple[Any, np.ndarray]:
        assert int(counts.sum()) == len(rows)
        edges = np.concatenate([[0], np.cumsum(counts)])
        parts = [rows[a:b].copy() if isinstance(rows, np.ndarray) else rows[a:b].clone() for a, b in pairwise(edges)]
        for k, part in enumerate(parts):
            self.sent[k] += part.nbytes * (k != self.rank)
        mine = [theirs[self.rank] for theirs in self._meeting.swap(self.rank, parts)]
        found = np.array([len(part) for part in mine], np.int64)
        assert coming is None or np.array_equal(coming, found)
        if isinstance(rows, np.ndarray):
            return np.concatenate(mine, out=None if into is None else into(len(np.concatenate(mine)))), found
        import torch

        return torch.cat(mine), found

    def to_first(self, chunks: Iterable[Arrays]) -> Iterator[Arrays]:
        everybody = self._meeting.swap(self.rank, [tuple(a.copy() for a in arrays) for arrays in chunks])
        if self.first:
            for theirs in everybody:
                yield from theirs


def on_ranks(world: int, work: Callable[[Ranks], T]) -> list[T]:
    """What `work` returns on each of so many ranks; raises what it raised on the first rank that did so by itself."""
    shared, results = _World(world), [None] * world
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadRanks(shared, rank))  # type: ignore[call-overload]
        except BaseException as error:
            errors.append(error)
            shared.abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results  # type: ignore[return-value]
