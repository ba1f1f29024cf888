"""Bytes are computed in one place, and are those of the real arrays."""

from __future__ import annotations

import numpy as np
import pytest

from clm.errors import ClmError
from clm.plan.budget import (
    arena_bytes,
    format_bytes,
    format_rows,
    in_core_bytes,
    parse_bytes,
    resident_row_bytes,
    slots_for,
    store_bytes,
    store_row_bytes,
)

GIB = 2**30


def test_bytes_are_those_of_the_arrays() -> None:
    rows = 10
    geometry, colour = np.zeros((rows, 12), np.float32), np.zeros((rows, 48), np.float32)
    parameters = geometry.nbytes + colour.nbytes
    stamps, entries, statistics = (
        np.zeros(rows, np.int32),
        np.zeros((rows, 4), np.float32),
        np.zeros((rows, 2), np.float32),
    )
    assert store_bytes(rows) == 3 * parameters + stamps.nbytes + entries.nbytes + statistics.nbytes
    half = sum(np.zeros((rows, columns), np.uint16).nbytes for columns in (12, 12, 48, 48))  # bf16 moments
    rest = parameters + stamps.nbytes + entries.nbytes + statistics.nbytes
    assert store_bytes(rows, store_row_bytes("bf16")) == half + rest
    gradients = np.zeros((rows, 16), np.float32).nbytes + colour.nbytes
    assert arena_bytes(rows) == parameters + gradients
    assert rows * resident_row_bytes("f32") == store_bytes(rows) - entries.nbytes
    assert in_core_bytes(rows, 4) == rows * resident_row_bytes("f32") + arena_bytes(4)
    assert resident_row_bytes("bf16", shared_memory=False) == resident_row_bytes("f32") > resident_row_bytes("bf16")
    assert slots_for(arena_bytes(7)) == 7 and slots_for(arena_bytes(7) - 1) == 6 and slots_for(0) == 0


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8GiB", 8 * GIB),
        ("8G", 8 * GIB),
        ("8 gib", 8 * GIB),
        ("8GB", 8 * 10**9),
        ("1.5MiB", 3 * 2**19),
        ("123", 123),
        ("7B", 7),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "8 Gigs", "-1GiB", "8GiBs", "1e9", "8iB"])
def test_a_bad_size_is_named(text: str) -> None:
    with pytest.raises(ClmError, match=r"Not a size in bytes.*8GiB"):
        parse_bytes(text)


def test_sizes_are_written_with_one_decimal() -> None:
    assert [format_bytes(c) for c in (17, 1536, 512 * 2**20, round(12.4 * GIB))] == [
        "17 B",
        "1.5 KiB",
        "512.0 MiB",
        "12.4 GiB",
    ]
    assert format_bytes(GIB - 1) == "1.0 GiB"
    assert [format_rows(c) for c in (18_700_000, 1_290_000, 950_400, 7_000, 740, 0)] == [
        "18M",
        "1.2M",
        "950k",
        "7k",
        "740",
        "0",
    ]
