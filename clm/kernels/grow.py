"""Typed face of the kernels of a rebuild (source: `src/grow.cpp`): drawn rows, places, new rows.

Results do not depend on threads."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import NamedTuple

import numpy as np

from clm.kernels import ids, load, pointer
from clm.kernels.numbers import COLOUR, GEOMETRY, STATISTICS
from clm.kernels.rows import AdamStep, StoreArrays, step_address

f32, i32, i64, u64 = np.float32, np.int32, np.int64, np.uint64
_WORD = (1 << 64) - 1


@cache
def _library() -> ctypes.CDLL:
    library = load()
    address, long, word = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64
    library.clm_count_drawn.argtypes = [address, address, long, address, address, long, address]
    library.clm_see_drawn.argtypes = [*[address] * 5, long, address, address, long, *[address] * 8]
    library.clm_see_opacity.argtypes = [*[address] * 4, long, address, address, long, *[address] * 4]
    library.clm_normals.argtypes = [address, long, word, word, address]
    library.clm_cut.argtypes = [address, long, long, address]
    library.clm_plan_growth.argtypes = [address, address, long, long, *[address] * 17]
    library.clm_put_rows.argtypes = [address, address, address, long, *[address] * 4, long, *[address] * 3]
    library.clm_find_gifts.argtypes = [address, address, long, long, address]
    library.clm_find_gifts.restype = long
    for name in ("count_drawn", "see_drawn", "see_opacity", "normals", "cut", "plan_growth", "put_rows"):
        getattr(library, f"clm_{name}").restype = None
    return library


def see_drawn(
    store: StoreArrays,
    step: AdamStep | None,
    statistics: np.ndarray,
    store_keys: np.ndarray,
    fill: np.ndarray,
    page_rows: int,
    pages: np.ndarray,
    frames: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """Rows of pages [A], which lie in frames [A] i64 of the store's arrays, with statistics [N, 4] of at least one view, page by
    page: ids [n] i32, mean gradient, largest log-scale and logit of opacity [n] f32 as they are after `step - 1`, keys [n] u64, and
    sums over views of their pixels and of the squares [n] f32. fill [pages] i32: of all."""
    pages, counts = np.ascontiguousarray(pages, i64), np.empty(len(pages), i64)
    seen, live, those = pointer(statistics, f32, None, STATISTICS), pointer(fill, i32, None), pointer(pages, i64, None)
    there = pointer(frames, i64, len(pages))
    _library().clm_count_drawn(seen, live, page_rows, those, there, len(pages), pointer(counts, i64, None))
    starts, total = np.cumsum(counts) - counts, int(counts.sum())
    rows, gradient, log_scale, logit_opacity = np.empty(total, i32), *(np.empty(total, f32) for _ in range(3))
    keys, pixels, squares = np.empty(total, u64), np.empty(total, f32), np.empty(total, f32)
    _library().clm_see_drawn(
        ctypes.byref(store.view()),
        step_address(step),
        seen,
        pointer(store_keys, u64, len(statistics)),
        live,
        page_rows,
        those,
        there,
        len(pages),
        pointer(starts, i64, None),
        pointer(rows, i32, None),
        *(pointer(column, f32, None) for column in (gradient, log_scale, logit_opacity)),
        pointer(keys, u64, None),
        pointer(pixels, f32, None),
        pointer(squares, f32, None),
    )
    return rows, gradient, log_scale, logit_opacity, keys, pixels, squares


def see_opacity(
    store: StoreArrays,
    step: AdamStep | None,
    store_keys: np.ndarray,
    fill: np.ndarray,
    page_rows: int,
    pages: np.ndarray,
    frames: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Live rows of pages [A], which lie in frames [A] i64 of the store's arrays, page by page: ids [n] i32, logit of opacity [n]
    f32 as it is after `step - 1`, and keys [n] u64. fill [pages] i32: of all."""
    pages, counts = np.ascontiguousarray(pages, i64), fill[pages].astype(i64)
    starts, total = np.cumsum(counts) - counts, int(counts.sum())
    rows, logit_opacity, keys = np.empty(total, i32), np.empty(total, f32), np.empty(total, u64)
    _library().clm_see_opacity(
        ctypes.byref(store.view()),
        step_address(step),
        pointer(store_keys, u64, None),
        pointer(fill, i32, None),
        page_rows,
        pointer(pages, i64, None),
        pointer(frames, i64, len(pages)),
        len(pages),
        pointer(starts, i64, None),
        pointer(rows, i32, None),
        pointer(logit_opacity, f32, None),
        pointer(keys, u64, None),
    )
    return rows, logit_opacity, keys


def normals(keys: np.ndarray, seed: int, image: int) -> np.ndarray:
    """Three standard normal numbers [K, 3] f64 for each of keys [K] u64."""
    keys = np.ascontiguousarray(keys, u64)
    numbers = np.empty((len(keys), 3))
    _library().clm_normals(
        pointer(keys, u64, None), len(keys), seed & _WORD, image & _WORD, pointer(numbers, np.float64, None, 3)
    )
    return numbers


def cut_order(entries: np.ndarray, parts: int) -> np.ndarray:
    """Positions [n] i32 of entries [n, 4], part after part of the sizes that `clm.store.pages.part_sizes` says."""
    order = np.empty(len(entries), i32)
    _library().clm_cut(pointer(entries, f32, None, 4), len(entries), parts, pointer(order, i32, None))
    return order


CUT = 6  # how a page gives: a part, of the page cut into as many as it gives, and one that it keeps


class Gifts(NamedTuple):
    """Rows that pages give to others, as arrays over gifts; those of a page one after the other.

    giver [G]: index in the list of pages; taker [G] i32: page; rows [G] i32: how many; how [G] i32: along which axis, and whether
    towards larger centres (2 axis + 1) or smaller ones (2 axis), or CUT, which all gifts of a page are then."""

    giver: np.ndarray
    taker: np.ndarray
    rows: np.ndarray
    how: np.ndarray


def find_gifts(fill: np.ndarray, bounds: np.ndarray, page_rows: int) -> np.ndarray:
    """Gifts [G, 4] i32: giver, taker (indices in the list), rows, how, of pages with fill [A] i32 and bounds [A, 8] in an order in
    which neighbours are near."""
    gifts = np.empty((2 * len(fill), 4), i32)
    count = _library().clm_find_gifts(
        pointer(fill, i32, None), pointer(bounds, f32, len(fill), 8), len(fill), page_rows, pointer(gifts, i32, None, 4)
    )
    return gifts[:count]


def plan_pages(
    pages: np.ndarray,
    fill: np.ndarray,
    page_rows: int,
    leave: tuple[np.ndarray, np.ndarray],
    come_at: np.ndarray,
    gifts: Gifts,
    entries: np.ndarray,
    children: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Places of children [C] i32, and moves: source, target [M] i32, runs [A + 1] i64 that cut them by page.

    Of pages [A] i32, ascending: fill [A] i32; leave: ids i32, where each page's begin [A + 1] i64; come_at [A + 1] i64: where each
    page's children begin. No page both gives and takes; those that take and are not listed are empty. entries [N, 4] of all rows,
    children [C, 12] geometry."""
    count, many = len(pages), len(gifts.rows)
    gone, come = np.diff(leave[1]), np.diff(come_at)
    given = np.bincount(gifts.giver, gifts.rows, count).astype(i64)
    gift_at = np.searchsorted(gifts.giver, np.arange(count + 1))
    # Places of gifts, those to one page together, in the order of pages.
    order = np.argsort(gifts.taker, kind="stable")
    places = np.empty(int(gifts.rows.sum()), i32)
    gift_place = np.empty(many, i64)
    gift_place[order] = np.cumsum(gifts.rows[order]) - gifts.rows[order]
    takers, first = np.unique(gifts.taker[order], return_index=True)
    begin, rows = gift_place[order][first], np.add.reduceat(gifts.rows[order], first) if many else gifts.rows
    at = np.searchsorted(pages, takers)
    listed = pages[np.minimum(at, count - 1)] == takers
    taken, take_at = np.zeros(count, i32), np.zeros(count, i64)
    taken[at[listed]], take_at[at[listed]] = rows[listed], begin[listed]
    for page, n, where in zip(takers[~listed].tolist(), rows[~listed].tolist(), begin[~listed].tolist(), strict=True):
        places[where : where + n] = np.arange(page * page_rows, page * page_rows + n)
    most_moves = given + np.maximum(gone + given - come - taken, 0)
    move_at, most = np.cumsum(most_moves) - most_moves, int(most_moves.sum())
    child_rows, source, target = np.empty(len(children), i32), np.empty(most, i32), np.empty(most, i32)
    moves = np.empty(count, i64)
    _library().clm_plan_growth(
        pointer(pages, i32, None),
        pointer(fill, i32, count),
        count,
        page_rows,
        pointer(leave[0], i32, None),
        pointer(leave[1], i64, count + 1),
        pointer(come_at, i64, count + 1),
        pointer(gift_at, i64, count + 1),
        pointer(gifts.how, i32, many),
        pointer(gifts.rows, i32, many),
        pointer(gift_place, i64, many),
        pointer(taken, i32, count),
        pointer(take_at, i64, count),
        pointer(places, i32, None),
        pointer(move_at, i64, count),
        pointer(entries, f32, None, 4),
        pointer(children, f32, None, GEOMETRY),
        pointer(child_rows, i32, None),
        pointer(source, i32, None),
        pointer(target, i32, None),
        pointer(moves, i64, count),
    )
    used = np.arange(most) < np.repeat(move_at + moves, most_moves)
    return child_rows, source[used], target[used], np.append(0, np.cumsum(moves))


def put_rows(
    store: StoreArrays,
    rows: np.ndarray,
    places: np.ndarray,
    geometry: np.ndarray,
    colour: np.ndarray,
    entries: np.ndarray,
    page_rows: int,
    identified: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None,
) -> None:
    """New rows [M] i32, at places [M] i32 of the store's arrays: geometry [M, 12], colour [M, 48]; their cull entries follow, in
    entries [N, 4].

    identified: their keys [M] u64, the store's keys and statistics, and how many places of each page were ever written [pages]
    i32; moments, stamps and statistics of those become zero, and are zero behind. None: the store has none of these."""
    keys, store_keys, statistics, written = identified or (None,) * 4
    _library().clm_put_rows(
        ctypes.byref(store.view()),
        ids(rows, len(entries)),
        ids(places, len(store.geometry), "places"),
        len(rows),
        pointer(geometry, f32, len(rows), GEOMETRY),
        pointer(colour, f32, len(rows), COLOUR),
        pointer(keys, u64, len(rows)),
        pointer(written, i32, None),
        page_rows,
        pointer(store_keys, u64, None),
        pointer(statistics, f32, None, STATISTICS),
        pointer(entries, f32, None, 4),
    )
