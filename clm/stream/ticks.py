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
    gathered). Gathering is one turn ahead; where pages are absent, it waits to be no more than that (`Ticks.lacks`)."""
    for i in range(turns + 1):
        if i < turns:
            yield i, False
        if i:
            yield i - 1, True


def uses_of(plan: Plan, tiers: Tiers) -> list[np.ndarray]:
    """The pages [A] i32 that each use of a plan's turns holds, in that order: those of its rows that are not resident."""

    def pages(*lists: np.ndarray) -> np.ndarray:  # of rows [n], ascending ids each
        return reduce(np.union1d, (pages_of(rows[tiers.split(rows)[0]], tiers.store.page_rows) for rows in lists))

    uses = []
    for i, updates in in_order(len(plan.turns)):
        turn = plan.turns[i]
        early, late = turn.load_rows[: turn.load_early], turn.load_rows[turn.load_early :]
        uses.append(pages(turn.send_rows[: turn.finals]) if updates else pages(early, late))
    return uses


class Ticks:
    """The uses of a plan's turns, in the order in which they are expected, and those of views to come."""

    def __init__(self, plan: Plan, tiers: Tiers, coming: Sequence[np.ndarray] = ()):
        """coming: the pages [A] i32 of each of the views after the batch, as far as they are known."""
        assert tiers.store.disk is not None, "pages in RAM are not waited for"
        self._disk = tiers.store.disk
        self._loads, self._updates = [0] * len(plan.turns), [0] * len(plan.turns)
        for tick, (i, updates) in enumerate(in_order(len(plan.turns))):
            (self._updates if updates else self._loads)[i] = tick
        self._ticks = uses_of(plan, tiers)
        self._disk.expect([*self._ticks, *coming])

    def follow(self, coming: Sequence[np.ndarray]) -> None:
        """What comes after the batch is known better now."""
        self._disk.expect(list(coming), after=len(self._ticks))

    def lacks(self, i: int) -> bool:
        """Whether pages of turn i's rows are neither there nor on their way. To ask for them before the turn that is stepped on
        meanwhile is over would push out pages that are used before them."""
        return not self._disk.on_hand(self._ticks[self._loads[i]])

    def loaded(self, i: int) -> None:
        """The rows of turn i are gathered."""
        self._disk.passed(self._loads[i])

    def updated(self, i: int) -> None:
        """The final rows of turn i are stepped on."""
        self._disk.passed(self._updates[i])
