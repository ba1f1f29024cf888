"""Rows of a PLY in another order: the same rows whatever the way, few reads, and nothing left behind."""

from __future__ import annotations

import errno
import os
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clm.errors import ResourceError
from clm.formats import columns, ordered, spool
from clm.formats.ordered import in_order
from clm.formats.ply_read import PlyRows, open_ply
from clm.formats.ply_write import write_ply
from tests.formats.whole import read_all

ROWS, BUCKET = 20_000, 3000


@pytest.fixture(scope="module")
def ply(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of which some cannot be used: two numbers are missing in `usable`."""
    rng = np.random.default_rng(0)
    geometry, colour = rng.normal(size=(ROWS, 12)).astype(np.float32), rng.normal(size=(ROWS, 48)).astype(np.float32)
    path = tmp_path_factory.mktemp("ply") / "rows.ply"
    write_ply(path, [(geometry, colour)])
    data = bytearray(path.read_bytes())
    for number in (17, 5000):
        at = len(data) - (ROWS - number) * 248
        data[at : at + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(data)
    return path


def usable() -> np.ndarray:
    return np.delete(np.arange(ROWS, dtype=np.int32), [17, 5000])


def orders() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    pages = np.array_split(usable(), 40)
    return {
        "as they lie": usable(),
        "in pages": np.concatenate([rng.permutation(pages[k]) for k in rng.permutation(40)]),
        "shuffled": rng.permutation(usable()),
        "some": rng.permutation(usable())[:7000],
        "none": usable()[:0],
    }


def gathered(path: Path, numbers: np.ndarray, scratch: Path, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    geometry, colour = np.zeros((len(numbers), 12), np.float32), np.zeros((len(numbers), 48), np.float32)
    done = 0
    for theirs, colours in in_order(open_ply(path), numbers, scratch, **options):
        last = done + len(theirs)
        geometry[done:last], colour[done:last] = theirs, colours
        done = last
    assert done == len(numbers)
    return geometry, colour


@pytest.mark.parametrize("order", orders())
@pytest.mark.parametrize("bucket_rows", [BUCKET, 1 << 20])
@pytest.mark.parametrize("chunk", [1 << 16, 700])
def test_rows_come_in_the_order_asked_for(
    ply: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str, bucket_rows: int, chunk: int
) -> None:
    monkeypatch.setattr(ordered, "CHUNK_ROWS", chunk)
    numbers = orders()[order]
    at = np.searchsorted(usable(), numbers)
    wanted = [array[at] for array in read_all(ply)]
    for mine, expected in zip(gathered(ply, numbers, tmp_path, bucket_rows=bucket_rows), wanted, strict=True):
        np.testing.assert_array_equal(mine, expected)
    assert not list(tmp_path.iterdir())


def test_pages_that_lie_together_are_read_where_they_are_and_a_shuffled_file_is_copied_once(
    ply: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, real = [0], PlyRows.read
    monkeypatch.setattr(ordered, "_GAP", 32)  # so few rows, and pages of 500

    def counted(self: PlyRows, first: int, last: int) -> Any:
        read[0] += last - first
        return real(self, first, last)

    monkeypatch.setattr(PlyRows, "read", counted)
    gathered(ply, orders()["in pages"], tmp_path, bucket_rows=BUCKET)
    assert ROWS - 2 <= read[0] < 1.5 * ROWS
    read[0] = 0
    gathered(ply, orders()["shuffled"], tmp_path, bucket_rows=BUCKET)
    assert read[0] == 0


def test_a_scratch_folder_without_room_is_refused_before_anything_is_written(
    ply: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(spool.shutil, "disk_usage", lambda folder: usage(1 << 20))
    with pytest.raises(ResourceError, match=r"Sorting .*rows\.ply takes 4\.7 MiB in .*1\.0 MiB are free"):
        gathered(ply, orders()["shuffled"], tmp_path, bucket_rows=BUCKET)


def test_a_disk_that_fills_up_is_named_and_no_scratch_file_stays(
    ply: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [0], os.pwrite

    def full(*arguments: Any) -> int:
        calls[0] += 1
        if calls[0] > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(columns.os, "pwrite", full)
    with pytest.raises(ResourceError, match="disk is full"):
        gathered(ply, orders()["shuffled"], tmp_path, bucket_rows=BUCKET)
    assert not list(tmp_path.iterdir())


def test_the_scratch_file_has_no_name_while_it_is_in_use(ply: Path, tmp_path: Path) -> None:
    chunks = in_order(open_ply(ply), orders()["shuffled"], tmp_path, bucket_rows=BUCKET)
    next(chunks)
    assert not list(tmp_path.iterdir())
    chunks.close()
