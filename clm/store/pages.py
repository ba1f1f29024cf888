"""Where rows go when pages change: compaction, free places, and what pages give to others. Pure.

A page is room for `page_rows` rows, the first `fill` of which are live. Children go to the places of rows that left their
parent's page, then behind its rows; rows at the end fill the places that are left, so that hardly any row moves. Which pages give
rows to which, so that none overflows and few are rather empty, `gifts` decides. Nothing that is computed from rows depends on the
page in which they lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from clm.kernels.grow import Gifts, plan_pages
from clm.kernels.page_file import page_runs
from clm.store.gifts import QUITE_EMPTY, FreePages, gifts_of_empty_pages, gifts_of_full_pages


@dataclass(frozen=True, eq=False)
class Moves:
    """Rows `source` [M] go to `target` [M] (i32 ids) one after the other; runs [R + 1] i64 cut the list by source page.
    Afterwards children [C] i32 are put to their places. pages [A] i32: those that change; fill [A] i32: theirs then."""

    source: np.ndarray
    target: np.ndarray
    runs: np.ndarray
    children: np.ndarray
    pages: np.ndarray
    fill: np.ndarray

    def by_run(self, page_rows: int) -> Iterator[Moves]:
        """Moves without children, run by run: each is one page that gives rows to one or two others. A page that takes
        from two counts all of them from the first run on."""
        nothing = np.zeros(0, np.int32)
        for first, last in pairwise(self.runs.tolist()):
            source, target = self.source[first:last], self.target[first:last]
            if len(source):
                pages = np.union1d(source // page_rows, target // page_rows).astype(np.int32)
                fill = self.fill[np.searchsorted(self.pages, pages)]
                yield Moves(source, target, np.array([0, last - first], np.int64), nothing, pages, fill)


def live_rows(pages: np.ndarray, fill: np.ndarray, page_rows: int) -> np.ndarray:
    """Ids [sum of fill] i32 of the live rows of pages [A], whose fill is [A], page by page."""
    fill = fill.astype(np.int64)
    first = np.repeat(pages.astype(np.int64) * page_rows - (np.cumsum(fill) - fill), fill)
    return (first + np.arange(len(first))).astype(np.int32)


def pages_of(rows: np.ndarray, page_rows: int) -> np.ndarray:
    """Pages [A] i32 (ascending) of rows [n] i32 (ascending ids)."""
    return page_runs(rows, page_rows)[0]


def plan_growth(
    pages: np.ndarray,
    fill: np.ndarray,
    bounds: np.ndarray,
    leave: np.ndarray,
    parents: np.ndarray,
    entries: np.ndarray,
    children: np.ndarray,
    page_rows: int,
    free: FreePages,
) -> Moves:
    """Rows `leave` [L] i32 go from pages [A] i32 (ascending, fill [A] i32, bounds [A, 8] f32), and a child of each row `parents`
    [C] i32 comes.

    entries [N, 4] f32: of all rows; children [C, 12] f32: geometry. leave and parents ascend."""
    edges = np.append(pages, pages[-1:] + 1).astype(np.int64) * page_rows
    leave_at, come_at = (np.searchsorted(ids, edges) for ids in (leave, parents))
    total = fill - np.diff(leave_at) + np.diff(come_at)
    gifts = gifts_of_full_pages(pages, total, bounds, page_rows, free)
    return _moves(pages, fill, total, (leave, leave_at), come_at, gifts, entries, children, page_rows)


def plan_merges(
    changed: np.ndarray, fill: np.ndarray, bounds: np.ndarray, entries: np.ndarray, page_rows: int
) -> Moves:
    """Pages that changed [A] i32, or are quite empty, share their rows where some are rather empty; pages become free by that.

    fill [pages] i32, bounds [pages, 8] f32 as of `clm.plan.visibility.block_bounds`, of all pages; entries [N, 4] of all rows."""
    quite_empty = fill <= QUITE_EMPTY * page_rows
    quite_empty[changed] = True
    pages = np.flatnonzero(quite_empty & (fill > 0)).astype(np.int32)
    gifts = gifts_of_empty_pages(pages, fill[pages], bounds[pages], page_rows)
    involved = np.union1d(pages[gifts.giver], gifts.taker).astype(np.int32)
    gifts = gifts._replace(giver=np.searchsorted(involved, pages[gifts.giver]))
    none, nobody = np.zeros(0, np.int32), np.zeros(len(involved) + 1, np.int64)
    have = fill[involved]
    return _moves(
        involved, have, have, (none, nobody), nobody, gifts, entries, np.zeros((0, 12), np.float32), page_rows
    )


def _moves(
    pages: np.ndarray,
    fill: np.ndarray,
    total: np.ndarray,
    leave: tuple[np.ndarray, np.ndarray],
    come_at: np.ndarray,
    gifts: Gifts,
    entries: np.ndarray,
    children: np.ndarray,
    page_rows: int,
) -> Moves:
    """Of pages [A] i32 that have fill [A] rows now, total [A] without gifts."""
    placed = plan_pages(pages, fill, page_rows, leave, come_at, gifts, entries, children)
    rows, source, target, runs = placed
    takers, which = np.unique(gifts.taker, return_inverse=True)
    after = dict(zip(pages.tolist(), (total - np.bincount(gifts.giver, gifts.rows, len(pages))).tolist(), strict=True))
    for page, n in zip(takers.tolist(), np.bincount(which, gifts.rows, len(takers)).tolist(), strict=True):
        after[page] = after.get(page, 0) + n
    changed = np.array(sorted(after), np.int32)
    return Moves(source, target, runs, rows, changed, np.array([after[page] for page in changed.tolist()], np.int32))
