"""Sizes and counts are read as people write them, and written as flags take them."""

from __future__ import annotations

import pytest

from clm.errors import ClmError
from clm.units import format_bytes, format_rows, parse_bytes, size_flag

GIB = 2**30


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


@pytest.mark.parametrize("count", [1, 2**20, 2**20 + 1, 700 * 2**20, GIB - 1, GIB, 3 * GIB + 1, 10**12])
def test_the_flag_of_a_size_holds_it_and_hardly_more(count: int) -> None:
    stated = parse_bytes(size_flag(count))
    assert count <= stated < count + (2**20 if count < GIB else GIB // 9)
