"""Gifts between pages as `clm.store.gifts` has them, page by page."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np

_RATHER_EMPTY, _FULL, _LARGER, _ALIKE, _WORTHWHILE, _LOOKED_AT, _IN_PAIRS = 0.6, 0.9, 1.15, 4.0, 0.15, 8, 6
Found = list[list[int]]  # giver, taker, rows, how


def slow_gifts(fill: np.ndarray, bounds: np.ndarray, page_rows: int) -> Found:
    pages, gifts, busy = _Pages(fill, bounds), [], np.zeros(len(fill), bool)
    for page in np.flatnonzero((fill <= _RATHER_EMPTY * page_rows) & (fill > 0)).tolist():
        if busy[page]:
            continue
        mine = int(fill[page])
        near = [
            k
            for k in range(page - _LOOKED_AT, page + _LOOKED_AT + 1)
            if 0 <= k < len(fill) and k != page and not busy[k]
        ]
        emptiest = sorted(near, key=lambda k: fill[k])[:_IN_PAIRS]
        fullest = sorted(near, key=lambda k: -fill[k])[:_IN_PAIRS]
        room = [k for k in near if mine + fill[k] <= _FULL * page_rows]
        two = [p for p in combinations(emptiest, 2) if mine + fill[list(p)].sum() <= 2 * _FULL * page_rows]
        for found in (
            _least(((k,) for k in room), lambda one, page=page: pages.joined(page, one[0])),
            _least(two, lambda pair, page=page: pages.shared(page, *pair)),
            _least(combinations(fullest, 2), lambda pair, page=page: pages.gathered(page, pair, page_rows)),
            _least(((k,) for k in fullest), lambda one, page=page: pages.gathered(page, one, page_rows)),
        ):
            if found is not None:
                gifts += [list(gift) for gift in found if gift[2] > 0]
                busy[[page, *(k for gift in found for k in gift[:2])]] = True
                break
    return gifts


def _least(choices, how: Callable) -> list[tuple[int, int, int, int]] | None:
    """The gifts of the first of the choices that makes boxes least larger; None where none is good."""
    best, gifts = np.inf, None
    for choice in choices:
        larger, those = how(choice)
        if larger < best:
            best, gifts = larger, those
    return gifts if best <= _LARGER else None


class _Pages:
    def __init__(self, fill: np.ndarray, bounds: np.ndarray):
        self.fill, self.finite = fill.astype(int), np.isfinite(bounds[:, :7]).all(axis=1)
        self.radius = bounds[:, 3]
        self.low, self.high = bounds[:, :3].astype(np.float64), bounds[:, 4:7].astype(np.float64)

    def box(self, page: int) -> tuple[np.ndarray, np.ndarray]:
        return self.low[page], self.high[page]

    def size(self, *pages: int) -> float:
        return max(_diagonal(self.box(page)) for page in pages)

    def alike(self, *pages: int) -> bool:
        radius = self.radius[list(pages)]
        return bool(self.finite[list(pages)].all()) and all(
            max(r, radius[0]) <= _ALIKE * min(r, radius[0]) for r in radius
        )

    def up(self, giver: int, taker: int, axis: int) -> bool:
        return sum(self.box(taker))[axis] > sum(self.box(giver))[axis]

    def slab(self, page: int, axis: int, up: bool, share: float) -> tuple[np.ndarray, np.ndarray]:
        low, high = self.low[page].copy(), self.high[page].copy()
        deep = share * (high[axis] - low[axis])
        if up:
            low[axis] = high[axis] - deep
        else:
            high[axis] = low[axis] + deep
        return low, high

    def spread(self, rows: int, page: int, other: int) -> float:
        return max(1.0, np.sqrt(rows / max(self.fill[page], self.fill[other])))

    def joined(self, page: int, other: int) -> tuple[float, list]:
        if not self.alike(page, other):
            return np.inf, []
        rows = self.fill[page]
        larger = _diagonal(self.box(page), self.box(other)) / self.size(page, other)
        return larger / self.spread(rows + self.fill[other], page, other), [(page, other, rows, 0)]

    def shared(self, page: int, one: int, two: int) -> tuple[float, list]:
        if not self.alike(page, one, two):
            return np.inf, []
        mine, best, how = self.fill[page], np.inf, 0
        rows = min(max(int((mine + self.fill[two] - self.fill[one]) / 2), 0), mine)
        for axis in range(3):
            up, share = self.up(two, one, axis), rows / mine
            first = _diagonal(self.slab(page, axis, up, share), self.box(one)) / self.size(page, one)
            second = _diagonal(self.slab(page, axis, not up, 1 - share), self.box(two)) / self.size(page, two)
            first /= self.spread(self.fill[one] + rows, page, one)
            second /= self.spread(self.fill[two] + mine - rows, page, two)
            if max(first, second) < best:
                best, how = max(first, second), 2 * axis + up
        return best, [(page, one, rows, how), (page, two, mine - rows, how ^ 1)]

    def gathered(self, page: int, givers: tuple[int, ...], page_rows: int) -> tuple[float, list]:
        each = -(-(self.fill[page] + sum(self.fill[k] for k in givers)) // (len(givers) + 1))
        if not self.alike(page, *givers) or any(self.fill[k] - each < _WORTHWHILE * page_rows for k in givers):
            return np.inf, []
        boxes, gifts = [self.box(page)], []
        for giver in givers:
            best, slab, how = np.inf, self.box(page), 0
            for axis in range(3):
                up = self.up(giver, page, axis)
                part = self.slab(giver, axis, up, 1 - each / self.fill[giver])
                if _diagonal(part, self.box(page)) < best:
                    best, slab, how = _diagonal(part, self.box(page)), part, 2 * axis + up
            boxes.append(slab)
            gifts.append((giver, page, self.fill[giver] - each, how))
        return _diagonal(*boxes) / self.size(page, *givers), gifts


def _diagonal(*boxes: tuple[np.ndarray, np.ndarray]) -> float:
    low, high = (np.array(edges) for edges in zip(*boxes, strict=True))
    return float(np.sqrt(((high.max(axis=0) - low.min(axis=0)) ** 2).sum()))
