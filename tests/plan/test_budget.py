"""Bytes are computed in one place, and are those of the real arrays."""

from __future__ import annotations

import numpy as np

from clm.plan.budget import arena_bytes, in_core_bytes, resident_row_bytes, slots_for, store_bytes, store_row_bytes


def test_bytes_are_those_of_the_arrays() -> None:
    rows = 10
    geometry, colour = np.zeros((rows, 12), np.float32), np.zeros((rows, 48), np.float32)
    parameters = geometry.nbytes + colour.nbytes
    stamps, keys, entries, statistics = (
        np.zeros(rows, np.int32),
        np.zeros(rows, np.uint64),
        np.zeros((rows, 4), np.float32),
        np.zeros((rows, 2), np.float32),
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
