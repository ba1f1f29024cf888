"""What the views of a scene see: one pass over their visible sets, and what placement makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from clm.camera import Camera
from clm.plan.visibility import visible_sets
from clm.progress import Report, counted, unseen
from clm.store.layout import PAGE_ROWS
from clm.store.store import Store

_SETS_BYTES = 32 << 20  # of visible sets that are looked at one by one


@dataclass(frozen=True, eq=False)
class Sightings:
    """What the views of a scene see, as far as placement needs it: one pass over their visible sets."""

    largest_view: int  # rows
    per_block: np.ndarray  # [blocks] i64: rows of the block, summed over the views that may see them
    sizes: np.ndarray  # [blocks] i64: rows of each block
    views: int
    pages: tuple[np.ndarray, ...] = ()  # of each view, [A] i32: with rows that it may see
    per_view: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # [views] i64: rows of each

    @staticmethod
    def of(sets: Iterable[np.ndarray], fill: np.ndarray, page_rows: int) -> Sightings:
        """From visible sets (int32 ids, ascending), consumed one by one; fill [blocks]: rows of each block."""
        blocks = len(fill)
        per_block, sizes, pages = np.zeros(blocks, np.int64), [], []
        edges = np.arange(1, blocks, dtype=np.int64) * page_rows
        for seen in sets:
            sizes.append(len(seen))
            counts = np.diff(np.searchsorted(seen, edges), prepend=0, append=len(seen))
            per_block += counts
            pages.append(np.flatnonzero(counts).astype(np.int32))
        largest, per_view = max(sizes, default=0), np.array(sizes, np.int64)
        return Sightings(largest, per_block, fill.astype(np.int64), len(pages), tuple(pages), per_view)

    def usual_union(self, batch_size: int) -> int:
        """Rows of the union of so many random views, on average at most: rows of a block that a share p of the views sees
        are in it with 1 - (1 - p)^B, a concave function, so the mean p of a block gives more than its rows do."""
        share = self.per_block / np.maximum(self.sizes * self.views, 1)
        return int(np.ceil((self.sizes * (1.0 - (1.0 - np.minimum(share, 1.0)) ** batch_size)).sum()))


def arena_needs(
    rows: int, largest_view: int, usual_union: int, batch_size: int, page_rows: int = PAGE_ROWS
) -> tuple[int, int]:
    """Slots that any batch of so many views can use, and slots for the usual one; both with room for rows that move and
    swell until the next rebuild."""
    any_batch = min(rows, int(1.25 * largest_view) * batch_size + page_rows)
    return any_batch, min(any_batch, int(1.1 * usual_union) + page_rows)


def resident_blocks(sightings: Sightings, resident_rows: int) -> np.ndarray:
    """[blocks] bool: whole blocks of together at most `resident_rows` rows, those first whose rows most views see.

    A row that is resident saves one load per batch that sees it, whatever block it is in, so the mean number of views per
    row ranks blocks; equal ones in order. Blocks that no view sees stay on the host while others are wanted.
    """
    order = np.argsort(-sightings.per_block / np.maximum(sightings.sizes, 1), kind="stable")
    chosen = np.zeros(len(order), bool)
    chosen[order[np.cumsum(sightings.sizes[order]) <= resident_rows]] = True
    return chosen


class Culled(Protocol):
    """Rows in pages, as far as culling knows them: a store, or cull entries of one."""

    @property
    def rows(self) -> int: ...
    @property
    def entries(self) -> np.ndarray: ...
    @property
    def bounds(self) -> np.ndarray: ...
    @property
    def fill(self) -> np.ndarray: ...
    @property
    def page_rows(self) -> int: ...


def all_visible_sets(store: Culled, cameras: list[Camera]) -> Iterator[np.ndarray]:
    """The visible set of each camera, [M] i32; a few at a time are held, of together 32 MiB at most (or one)."""
    at_once = min(64, max(1, _SETS_BYTES // (4 * max(1, store.rows))))
    for first in range(0, len(cameras), at_once):
        group = cameras[first : first + at_once]
        yield from visible_sets(store.entries, store.bounds, group, page_rows=store.page_rows, fill=store.fill)


def sightings(
    store: Store,
    cameras: list[Camera],
    report: Report = unseen,
    watching: np.ndarray | None = None,
    unseen_rows: np.ndarray | None = None,
) -> Sightings:
    """What `cameras` see of the store; `unseen_rows` [places] bool becomes false where one of those in `watching` [V] may see."""
    sets = counted(all_visible_sets(store, cameras), "finding what views see", len(cameras), "views", report)
    if watching is not None and unseen_rows is not None:
        sets = _marking(sets, frozenset(watching.tolist()), unseen_rows)
    return Sightings.of(sets, store.fill, store.page_rows)


def _marking(sets: Iterator[np.ndarray], watching: frozenset[int], unseen_rows: np.ndarray) -> Iterator[np.ndarray]:
    for k, rows in enumerate(sets):
        if k in watching:
            unseen_rows[rows] = False
        yield rows
