"""Bytes are computed in one place, and are those of the real arrays."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clm.plan.budget import (
    GROWTH_ROW_BYTES,
    arena_bytes,
    frame_bytes,
    growth_bytes,
    in_core_bytes,
    page_file_bytes,
    resident_row_bytes,
    scratch_free,
    scratch_room,
    slots_for,
    store_bytes,
    store_row_bytes,
)
from clm.store.store import Store


def test_bytes_are_those_of_the_arrays() -> None:
    rows = 10
    geometry, colour = np.zeros((rows, 12), np.float32), np.zeros((rows, 48), np.float32)
    parameters = geometry.nbytes + colour.nbytes
    stamps, keys, entries, statistics = (
        np.zeros(rows, np.int32),
        np.zeros(rows, np.uint64),
        np.zeros((rows, 4), np.float32),
        np.zeros((rows, 4), np.float32),
    )
    assert store_bytes(rows) == 3 * parameters + stamps.nbytes + keys.nbytes + entries.nbytes + statistics.nbytes
    half = sum(np.zeros((rows, columns), np.uint16).nbytes for columns in (12, 12, 48, 48))  # bf16 moments
    rest = parameters + stamps.nbytes + keys.nbytes + entries.nbytes + statistics.nbytes
    assert store_bytes(rows, store_row_bytes("bf16")) == half + rest
    gradients = np.zeros((rows, 16), np.float32).nbytes + colour.nbytes
    assert arena_bytes(rows) == parameters + gradients
    assert rows * resident_row_bytes("f32") == store_bytes(rows) - entries.nbytes - keys.nbytes
    assert in_core_bytes(rows, 4) == rows * resident_row_bytes("f32") + arena_bytes(4)
    assert resident_row_bytes("bf16", shared_memory=False) == resident_row_bytes("f32") > resident_row_bytes("bf16")
    assert slots_for(arena_bytes(7)) == 7 and slots_for(arena_bytes(7) - 1) == 6 and slots_for(0) == 0


def test_a_page_on_disk_has_all_arrays_of_its_rows_but_cull_entries_in_whole_sectors() -> None:
    for moments in ("f32", "bf16"):
        store = Store(2048, moments=moments)
        store.append(np.zeros((2048, 12), np.float32), np.zeros((2048, 48), np.float32))
        rows = sum(getattr(store, name).nbytes for name in store.names)
        assert frame_bytes(2048, moments) == rows
        assert page_file_bytes(2048, moments) == -(-rows // 4096) * 4096
    assert page_file_bytes(1) == 4096


@given(st.integers(0, 1 << 45))
def test_what_must_be_free_for_a_scratch_file_leaves_room_for_it_and_is_the_least_that_does(size: int) -> None:
    free = scratch_free(size)
    assert scratch_room(free) >= size
    assert scratch_room(free - 2) <= size
    assert 0 <= free - scratch_room(free) <= 1 << 30


def test_a_rebuild_needs_memory_for_rows_that_may_come_and_for_no_others() -> None:
    assert growth_bytes(1000, None) == growth_bytes(1000, 2000) == growth_bytes(1000, 9000) == 1000 * GROWTH_ROW_BYTES
    assert growth_bytes(1000, 1000) == growth_bytes(1000, 900) < growth_bytes(1000, 1001) < 1000 * GROWTH_ROW_BYTES / 3
