"""Which pages give rows to which others, so that pages stay full and compact. Pure; `src/gifts.cpp` looks for it.

As in a B*-tree. A page that overflows gives what is too much to a new page. A page that is rather empty, as those are, goes into
one near page with room, or into two; where nobody has room, it takes from two, so that three are two thirds full, or from one. A
page gives what is nearest to the taker, whose box must not become much larger than boxes were, and gives or takes at most once.
Rows that are much larger than the others of their page go last: one of them inflates a whole page's box.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from clm.kernels.grow import CUT, Gifts, find_gifts
from clm.kernels.sort import space_keys
from clm.store.order import CLASS_EDGES

FULL = 0.9  # of a page that gave what was too much: the next rebuild finds room
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
    """What pages [A] i32 with bounds [A, 8] give to new pages that would have more than page_rows of total [A] i64 rows: along
    the longest axis what is too much, where that is less than half; else they are cut into equal parts."""
    gifts, most = [], int(FULL * page_rows)
    for page in np.flatnonzero(total > page_rows).tolist():
        mine = int(total[page])
        if most < mine <= 2 * most:
            axis = int(np.argmax(bounds[page, 4:7] - bounds[page, :3]))
            gifts.append((page, free.take(), mine - most, 2 * axis + 1))
        else:
            gifts += [(page, free.take(), n, CUT) for n in part_sizes(mine, math.ceil(mine / page_rows))[1:]]
    giver, taker, rows, how = np.array(gifts, np.int64).reshape(-1, 4).T
    return Gifts(giver, *(np.ascontiguousarray(column, np.int32) for column in (taker, rows, how)))


def gifts_of_empty_pages(pages: np.ndarray, fill: np.ndarray, bounds: np.ndarray, page_rows: int) -> Gifts:
    """What pages [A] i32, fill [A] i32 rows and bounds [A, 8], give give and take where some are rather empty."""
    if not len(pages):
        return Gifts(np.zeros(0, np.int64), *[np.zeros(0, np.int32)] * 3)
    order = along_a_curve(bounds)
    found = find_gifts(fill[order], bounds[order], page_rows)
    giver, taker, rows, how = found[np.argsort(order[found[:, 0]], kind="stable")].T  # those of a page keep their order
    return Gifts(order[giver], pages[order[taker]], np.ascontiguousarray(rows), np.ascontiguousarray(how))


def along_a_curve(bounds: np.ndarray) -> np.ndarray:
    """Indices [A] of pages with bounds [A, 8]: by the class of their largest radius, then in space."""
    low, high = bounds[:, :3], bounds[:, 4:7]
    centres = np.column_stack([(low + high) / 2, bounds[:, 3]]).astype(np.float32)
    corner, edge = centres[:, :3].min(axis=0).astype(np.float64), float(np.ptp(centres[:, :3], axis=0).max())
    edges = (np.median(centres[:, 3]) * np.asarray(CLASS_EDGES)).astype(np.float32)
    return np.argsort(space_keys(centres, corner, edge or 1.0, edges), kind="stable")
