"""Pages of a store in files: a checkpoint writes the pages that changed since the one before it, and links the others.

A segment, `pages_N.bin`, holds the live rows of some pages: page by page, of each page one array after the other in the order
of `Store.names`. `index.npy` [pages, 4] i64 says of every page of the store in which of the listed segments it lies (-1: it
has no rows), from which byte on, how many rows it has, and the CRC-32 of its bytes. A segment is written once and never
changed, so several checkpoints may have it under their names (hard links); a segment of which less than half is in use is not
linked any more: what is left of it is written anew.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clm.kernels.numbers import STATISTICS
from clm.progress import Report, tally
from clm.run.arrays import Damaged, Listed, check_array, opened, read_array, write_array
from clm.store.arrays import RowArrays, row_bytes_of
from clm.store.store import Store

INDEX = "index.npy"
SEGMENT = re.compile(r"pages_\d{1,18}(_\d{1,9})?\.bin")
_LEAST_USED = 0.5  # of a segment that is linked
_SEGMENT, _OFFSET, _FILL, _CRC = range(4)


class NotLinked(OSError):
    """A file of an earlier checkpoint is gone, or its file system knows no hard links."""


class Pages(NamedTuple):
    """Where the pages of a checkpoint lie. names: of its segments; where [pages, 4] i64: the index; listed: their entries in the
    manifest; statistics: how many of the columns of that array they have, the first ones (the others are zero)."""

    names: list[str]
    where: np.ndarray
    listed: dict[str, Listed]
    statistics: int = STATISTICS

    @property
    def fill(self) -> np.ndarray:
        """Live rows of each page, [pages] i32."""
        return self.where[:, _FILL].astype(np.int32)


def row_bytes(store: Store, statistics: int = STATISTICS) -> int:
    """Bytes of a row in a segment with so many columns of statistics."""
    return row_bytes_of(store.moments) - 4 * (STATISTICS - statistics)


def _pages_to_write(store: Store, before: Pages | None) -> np.ndarray:
    """[pages] bool: pages that no segment of `before` holds as they are now, or only one that is not worth its space."""
    fresh = store.changed.copy()
    if before is None:
        fresh[:] = True
        return fresh & (store.fill > 0)
    known = before.where[: store.pages]
    fresh[len(known) :] = True
    sizes = np.array([before.listed[name].bytes for name in before.names], np.int64)
    stays = np.flatnonzero(~fresh[: len(known)] & (known[:, _SEGMENT] >= 0))
    used = np.bincount(known[stays, _SEGMENT], known[stays, _FILL], len(sizes)) * row_bytes(store)
    wasted = used < _LEAST_USED * sizes
    fresh[stays[wasted[known[stays, _SEGMENT]]]] = True
    return fresh & (store.fill > 0)


def write_pages(
    folder: Path, image: int, store: Store, before: tuple[Path, Pages] | None, what: str, report: Report
) -> Pages:
    """Write and sync the pages of a store into a new folder. before: an earlier checkpoint of the same store, since which
    `store.changed` was kept. The bytes that are written are reported as `what`. Raises NotLinked, with segments left behind."""
    earlier = before[1] if before is not None else None
    fresh, width = _pages_to_write(store, earlier), row_bytes(store)
    index = np.zeros((store.pages, 4), np.int64)
    index[:, _SEGMENT] = -1
    names, listed = [], {}
    if before is not None and earlier is not None:
        known = earlier.where[: store.pages]
        keep = np.flatnonzero(~fresh[: len(known)] & (store.fill[: len(known)] > 0))
        linked = np.unique(known[keep, _SEGMENT])
        names = [earlier.names[k] for k in linked.tolist()]
        for name in names:
            _link(before[0] / name, folder / name)
            listed[name] = earlier.listed[name]
        index[keep] = known[keep]
        index[keep, _SEGMENT] = np.searchsorted(linked, known[keep, _SEGMENT])
    new = np.flatnonzero(fresh)
    if len(new):
        passed = tally(what, int(store.fill[new].sum()) * width, "B", report)
        name = _free_name(image, names)
        fill = store.fill[new].astype(np.int64)
        crcs, listed[name] = _write_segment(folder / name, store, new, passed)
        index[new] = np.column_stack([np.full(len(new), len(names)), width * (np.cumsum(fill) - fill), fill, crcs])
        names.append(name)
    entry = write_array(folder / INDEX, index)
    listed[INDEX] = Listed(entry["bytes"], entry["crc32"])
    return Pages(names, index, listed)


def _link(there: Path, here: Path) -> None:
    try:
        os.link(there, here)
    except OSError as error:
        raise NotLinked(*error.args) from None


def _free_name(image: int, taken: list[str]) -> str:
    names = (f"pages_{image}{f'_{k}' if k else ''}.bin" for k in range(len(taken) + 1))
    return next(name for name in names if name not in taken)


def _write_segment(
    path: Path, store: Store, pages: np.ndarray, passed: Callable[[int], None]
) -> tuple[list[int], Listed]:
    """Write and sync the live rows of pages [A]; the checksums of their bytes, and the file's entry in the manifest."""
    crcs, size, whole = [], 0, 0
    with open(path, "wb") as file:
        for group, held in store.sweep(pages):
            for page, frame in zip(group.tolist(), held.frames_of(group).tolist(), strict=True):
                crc = written = 0
                for part in _parts(held, frame, int(store.fill[page])):
                    file.write(part)
                    crc, whole = zlib.crc32(part, crc), zlib.crc32(part, whole)
                    written += len(part)
                crcs.append(crc)
                size += written
                passed(written)
        file.flush()
        os.fsync(file.fileno())
    return crcs, Listed(size, whole)


def _parts(held: RowArrays, frame: int, rows: int, statistics: int = STATISTICS) -> Iterator[memoryview]:
    """The bytes of so many rows of a frame, array by array, without a copy; of the last one, statistics, as many as of rows with
    so many columns."""
    first = frame * held.page_rows
    for array in held.arrays:
        values = array[first : first + rows].reshape(-1)
        if array is held.statistics:
            values = values[: rows * statistics]
        yield values.view(np.uint8).data


def _spread(statistics: np.ndarray, columns: int) -> None:
    """Rows [n, STATISTICS] of which only so many columns were read, one row behind the other at the beginning."""
    if columns < STATISTICS:
        read = statistics.reshape(-1)[: len(statistics) * columns].reshape(-1, columns).copy()
        statistics[:, :columns], statistics[:, columns:] = read, 0


def read_index(
    folder: Path, state: dict[str, Any], like: Store, listed: dict[str, Listed], statistics: int = STATISTICS
) -> Pages:
    """Where the pages of a checkpoint lie, checked against its state and the sizes of its files. like: a store of its kind;
    statistics: of `Pages`. Raises Damaged."""
    names, pages, size = (state.get(key) for key in ("segments", "pages", "page_rows"))
    if not isinstance(names, list) or not all(isinstance(n, str) and SEGMENT.fullmatch(n) for n in names):
        raise Damaged("`segments` in state.json are not names of segments")
    if len(set(names)) != len(names) or any(name not in listed for name in names):
        raise Damaged("`segments` in state.json are not those of the manifest")
    assert type(pages) is int and type(size) is int, "checked with the state"
    check_array(folder / INDEX, np.dtype(np.int64), (pages, 4), listed.get(INDEX))
    index = np.empty((pages, 4), np.int64)
    read_array(folder / INDEX, index, listed.get(INDEX))
    for name in names:
        with opened(folder / name) as file:
            found = os.fstat(file.fileno()).st_size
        if found != listed[name].bytes:
            raise Damaged(f"{name} is {found:,} bytes long instead of {listed[name].bytes:,}")
    segment, fill = index[:, _SEGMENT], index[:, _FILL]
    sizes = np.array([listed[name].bytes for name in names] + [0], np.int64)
    inside = (segment >= -1) & (segment < len(names)) & (fill >= 0) & (fill <= size) & ((fill > 0) == (segment >= 0))
    ends = index[:, _OFFSET] + fill * row_bytes(like, statistics)
    if not (inside & (index[:, _OFFSET] >= 0) & (ends <= sizes[np.where(inside, segment, -1)])).all():
        raise Damaged(f"{INDEX} names pages that are not in its segments")
    if int(fill.sum()) != state["rows"]:
        raise Damaged(f"{INDEX} does not share {state['rows']:,} rows out over pages")
    return Pages(list(names), index, {name: listed[name] for name in (*names, INDEX)}, statistics)


def read_pages(
    folder: Path, pages: Pages, store: Store, passed: Callable[[int], None], check: Callable[[RowArrays, slice], None]
) -> None:
    """Fill a store (`Store.of_pages`) from its segments. check: called with the places of each page's rows once they are there;
    may raise Damaged, as this does where a page is not what was written."""
    order = np.lexsort((pages.where[:, _OFFSET], pages.where[:, _SEGMENT]))
    for k, name in enumerate(pages.names):
        mine = order[pages.where[order, _SEGMENT] == k]
        with opened(folder / name) as file:
            for page in mine.tolist():
                file.seek(int(pages.where[page, _OFFSET]))
                crc = read = 0
                one = np.array([page], np.int32)
                with store.arrays.hold(one, True):
                    frame, rows = int(store.arrays.frames_of(one)[0]), int(store.fill[page])
                    for part in _parts(store.arrays, frame, rows, pages.statistics):
                        if file.readinto(part) != len(part):
                            raise Damaged(f"{name} ends too early")
                        crc = zlib.crc32(part, crc)
                        read += len(part)
                    if crc != pages.where[page, _CRC]:
                        raise Damaged(f"{name} does not match its checksums")
                    at = slice(frame * store.page_rows, frame * store.page_rows + rows)
                    _spread(store.arrays.statistics[at], pages.statistics)
                    store.seen[page] = bool(store.arrays.statistics[at, 0].any())
                    check(store.arrays, at)
                passed(read)
