"""What a batch will use of the pages of a store on disk, and when: what its tier reads ahead and lets go is decided by it.

Each turn uses pages twice: its loads are gathered, and its final rows are stepped on. Loads run one turn ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from clm.plan.residency import Plan, Turn
from clm.store.pages import pages_of
from clm.stream.tiers import Tiers


class Ticks:
    """The uses of a plan's turns, in the order in which they are expected, and those of views to come."""

    def __init__(self, plan: Plan, tiers: Tiers, coming: Sequence[np.ndarray] = ()):
        """coming: the pages [A] i32 of each of the views after the batch, as far as they are known."""
        self._arrays = tiers.store.arrays
        self._loads, self._updates = [0] * len(plan.turns), [0] * len(plan.turns)
        self._ticks: list[np.ndarray] = []
        for i, turn in enumerate(plan.turns):
            self._loads[i] = self._add(tiers, turn.load_rows[: turn.load_early], turn.load_rows[turn.load_early :])
            if i:
                self._updates[i - 1] = self._add(tiers, _finals(plan.turns[i - 1]))
        if plan.turns:
            self._updates[-1] = self._add(tiers, _finals(plan.turns[-1]))
        self._arrays.expect([*self._ticks, *coming])

    def _add(self, tiers: Tiers, *lists: np.ndarray) -> int:
        """A tick of the pages of rows [n] (ascending ids, each list) that are not resident; returns its number."""
        pages = (pages_of(rows[tiers.split(rows)[0]], tiers.store.page_rows) for rows in lists)
        self._ticks.append(reduce(np.union1d, pages))
        return len(self._ticks) - 1

    def loaded(self, i: int) -> None:
        """The rows of turn i are gathered."""
        self._arrays.passed(self._loads[i])

    def updated(self, i: int) -> None:
        """The final rows of turn i are stepped on."""
        self._arrays.passed(self._updates[i])


def _finals(turn: Turn) -> np.ndarray:
    return turn.send_rows[: turn.finals]
