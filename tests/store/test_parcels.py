"""Pages that go from store to store take everything of their rows along, also from and to a disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clm.store.parcels import put_pages, take_pages
from clm.store.store import Store
from tests.store.test_store import random_store


def joined(*stores: Store) -> list[bytes]:
    """Every live row of some stores, whole, sorted."""
    found = []
    for store in stores:
        for ids, held in store.sweep_rows():
            at = held.at(ids)
            columns = [np.ascontiguousarray(getattr(held, name)[at]).reshape(len(at), -1) for name in held.names]
            whole = [column.view(np.uint8) for column in (*columns, np.ascontiguousarray(store.entries[ids]))]
            found += list(map(bytes, np.concatenate(whole, axis=1)))
    return sorted(found)


@pytest.mark.parametrize("moments", ["f32", "bf16"])
@pytest.mark.parametrize("on_disk", [False, True], ids=["in RAM", "on disk"])
def test_pages_that_go_to_another_store_are_there_as_they_were(tmp_path: Path, moments: str, on_disk: bool) -> None:
    one, two = (random_store(900, seed, moments, page_rows=64) for seed in (1, 2))
    two.keys[:] += np.uint64(10_000)
    for store in (one, two):
        store.refresh(None)
    if on_disk:
        one.keep_on_disk(16, tmp_path)
        two.keep_on_disk(16, tmp_path)
    before = joined(one, two)
    for pages in ([1, 2, 7], [], [0, 14]):
        put_pages(two, *take_pages(one, np.array(pages, np.int32)))
    put_pages(one, *take_pages(two, np.arange(5, dtype=np.int32)))
    assert joined(one, two) == before
    assert one.rows + two.rows == 1800 and one.rows == one.fill.sum()
    for store in (one, two):
        bounds = store.bounds.copy()
        store.refresh_bounds(np.arange(store.pages, dtype=np.int32))
        np.testing.assert_array_equal(store.bounds, bounds)
        store.close()


def test_a_page_with_drawn_rows_is_one_to_look_at_where_it_comes_to() -> None:
    one, two = random_store(300, 1, page_rows=64), random_store(300, 2, page_rows=64)
    one.statistics[:, 0] = 0
    one.statistics[70, 0] = 3
    one.seen[:], two.seen[:] = False, False
    put_pages(two, *take_pages(one, np.array([0, 1], np.int32)))
    assert two.seen.sum() == 1 and not one.seen[:2].any()
