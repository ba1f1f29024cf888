"""The rows while they change between two batches: what may be done to them, and what that comes to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clm.kernels.rows import AdamStep
from clm.ranks import ALONE, Ranks
from clm.store.growth import Growth
from clm.store.store import Store
from clm.strategy.strategy import AllRows


class RowsOfRanks(AllRows):
    """Rows that several ranks hold."""

    def __init__(self, ranks: Ranks):
        self._ranks = ranks

    def totals(self, *numbers: int) -> list[int]:
        return self._ranks.totals(np.array(numbers, np.int64)).tolist()

    def joined(self, column: np.ndarray) -> np.ndarray:
        return self._ranks.joined(column)

    def before(self, count: int) -> int:
        counts = self._ranks.stacked(np.array([count], np.int64))[:, 0]
        return int(counts[: self._ranks.rank].sum())


class Rebuild:
    """As `clm.strategy.strategy.Rebuild`, and how many rows changed."""

    def __init__(
        self,
        store: Store,
        step: AdamStep,
        limit: Callable[[], int],
        make_room: Callable[[int], None],
        ranks: Ranks = ALONE,
    ):
        """limit(): how many rows there may be in all; make_room(rows): called before those of this rank become so many."""
        self.store, self.step, self.rows = store, step, 0  # rows: how many changed
        self.all_rows = AllRows() if ranks.alone else RowsOfRanks(ranks)
        self._limit, self._make_room = limit, make_room

    @property
    def most_rows(self) -> int:
        return self._limit()

    def apply(self, growth: Growth) -> int:
        self._make_room(self.store.rows - len(growth.leave) + len(growth.parents))
        changed = len(self.store.apply(growth))
        self.rows += len(growth.leave) + len(growth.parents)
        return changed

    def everything(self) -> None:
        self.rows += self.store.rows
