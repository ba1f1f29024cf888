"""Pages that leave one store for another: everything of their rows, cull entries and statistics included, as bytes.

A row does not change on the way, so neither does anything that is computed from it. Where pages lie in a store is its own matter:
they come to empty pages, the first ones first, or to new ones at the end.
"""

from __future__ import annotations

import numpy as np

from clm.store.arrays import columns_of
from clm.store.gifts import FreePages
from clm.store.paged import ENTRY_COLUMNS
from clm.store.pages import live_rows
from clm.store.store import Store


def _kind(moments: str | None) -> np.dtype:
    """Of a row that travels: 764 bytes with f32 moments."""
    columns = {**columns_of(moments), "entries": (ENTRY_COLUMNS, np.float32)}
    return np.dtype([(name, kind, (width,)) for name, (width, kind) in columns.items()])


def take_pages(store: Store, pages: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pages [A] i32 (ascending) leave: their rows [n, bytes] u8, page by page, and fill [A] i64."""
    fill = store.fill[pages].astype(np.int64)
    rows, done = np.empty(int(fill.sum()), _kind(store.moments)), 0
    for some, held in store.sweep(pages):
        ids = live_rows(some, store.fill[some], store.page_rows)
        piece = rows[done : done + len(ids)]
        for name in held.names:
            piece[name] = getattr(held, name)[held.at(ids)].reshape(piece[name].shape)
        piece["entries"] = store.entries[ids]
        done += len(ids)
    store.empty_pages(pages)
    return rows.view(np.uint8).reshape(len(rows), rows.itemsize), fill


def put_pages(store: Store, rows: np.ndarray, fill: np.ndarray) -> None:
    """Pages with these rows [n, bytes] u8, fill [A] i64, come. Raises ResourceError where there is no room for them."""
    free = FreePages(np.flatnonzero(store.fill == 0).tolist(), store.pages)
    pages = np.array([free.take() for _ in fill], np.int32)
    order = np.argsort(pages)
    edges = np.concatenate([[0], np.cumsum(fill)])
    mine = np.ascontiguousarray(rows).view(_kind(store.moments)).reshape(-1)
    step = max(1, min(64, store.arrays.most_pages))
    for first in range(0, len(order), step):
        group = order[first : first + step]
        whose = np.concatenate([np.arange(edges[k], edges[k + 1]) for k in group])
        with store.filling(pages[group], fill[group]) as held:
            ids = live_rows(pages[group], store.fill[pages[group]], store.page_rows)
            for name in held.names:
                array = getattr(held, name)
                array[held.at(ids)] = mine[name][whose].reshape(len(ids), *array.shape[1:])
            store.entries[ids] = mine["entries"][whose]
            drawn = mine["statistics"][whose][:, 0] > 0 if "statistics" in held.names else np.zeros(len(ids), bool)
            store.seen[np.unique(ids[drawn] // store.page_rows)] = True
    store.refresh_bounds(np.sort(pages))
