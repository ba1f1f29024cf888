"""The ranks of a run, as one of them sees them: who there is, and what they exchange. Here: one alone, who needs no torch.

Invariants: every rank makes the same calls in the same order on the same lane; what comes back is in the order of ranks, never of
arrival; nothing is summed but integers, so that results depend neither on how many ranks there are nor on the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
Arrays = tuple[np.ndarray, ...]


class Ranks:
    """Rank `rank` of `world`; `local_rank` of the `local_world` on this host. This one is alone: what it sends comes back to it.
    `clm.ranks.joined` has those of several."""

    rank = 0
    world = 1
    local_rank = 0
    local_world = 1

    @property
    def alone(self) -> bool:
        return self.world == 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that speaks, and writes what a run has one of."""
        return self.rank == 0

    @property
    def sent_bytes(self) -> np.ndarray:
        """[world] i64: bytes that went from this rank to each other one so far, on all lanes."""
        return np.zeros(self.world, np.int64)

    @property
    def seconds(self) -> float:
        """That calls of all lanes took so far."""
        return 0.0

    def lane(self, name: str) -> Ranks:
        """The same ranks for another thread: what passes there never mixes with what passes here."""
        return self

    # ---- little ----

    def any(self, flag: bool) -> bool:
        """Whether it is true for some rank."""
        return flag if self.alone else self.total(int(flag)) > 0

    def total(self, number: int) -> int:
        """The sum over the ranks."""
        return number if self.alone else int(self.totals(np.array([number], np.int64))[0])

    def totals(self, numbers: np.ndarray) -> np.ndarray:
        """Sums over the ranks of integers [..] i64."""
        return numbers

    def gather(self, thing: T) -> list[T]:
        """What every rank has, in their order: small things that can be pickled. Takes a millisecond."""
        return [thing]

    def stacked(self, array: np.ndarray) -> np.ndarray:
        """[world, ..]: what every rank has, arrays of one shape and dtype."""
        return array[None]

    def of_first(self, thing: T) -> T:
        """What rank 0 has: a small thing that can be pickled."""
        return thing

    # ---- rows ----

    def joined(self, rows: np.ndarray) -> np.ndarray:
        """[N, ..]: rows [n, ..] of all ranks one after the other; each rank may have another number of them."""
        return rows

    def exchange(
        self,
        rows: Any,
        counts: np.ndarray,
        coming: np.ndarray | None = None,
        into: Callable[[int], np.ndarray] | None = None,
    ) -> tuple[Any, np.ndarray]:
        """All to all. rows [n, columns]: those for rank 0 first, counts[0] of them, then those for rank 1, and so on. Returns
        the rows that are for this rank in the order of ranks, and how many come from each [world] i64. coming: these counts,
        where they are known, which saves asking. into(n): where n rows of an array are to go; else memory is taken. rows is an
        array or, on a device with memory of its own, a tensor there."""
        return rows, counts

    def to_first(self, chunks: Iterable[Arrays]) -> Iterator[Arrays]:
        """Chunks of arrays of all ranks, one after the other, at rank 0; the other ranks send theirs, and get none. To be
        exhausted by everyone."""
        yield from chunks

    def close(self) -> None:
        """No more calls come; every rank says so."""


ALONE = Ranks()
