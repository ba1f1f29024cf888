"""Where rows go when pages change: compaction, free places, splits of full pages, merges of nearly empty ones. Pure.

A page is room for `page_rows` rows, the first `fill` of which are live. Children go to the places of rows that left their
parent's page, then behind its rows; rows at the end fill the places that are left, so that hardly any row moves. A page that
overflows is cut in halves along the longest axis of its centres until each part fits. Rows that are much larger than the
others of their page stay together, because one of them inflates a whole page's box. Nothing that is computed from rows
depends on the page in which they lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from clm.kernels.grow import plan_pages
from clm.kernels.sort import space_keys

_FULL = 0.75  # of a page, at most, that merged pages fill
_NEARLY_EMPTY = 0.25  # of a page


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
        """Moves without children between two pages at a time: each run is one page that goes to the end of another."""
        nothing = np.zeros(0, np.int32)
        for first, last in pairwise(self.runs.tolist()):
            source, target = self.source[first:last], self.target[first:last]
            home, left = int(target[0]) // page_rows, int(source[0]) // page_rows
            order = np.argsort([home, left])
            pages = np.array([home, left], np.int32)[order]
            fill = np.array([int(target[-1]) + 1 - home * page_rows, 0], np.int32)[order]
            yield Moves(source, target, np.array([0, last - first], np.int64), nothing, pages, fill)


class FreePages:
    """Hands out empty pages: those that became free, the first one first, then new ones at the end."""

    def __init__(self, free: Iterable[int], pages: int):
        self._free, self.pages = sorted(free, reverse=True), pages

    def take(self) -> int:
        if self._free:
            return self._free.pop()
        self.pages += 1
        return self.pages - 1


def live_rows(pages: np.ndarray, fill: np.ndarray, page_rows: int) -> np.ndarray:
    """Ids [sum of fill] i32 of the live rows of pages [A], whose fill is [A], page by page."""
    fill = fill.astype(np.int64)
    first = np.repeat(pages.astype(np.int64) * page_rows - (np.cumsum(fill) - fill), fill)
    return (first + np.arange(len(first))).astype(np.int32)


def pages_of(rows: np.ndarray, page_rows: int) -> np.ndarray:
    """Pages [A] i32 (ascending) of rows [n] (ascending ids)."""
    pages = rows // page_rows
    return np.asarray(pages[np.flatnonzero(np.diff(pages, prepend=-1))], np.int32)


def plan_growth(
    pages: np.ndarray,
    fill: np.ndarray,
    leave: np.ndarray,
    parents: np.ndarray,
    entries: np.ndarray,
    children: np.ndarray,
    page_rows: int,
    free: FreePages,
) -> Moves:
    """Rows `leave` [L] i32 go from pages [A] i32 (ascending, fill [A] i32), and a child of each row `parents` [C] i32 comes.

    entries [N, 4] f32: of all rows; children [C, 12] f32: geometry. leave and parents ascend."""
    edges = np.append(pages, pages[-1:] + 1).astype(np.int64) * page_rows
    leave_at, come_at = (np.searchsorted(ids, edges) for ids in (leave, parents))
    gone, come = np.diff(leave_at), np.diff(come_at)
    total = fill - gone + come
    over = np.flatnonzero(total > page_rows)
    sizes = [part_sizes(n, page_rows) for n in total[over].tolist()]
    parts = np.ones(len(pages), np.int64)
    parts[over] = [len(those) for those in sizes]
    home_at = np.append(0, np.cumsum(parts))
    homes, filled = np.empty(home_at[-1], np.int32), np.empty(home_at[-1], np.int32)
    homes[home_at[:-1]], filled[home_at[:-1]] = pages, total
    for first, those in zip(home_at[over].tolist(), sizes, strict=True):
        homes[first + 1 : first + len(those)] = [free.take() for _ in those[1:]]
        filled[first : first + len(those)] = those
    most_moves = np.maximum(gone - come, 0)
    most_moves[over] = (fill - gone)[over]
    placed = plan_pages(
        fill, page_rows, (leave, leave_at), come_at, (homes, filled, home_at), most_moves, entries, children
    )
    rows, source, target, runs = placed
    order = np.argsort(homes)
    return Moves(source, target, runs, rows, homes[order], filled[order])


def part_sizes(count: int, page_rows: int) -> list[int]:
    """Rows in each part of a page of so many that is cut in halves until each part fits."""
    if count <= page_rows:
        return [count]
    half = (count + 1) // 2
    return part_sizes(half, page_rows) + part_sizes(count - half, page_rows)


def plan_merges(fill: np.ndarray, bounds: np.ndarray, page_rows: int) -> Moves:
    """Nearly empty pages that are near each other go into one of them; the others become free.

    fill [pages] i32, bounds [pages, 8] f32 as of `clm.plan.visibility.block_bounds`, of all pages."""
    nothing = np.zeros(0, np.int32)
    few = np.flatnonzero((fill > 0) & (fill <= _NEARLY_EMPTY * page_rows)).astype(np.int32)
    none = Moves(nothing, nothing, np.zeros(1, np.int64), nothing, nothing, nothing)
    if len(few) < 2:
        return none
    low, high = bounds[few, :3], bounds[few, 4:7]
    usual = float(np.median(_diagonals(bounds[fill > 0])))
    sizes = _diagonals(bounds[few])
    centres = np.column_stack([(low + high) / 2, bounds[few, 3]]).astype(np.float32)
    corner, span = centres[:, :3].min(axis=0).astype(np.float64), np.ptp(centres[:, :3], axis=0).astype(np.float64)
    edges = (np.median(centres[:, 3]) * np.array([4.0, 16.0, 64.0])).astype(np.float32)
    order = np.argsort(space_keys(centres, corner, np.where(span > 0, span, 1.0), edges), kind="stable")
    groups: list[list[int]] = [[int(order[0])]]
    lo, hi, size = low[order[0]], high[order[0]], float(sizes[order[0]])
    for i in order[1:].tolist():
        new_lo, new_hi, new_size = np.minimum(lo, low[i]), np.maximum(hi, high[i]), max(size, float(sizes[i]))
        together = fill[few[groups[-1]]].sum() + fill[few[i]]
        near = float(np.linalg.norm(new_hi - new_lo)) <= 2.0 * max(usual, new_size)
        if near and together <= _FULL * page_rows:
            groups[-1].append(i)
            lo, hi, size = new_lo, new_hi, new_size
        else:
            groups.append([i])
            lo, hi, size = low[i], high[i], float(sizes[i])
    sources, targets, lengths, changed, filled = [nothing], [nothing], [0], [], []
    for group in groups:
        if len(group) == 1:
            continue
        home, *others = np.sort(few[group]).tolist()
        at = int(fill[home])
        for page in others:
            sources.append(live_rows(np.array([page]), fill[[page]], page_rows))
            targets.append(np.arange(home * page_rows + at, home * page_rows + at + fill[page], dtype=np.int32))
            lengths.append(int(fill[page]))
            at += int(fill[page])
        changed += [home, *others]
        filled += [at, *[0] * len(others)]
    order = np.argsort(changed, kind="stable")
    return Moves(
        np.concatenate(sources),
        np.concatenate(targets),
        np.cumsum(lengths).astype(np.int64),
        nothing,
        np.array(changed, np.int32)[order],
        np.array(filled, np.int32)[order],
    )


def _diagonals(bounds: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(bounds[:, 4:7] - bounds[:, :3], axis=1))
