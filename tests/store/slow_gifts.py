"""Gifts between pages as `clm.store.gifts` has them, in numpy, page by page."""

from __future__ import annotations

import math

import numpy as np

from clm.store.gifts import part_sizes

_RATHER_EMPTY, _FULL, _LARGER, _ALIKE, _LOOKED_AT, _IN_PAIRS, CUT = 0.6, 0.9, 1.15, 4.0, 8, 6, 6
Found = list[tuple[int, int, int, int]]  # giver, taker, rows, how


class _Given:
    def __init__(self, pages: int) -> None:
        self.gifts: Found = []
        self.busy = np.zeros(pages, bool)
        self._new = pages

    def give(self, giver: int, taker: int, rows: int, how: int) -> None:
        self.busy[giver] = True
        if taker < len(self.busy):
            self.busy[taker] = True
        if rows > 0:
            self.gifts.append((giver, taker, rows, how))

    def new(self) -> int:
        self._new += 1
        return self._new - 1


def slow_gifts_of_full_pages(total: np.ndarray, bounds: np.ndarray, page_rows: int) -> Found:
    given = _Given(len(total))
    for page in np.flatnonzero(total > page_rows).tolist():
        if given.busy[page]:
            continue
        mine, others = int(total[page]), np.flatnonzero(~given.busy)
        others = others[others != page]
        room = others[total[others] + mine <= 2 * _FULL * page_rows]
        rows = (mine - total[room]) // 2
        at, how = _best(bounds, page, room, rows / mine)
        if at >= 0:
            given.give(page, int(room[at]), int(rows[at]), how)
            continue
        full = others[total[others] + mine <= 3 * _FULL * page_rows]
        full = full[total[full] + mine > 2 * _FULL * page_rows]
        third = -(-(mine + total[full]) // 3)
        full, third = full[total[full] > third], third[total[full] > third]
        at, how = _best(bounds, page, full, 1 - third / mine, 1 - third / total[full])
        if at >= 0:
            other, new = int(full[at]), given.new()
            given.give(page, new, mine - int(third[at]), how)
            given.give(other, new, int(total[other] - third[at]), how ^ 1)
            continue
        for part in part_sizes(mine, math.ceil(mine / page_rows))[1:]:
            given.give(page, given.new(), part, CUT)
    return given.gifts


def slow_gifts_of_empty_pages(fill: np.ndarray, bounds: np.ndarray, page_rows: int) -> Found:
    given = _Given(len(fill))
    for page in np.flatnonzero(fill <= _RATHER_EMPTY * page_rows).tolist():
        if given.busy[page]:
            continue
        near = np.arange(max(0, page - _LOOKED_AT), min(len(fill), page + _LOOKED_AT + 1))
        near = near[~given.busy[near] & (near != page)]
        mine, room = int(fill[page]), near[fill[near] + int(fill[page]) <= _FULL * page_rows]
        spread = _spread(fill[room] + mine, np.maximum(fill[room], mine))
        which, how = _best(bounds, page, room, np.ones(len(room)), spread=spread)
        if which >= 0:
            given.give(page, int(room[which]), mine, how)
            continue
        near = near[np.argsort(fill[near], kind="stable")][:_IN_PAIRS]
        one, two = (near[k] for k in np.triu_indices(len(near), 1))
        fits = fill[one] + fill[two] + mine <= 2 * _FULL * page_rows
        one, two = one[fits], two[fits]
        rows = np.clip((mine + fill[two] - fill[one]) // 2, 0, mine)
        spread = _spread(fill[one] + rows, np.maximum(fill[one], mine))
        there = _spread(fill[two] + mine - rows, np.maximum(fill[two], mine))
        which, how = _best(bounds, page, one, rows / mine, beside=two, spread=spread, spread_beside=there)
        if which >= 0:
            given.give(page, int(one[which]), int(rows[which]), how)
            given.give(page, int(two[which]), mine - int(rows[which]), how ^ 1)
    return given.gifts


def _spread(rows: np.ndarray, before: np.ndarray) -> np.ndarray:
    """How much larger a box may be with `rows` than with `before`, both [n]."""
    return np.maximum(1.0, np.sqrt(rows / before))


def _best(
    bounds: np.ndarray,
    page: int,
    others: np.ndarray,
    share: np.ndarray,
    back: np.ndarray | None = None,
    beside: np.ndarray | None = None,
    spread: np.ndarray | float = 1.0,
    spread_beside: np.ndarray | float = 1.0,
) -> tuple[int, int]:
    """Which of `others` [n] a page best gives a share [n] of its rows to, and how (`Gifts.how`); -1: none of them. back [n]:
    both give to a new page, the others this share of theirs. beside [n]: pages that take what the others do not."""
    if not len(others):
        return -1, 0
    bounds = bounds.astype(np.float64)
    centres = bounds[:, :3] + bounds[:, 4:7]
    to, away = centres[others], centres[page] if beside is None else centres[beside]
    best, best_how = np.full(len(others), np.inf), np.zeros(len(others), np.int64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        for axis in range(3):
            up = (to - away)[:, axis] > 0
            larger = _larger(bounds, page, others, axis, up, share, back) / spread
            if beside is not None:
                larger = np.maximum(larger, _larger(bounds, page, beside, axis, ~up, 1 - share) / spread_beside)
            better = larger < best
            best, best_how = np.where(better, larger, best), np.where(better, 2 * axis + up, best_how)
    at = int(np.argmin(best))
    return (at, int(best_how[at])) if best[at] <= _LARGER else (-1, 0)


def _larger(
    bounds: np.ndarray,
    page: int,
    others: np.ndarray,
    axis: int,
    up: np.ndarray,
    share: np.ndarray,
    back: np.ndarray | None = None,
) -> np.ndarray:
    """Diagonal [n] of the taker's box, in diagonals of the larger of both boxes, if rows are spread evenly; infinite where one
    page has much larger rows than the other, or bounds that are not finite."""
    low, high, radius = bounds[:, :3], bounds[:, 4:7], bounds[:, 3]
    mine, theirs = (low[[page] * len(others)], high[[page] * len(others)]), (low[others], high[others])
    size = np.maximum(*(np.linalg.norm(top - bottom, axis=1) for bottom, top in (mine, theirs)))
    mine = _slab(*mine, axis, up, share)
    if back is not None:
        theirs = _slab(*theirs, axis, ~up, back)
    box = np.maximum(mine[1], theirs[1]) - np.minimum(mine[0], theirs[0])
    alike = np.maximum(radius[others], radius[page]) <= _ALIKE * np.minimum(radius[others], radius[page])
    finite = np.isfinite(bounds[:, :7]).all(axis=1)
    return np.where(alike & finite[others] & finite[page], np.linalg.norm(box, axis=1) / size, np.inf)


def _slab(
    low: np.ndarray, high: np.ndarray, axis: int, up: np.ndarray, share: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [n, 3] of the share [n] of rows that lies farthest up, or down, an axis."""
    low, high = low.copy(), high.copy()
    deep = share * (high[:, axis] - low[:, axis])
    low[up, axis], high[~up, axis] = (high[:, axis] - deep)[up], (low[:, axis] + deep)[~up]
    return low, high
