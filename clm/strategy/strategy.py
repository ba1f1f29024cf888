"""What a strategy is: it says when rows come and go, and decides which; the store carries it out.

A strategy is a function of rows, configuration and seed. It keeps no state between rebuilds that a resumed run would not have,
and its random numbers and ties follow the identities of rows, so that neither placement, page size nor threads change a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from clm.event import Event
from clm.kernels.rows import AdamStep
from clm.store.growth import Growth
from clm.store.store import Store


@dataclass(frozen=True)
class Densified(Event):
    """Rows split, pruned, and refused for lack of budget; and those that may not grow for lack of evidence."""

    iteration: int
    split: int
    pruned: int
    refused: int
    num_gaussians: int
    pages: int  # that changed, of all
    unproven: int = 0


@dataclass(frozen=True)
class OpacityReset(Event):
    iteration: int


@dataclass(frozen=True)
class Cleared(Event):
    """Rows that are gone because no photo vouches for them: that no training view sees, and that one sees at its edge."""

    iteration: int
    unseen: int
    edges: int
    num_gaussians: int
    pages: int  # that changed, of all


@dataclass(frozen=True)
class Relocated(Event):
    """Dead rows that went where others live, and rows that were added there."""

    iteration: int
    relocated: int
    added: int
    num_gaussians: int
    pages: int  # that changed, of all


class AllRows:
    """What a decision asks of all rows, where a store holds some of them. Here it holds all."""

    def totals(self, *numbers: int) -> list[int]:
        """Numbers of this store's rows, summed over all stores."""
        return list(numbers)

    def joined(self, column: np.ndarray) -> np.ndarray:
        """[N]: what all stores have, one after the other; this one has column [n]."""
        return column

    def before(self, count: int) -> int:
        """How many of `joined` come before those of this store, which has `count`."""
        return 0

    def first(self, count: int, *columns: np.ndarray) -> np.ndarray:
        """[n] bool: which of this store's things are among the first `count` of all, in the order of np.lexsort by columns [n]."""
        chosen = np.lexsort([self.joined(column) for column in columns])[:count] - self.before(len(columns[0]))
        mine = np.zeros(len(columns[0]), bool)
        mine[chosen[(chosen >= 0) & (chosen < len(mine))]] = True
        return mine


class Rebuild(Protocol):
    """The rows between two batches, while they may change."""

    @property
    def all_rows(self) -> AllRows:
        """Where the store holds some of the rows: what is asked of all."""

    @property
    def store(self) -> Store:
        """The rows, wherever they live, as their last updates left them."""

    @property
    def step(self) -> AdamStep:
        """The next optimizer step: rows as they are now are caught up to the step before it."""

    @property
    def most_rows(self) -> int:
        """How many rows there may be in all by --max-gaussians and the budgets; at least those that there are."""

    def apply(self, growth: Growth) -> int:
        """Carry out a growth; returns how many pages changed."""

    def everything(self) -> None:
        """Say that every row changed in its place."""


class Strategy(Protocol):
    """Batches are (before, now]: the image before their first, and their last. reason: what the run's first lines say of it."""

    reason: str

    def due(self, before: int, now: int) -> bool:
        """Whether a batch is followed by a rebuild, so that no plan can be made ahead. From any thread."""

    def counts(self, image: int) -> bool:
        """Whether a rebuild will read how many pixels of this image its rows explain."""

    def rebuild(self, rebuild: Rebuild, before: int, now: int) -> Iterator[Event]:
        """Do what is due after a batch; yields an event for each thing done, when it is done."""
