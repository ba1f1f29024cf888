"""Which pages give rows to which others, so that pages stay full and compact. Pure; found by `src/gifts.cpp`.

As in a B*-tree: a page that overflows first gives rows to a near page with room; where that has none, both give to a new page, so
that three are two thirds full; without a near page it is cut into equal parts. A page that is rather empty goes into one near page,
or into two. A page gives what is nearest to the taker, whose box must not become much larger than the two boxes were; it gives or
takes at most once per rebuild. Rows that are much larger than the others of their page go last: one of them inflates a whole
page's box.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from clm.kernels.grow import Gifts, find_gifts_of_empty_pages, find_gifts_of_full_pages
from clm.kernels.sort import space_keys

QUITE_EMPTY = 0.5  # of a page, at most: such a page is looked at again, whether it changed or not


class FreePages:
    """Hands out empty pages: those that became free, the first one first, then new ones at the end."""

    def __init__(self, free: Iterable[int], pages: int):
        self._free, self.pages = sorted(free, reverse=True), pages

    def take(self) -> int:
        if self._free:
            return self._free.pop()
        self.pages += 1
        return self.pages - 1


def part_sizes(count: int, parts: int) -> list[int]:
    """Rows in each part of so many that are cut in two, in proportion, again and again until there are `parts`."""
    if parts < 2:
        return [count]
    lower = (parts + 1) // 2
    first = -(-count * lower // parts)
    return part_sizes(first, lower) + part_sizes(count - first, parts - lower)


def gifts_of_full_pages(
    pages: np.ndarray, total: np.ndarray, bounds: np.ndarray, page_rows: int, free: FreePages
) -> Gifts:
    """What pages [A] i32 with bounds [A, 8] give that would have more than page_rows of total [A] i64 rows."""
    found = find_gifts_of_full_pages(total, bounds, page_rows)
    new = range(max(0, int(found[:, 1].max(initial=-1)) + 1 - len(pages)))
    return _gifts(found, np.append(pages, np.array([free.take() for _ in new], np.int32)))


def gifts_of_empty_pages(pages: np.ndarray, fill: np.ndarray, bounds: np.ndarray, page_rows: int) -> Gifts:
    """What those of pages [A] i32, fill [A] i32 rows and bounds [A, 8], give that are rather empty: all they have."""
    if not len(pages):
        return _gifts(np.zeros((0, 4), np.int32), pages)
    order = along_a_curve(bounds)
    found = find_gifts_of_empty_pages(fill[order], bounds[order], page_rows)
    found[:, 0] = order[found[:, 0]]
    return _gifts(found, pages[order])


def along_a_curve(bounds: np.ndarray) -> np.ndarray:
    """Indices [A] of pages with bounds [A, 8]: by the class of their largest radius, then in space."""
    low, high = bounds[:, :3], bounds[:, 4:7]
    centres = np.column_stack([(low + high) / 2, bounds[:, 3]]).astype(np.float32)
    corner, span = centres[:, :3].min(axis=0).astype(np.float64), np.ptp(centres[:, :3], axis=0).astype(np.float64)
    edges = (np.median(centres[:, 3]) * np.array([4.0, 16.0, 64.0])).astype(np.float32)
    return np.argsort(space_keys(centres, corner, np.where(span > 0, span, 1.0), edges), kind="stable")


def _gifts(found: np.ndarray, pages: np.ndarray) -> Gifts:
    """Of found [G, 4] (giver, index of the taker's page, rows, how), by giver; those of a page keep their order."""
    giver, taker, rows, how = found[np.argsort(found[:, 0], kind="stable")].T
    return Gifts(giver.astype(np.int64), pages[taker], np.ascontiguousarray(rows), np.ascontiguousarray(how))
