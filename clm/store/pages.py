"""Where rows go when pages change: compaction, free places, splits of full pages, merges of nearly empty ones. Pure.

A page is room for `page_rows` rows, the first `fill` of which are live. Children go to free places of their parent's page;
a page that overflows is cut in halves along the longest axis of its centres until each part fits. Rows that are much larger
than the others of their page stay together, because one of them inflates a whole page's box. Nothing that is computed from
rows depends on the page in which they lie.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from clm.kernels.sort import space_keys

_LARGE = 4.0  # times the median radius of its page: such a row would inflate the box of whatever page it is in
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


def plan_growth(
    pages: np.ndarray,
    fill: np.ndarray,
    leave: np.ndarray,
    parents: np.ndarray,
    entries: np.ndarray,
    child_entries: np.ndarray,
    page_rows: int,
    free: FreePages,
) -> Moves:
    """Rows `leave` [L] i32 go from pages [A] i32 (ascending, fill [A] i32), and a child of each row `parents` [C] i32 comes.

    entries [N, 4] f32: of all rows; child_entries [C, 4]. leave and parents ascend."""
    count = len(pages)
    alive = np.arange(page_rows, dtype=np.int32) < fill[:, None]  # [A, P]
    alive[np.searchsorted(pages, leave // page_rows), leave % page_rows] = False
    stay = alive.sum(axis=1)
    at, place = np.nonzero(alive)  # in order of pages, then of places
    rows = (pages[at].astype(np.int64) * page_rows + place).astype(np.int32)
    child_at = np.searchsorted(pages, parents // page_rows)
    come = np.bincount(child_at, minlength=count)
    fits = stay + come <= page_rows
    # Where all fit, those that stay move up and children follow.
    target = live_rows(pages, stay, page_rows)
    follow = live_rows(pages, come, page_rows) + stay[child_at].astype(np.int32)
    moved = fits[at] & (target != rows)
    children = np.where(fits[child_at], follow, -1).astype(np.int32)
    sources, targets, lengths = [rows[moved]], [target[moved]], [np.bincount(at[moved], minlength=count)]
    new_pages, new_fill = [pages], [np.where(fits, stay + come, 0)]
    first, first_child = np.cumsum(stay) - stay, np.cumsum(come) - come
    for k in np.flatnonzero(~fits).tolist():
        mine = rows[first[k] : first[k] + stay[k]]
        theirs = slice(first_child[k], first_child[k] + come[k])
        parts = _cut(np.concatenate([entries[mine], child_entries[theirs]]), page_rows)
        homes = np.array([pages[k], *(free.take() for _ in parts[1:])], np.int32)
        goal = np.empty(stay[k] + come[k], np.int32)
        for part, home in zip(parts, homes, strict=True):
            goal[part] = home * page_rows + np.arange(len(part))
        children[theirs] = goal[stay[k] :]
        # First those that leave the page, then those that move up in it: a place is read before it is overwritten.
        goal = goal[: stay[k]]
        out = goal // page_rows != pages[k]
        up = ~out & (goal != mine)
        sources += [mine[out], mine[up]]
        targets += [goal[out], goal[up]]
        lengths.append(np.array([out.sum() + up.sum()]))
        new_fill[0][k] = len(parts[0])
        new_pages.append(homes[1:])
        new_fill.append(np.array([len(part) for part in parts[1:]]))
    changed, filled = np.concatenate(new_pages), np.concatenate(new_fill)
    order = np.argsort(changed)
    return Moves(
        np.concatenate(sources),
        np.concatenate(targets),
        np.cumsum(np.concatenate([[0], *lengths])).astype(np.int64),
        children,
        changed[order].astype(np.int32),
        filled[order].astype(np.int32),
    )


def _cut(entries: np.ndarray, page_rows: int) -> list[np.ndarray]:
    """Positions of entries [n, 4] in parts of `page_rows` at most, each ascending; all but large rows near each other."""
    large = entries[:, 3] > _LARGE * np.median(entries[:, 3])
    parts, done = [np.arange(len(entries))], []
    while parts:
        part = parts.pop()
        if len(part) <= page_rows:
            done.append(part)
            continue
        centres = entries[part, :3]
        axis = int(np.argmax(np.ptp(centres, axis=0)))
        order = np.lexsort((centres[:, axis], large[part]))
        half = (len(part) + 1) // 2
        parts += [np.sort(part[order[half:]]), np.sort(part[order[:half]])]
    return done


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
