"""Rows in frames over a file are the rows in RAM, whatever is asked for in whatever order, and damage is named."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clm.errors import ResourceError
from clm.kernels import page_file
from clm.store.foresight import NEVER, Foresight
from clm.store.frames import LEAST_FRAMES, Frames, seconds_of
from clm.store.growth import Growth
from clm.store.page_file import PageFile
from clm.store.store import Store

PAGE = 8  # rows


def rows_like(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 12), np.float32), rng.standard_normal((count, 48), np.float32)


def on_disk(folder: Path, count: int = 0, frames: int = LEAST_FRAMES) -> Store:
    store = Store(0, page_rows=PAGE, frames=frames, scratch=folder)
    store.append(*rows_like(count))
    return store


def everything(store: Store) -> dict[str, np.ndarray]:
    """All arrays of the live rows by name, in the order of ids."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in store.names}
    for ids, held in store.sweep_rows():
        for name in store.names:
            parts[name].append(getattr(held, name)[held.at(ids)])
    return {name: np.concatenate(part) for name, part in parts.items()}


def same(a: Store, b: Store) -> bool:
    one, other = everything(a), everything(b)
    return all(one[name].tobytes() == other[name].tobytes() for name in one)


@settings(max_examples=25, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.lists(st.integers(0, 999), min_size=1, max_size=60), st.floats(-5, 5, width=32)), max_size=12
    ),
    frames=st.integers(LEAST_FRAMES, 40),
    looks=st.lists(st.lists(st.integers(0, 124), max_size=20), max_size=8),
)
def test_changes_through_frames_are_those_in_ram(
    tmp_path_factory: pytest.TempPathFactory,
    changes: list[tuple[list[int], float]],
    frames: int,
    looks: list[list[int]],
) -> None:
    """Any rows changed through any frames, with any expectation of what comes, right or wrong."""
    store, plain = on_disk(tmp_path_factory.mktemp("scratch"), 1000, frames), Store(0, page_rows=PAGE)
    plain.append(*rows_like(1000))
    store.arrays.expect([np.unique(np.array(look, np.int32)) for look in looks])
    for tick, (ids, value) in enumerate(changes):
        rows = np.unique(np.array(ids, np.int32))
        for _, held, at in store.reach(rows, changing=True):
            held.colour[at] += np.float32(value)
        plain.colour[rows] += np.float32(value)
        store.arrays.passed(tick)
    assert same(store, plain)
    store.close()


def test_growing_frames_keep_and_shrinking_ones_write(tmp_path: Path) -> None:
    store, plain = on_disk(tmp_path, 600, 30), Store(0, page_rows=PAGE)
    plain.append(*rows_like(600))
    for frames in (60, 20, LEAST_FRAMES, 200):
        store.keep_on_disk(frames, tmp_path)
        assert store.disk is not None and store.disk.frames == frames and same(store, plain)
    store.keep_in_ram()
    assert store.disk is None and same(store, plain)
    store.keep_on_disk(LEAST_FRAMES, tmp_path)
    assert store.disk is not None and same(store, plain)
    store.close()


def test_several_threads_use_the_frames_at_once(tmp_path: Path) -> None:
    """Each adds one to its own rows, a hundred times over; the pages are shared and far more than the frames."""
    store = on_disk(tmp_path, 2000)
    before = everything(store)["colour"][:, 0]

    def work(mine: int) -> None:
        rng = np.random.default_rng(mine)
        for _ in range(5):
            rows = np.arange(mine, 2000, 3, dtype=np.int32)
            for k in rng.permutation(7):
                some = np.array_split(rows, 7)[k]
                for _, held, at in store.reach(some, changing=True):
                    held.colour[at, 0] += 1

    threads = [Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = before.copy()
    for _ in range(5):
        expected += np.float32(1)
    assert np.array_equal(everything(store)["colour"][:, 0], expected)
    store.close()


def test_what_is_expected_is_there_before_it_is_asked_for(tmp_path: Path) -> None:
    store = on_disk(tmp_path, 100 * PAGE, 2 * LEAST_FRAMES)
    disk = store.disk
    assert disk is not None
    ticks = [np.arange(first, first + 4, dtype=np.int32) for first in (0, 40, 20)]
    disk.expect(ticks)
    with disk._changed:
        disk._changed.wait_for(lambda: bool(disk.table.there(np.concatenate(ticks)).all()), timeout=20)
    missed = disk.missed
    for tick, pages in enumerate(ticks):
        with disk.hold(pages, False):
            assert (disk.table.frame_of[pages] >= 0).all()
        disk.passed(tick)
    assert disk.missed == missed
    store.close()


def test_a_flipped_byte_is_named(tmp_path: Path) -> None:
    store = on_disk(tmp_path, 100 * PAGE)
    disk = store.disk
    assert disk is not None
    page = next(p for p in range(100) if disk.table.frame_of[p] < 0)
    offset, block = page * disk.file.slot_bytes, 4096
    handle = os.open(f"/proc/self/fd/{disk.file._file}", os.O_RDWR)
    flipped = bytearray(os.pread(handle, block, offset))
    flipped[100] ^= 4
    os.pwrite(handle, flipped, offset)
    os.fsync(handle)
    os.close(handle)
    said = pytest.raises(ResourceError, match=rf"Could not read page {page} of the scratch file in .*other bytes")
    with said, disk.hold(np.array([page], np.int32), False):
        pass
    with pytest.raises(ResourceError, match="other bytes"):  # and ever after
        everything(store)
    store.close()


@pytest.mark.parametrize(
    ("error", "at", "written", "said"),
    [
        (28, 0, False, "Could not write page .* to the scratch file.*No space left"),
        (5, 0, True, "Could not read page .* of the scratch file.*Input/output error"),
        (page_file.ENDED_EARLY, 0, True, "Could not read page .*ends too early"),
    ],
)
def test_failed_requests_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, at: int, written: bool, said: str
) -> None:
    store = on_disk(tmp_path, 100 * PAGE)
    monkeypatch.setattr("clm.store.page_file.swap_pages", lambda *arguments: (error, at, written))
    with pytest.raises(ResourceError, match=said):
        everything(store)
    store.close()


def _full(handle: int, offset: int, size: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_folder_that_is_none_and_a_disk_without_room_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"No scratch file can be made in .*file"):
        Frames(LEAST_FRAMES, "f32", PAGE, tmp_path / "file")

    monkeypatch.setattr(os, "posix_fallocate", _full)
    store = Store(0, page_rows=PAGE)
    store.append(*rows_like(300))
    with pytest.raises(ResourceError, match="has no room for a scratch file"):
        store.keep_on_disk(LEAST_FRAMES, tmp_path)
    assert store.disk is None and store.colour.any()  # and the rows are where they were


def test_a_growth_without_room_on_the_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, plain = on_disk(tmp_path, 50 * PAGE), Store(0, page_rows=PAGE)
    plain.append(*rows_like(50 * PAGE))
    parents = np.arange(0, 50 * PAGE, 2, dtype=np.int32)
    keys = np.arange(len(parents), dtype=np.uint64) + np.uint64(10**6)
    growth = Growth.of(parents[:3] + 1, parents, keys, *rows_like(len(parents), 1))
    with monkeypatch.context() as patch, pytest.raises(ResourceError, match="has no room for a scratch file"):
        patch.setattr(os, "posix_fallocate", _full)
        store.disk.file._size = 0  # type: ignore[union-attr]
        store.apply(growth)
    assert same(store, plain) and store.rows == plain.rows
    store.apply(growth)
    plain.apply(growth)
    by_key = [
        {name: array[np.argsort(got["keys"])] for name, array in got.items()} for got in map(everything, (store, plain))
    ]
    assert all(by_key[0][name].tobytes() == by_key[1][name].tobytes() for name in by_key[0])
    store.close()


def test_the_file_has_no_name(tmp_path: Path) -> None:
    file = PageFile(tmp_path, PAGE, 240)
    file.reserve(10)
    assert list(tmp_path.iterdir()) == [] and file.disk_bytes >= 10 * file.slot_bytes
    file.close()


def test_next_uses_follow_the_ticks_in_any_order() -> None:
    foresight = Foresight()
    foresight.look([np.array(pages, np.int32) for pages in ([0, 1], [1, 2], [0, 2], [1])], 4)
    assert foresight.next_use.tolist() == [0, 0, 1, NEVER]
    foresight.passed(1)
    foresight.passed(0)
    assert foresight.next_use.tolist() == [2, 3, 2, NEVER]
    foresight.grow(6)
    assert foresight.next_use.tolist()[4:] == [NEVER, NEVER]


def test_seconds_of_overlapping_spans_count_once() -> None:
    assert seconds_of([(0.0, 1.0), (0.5, 2.0), (3.0, 4.0), (3.2, 3.4)]) == 3.0


@given(
    rows=st.lists(st.integers(0, 5000), max_size=300),
    page_rows=st.sampled_from([1, 7, 8, 100, 2048]),
)
def test_runs_of_pages_are_those_of_the_ids(rows: list[int], page_rows: int) -> None:
    ids = np.array(sorted(rows), np.int32)
    pages, starts = page_file.page_runs(ids, page_rows)
    wanted, first = np.unique(ids // page_rows, return_index=True)
    assert np.array_equal(pages, wanted) and np.array_equal(starts, first)
    frame_of = np.random.default_rng(0).permutation(5001 // page_rows + 1).astype(np.int32)
    at = frame_of[ids // page_rows] * page_rows + ids % page_rows
    assert np.array_equal(page_file.places(ids, frame_of, page_rows), at)
