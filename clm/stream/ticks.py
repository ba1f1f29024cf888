"""What a batch will use of the pages of a store on disk, and when: what its tier reads ahead and lets go is decided by it.

Each turn uses pages twice: its loads are gathered, and its final rows are stepped on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np

from clm.plan.residency import Plan
from clm.store.pages import pages_of
from clm.stream.tiers import Tiers


def in_order(turns: int) -> Iterator[tuple[int, bool]]:
    """The uses of a batch's turns as they are expected: (turn, whether its final rows are stepped on; else its loads are
    gathered). Gathering is one turn ahead; where frames are few, it waits to be no more than that (`Ticks.few_frames`)."""
    for i in range(turns + 1):
        if i < turns:
            yield i, False
        if i:
            yield i - 1, True


class Ticks:
    """The uses of a plan's turns, in the order in which they are expected, and those of views to come."""

    def __init__(self, plan: Plan, tiers: Tiers, coming: Sequence[np.ndarray] = ()):
        """coming: the pages [A] i32 of each of the views after the batch, as far as they are known."""
        assert tiers.store.disk is not None, "pages in RAM are not waited for"
        self._arrays, self._frames = tiers.store.arrays, tiers.store.disk.frames
        self._loads, self._updates = [0] * len(plan.turns), [0] * len(plan.turns)
        self._ticks: list[np.ndarray] = []
        for i, updates in in_order(len(plan.turns)):
            turn = plan.turns[i]
            if updates:
                self._updates[i] = self._add(tiers, turn.send_rows[: turn.finals])
            else:
                self._loads[i] = self._add(tiers, turn.load_rows[: turn.load_early], turn.load_rows[turn.load_early :])
        self._arrays.expect([*self._ticks, *coming])

    def _add(self, tiers: Tiers, *lists: np.ndarray) -> int:
        """A tick of the pages of rows [n] (ascending ids, each list) that are not resident; returns its number."""
        pages = (pages_of(rows[tiers.split(rows)[0]], tiers.store.page_rows) for rows in lists)
        self._ticks.append(reduce(np.union1d, pages))
        return len(self._ticks) - 1

    def few_frames(self, i: int) -> bool:
        """Whether the pages of turn i do not fit beside those of the two turns before it: gathered too early, they would have pages
        leave that are about to be stepped on."""
        if i < 2:
            return False
        ticks = (self._loads[i], self._loads[i - 1], self._updates[i - 2])
        return sum(len(self._ticks[tick]) for tick in ticks) > self._frames

    def loaded(self, i: int) -> None:
        """The rows of turn i are gathered."""
        self._arrays.passed(self._loads[i])

    def updated(self, i: int) -> None:
        """The final rows of turn i are stepped on."""
        self._arrays.passed(self._updates[i])
