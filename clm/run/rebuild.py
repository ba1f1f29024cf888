"""The rows while they change between two batches: what may be done to them, and what that comes to."""

from __future__ import annotations

from collections.abc import Callable

from clm.kernels.rows import AdamStep
from clm.store.growth import Growth
from clm.store.store import Store


class Rebuild:
    """As `clm.strategy.strategy.Rebuild`, and how many rows changed."""

    def __init__(self, store: Store, step: AdamStep, limit: Callable[[], int], make_room: Callable[[int], None]):
        """limit(): how many rows there may be; make_room(rows): called before they become so many."""
        self.store, self.step, self.rows = store, step, 0  # rows: how many changed
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
