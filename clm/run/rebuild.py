"""The rows while they change between two batches: what may be done to them, and what that comes to."""

from __future__ import annotations

from collections.abc import Callable

from clm.store.growth import Growth
from clm.store.store import Store


class Rebuild:
    """The store while it changes, and which of its pages did."""

    def __init__(self, store: Store, make_room: Callable[[int], None]):
        """make_room(rows): called before the rows become so many."""
        self.store, self.rows = store, 0  # how many changed
        self._make_room = make_room

    def apply(self, growth: Growth) -> int:
        """Carry out a growth; returns how many pages changed."""
        self._make_room(self.store.rows - len(growth.leave) + len(growth.parents))
        changed = len(self.store.apply(growth))
        self.rows += len(growth.leave) + len(growth.parents)
        return changed

    def everything(self) -> None:
        """Every row changed in its place."""
        self.rows += self.store.rows
