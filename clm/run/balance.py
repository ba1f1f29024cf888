"""Pages go from ranks that have many rows to those that have few, so that no rank has much more than its part."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from clm.ranks import Ranks
from clm.store.parcels import put_pages, take_pages
from clm.store.store import Store

UNBALANCED = 1.1  # of the mean, at least, has the rank with the most rows when pages are moved


def balance(store: Store, ranks: Ranks, make_room: Callable[[int], None]) -> int:
    """Move whole pages until ranks have near-equal rows, if one has too many; asked of all ranks at once. make_room(rows): called
    before this rank has so many. Returns how many rows came or left here.

    All rows are one sequence, rank by rank; each rank is to have an equal part of it, so what moves goes to neighbours."""
    if ranks.alone:
        return 0
    rows = ranks.stacked(np.array([store.rows], np.int64))[:, 0]
    if rows.max() <= UNBALANCED * rows.mean():
        return 0
    pages = np.flatnonzero(store.fill > 0).astype(np.int32)
    fill = store.fill[pages].astype(np.int64)
    middle = rows[: ranks.rank].sum() + np.cumsum(fill) - fill // 2
    parts = int(rows.sum()) * np.arange(1, ranks.world) // ranks.world
    whose = np.searchsorted(parts, middle, side="right")
    leave = whose != ranks.rank
    leaving = np.bincount(whose[leave], minlength=ranks.world)
    taken, filled = take_pages(store, pages[leave])
    came, coming = ranks.exchange(filled, leaving)
    ends = np.concatenate([[0], np.cumsum(leaving)])
    counts = np.array([filled[a:b].sum() for a, b in itertools.pairwise(ends)], np.int64)
    from_each = np.concatenate([[0], np.cumsum(coming)])
    expected = np.array([came[a:b].sum() for a, b in itertools.pairwise(from_each)], np.int64)
    received, _ = ranks.exchange(taken, counts, expected)
    make_room(store.rows + len(received))
    put_pages(store, received, came)
    return len(taken) + len(received)
