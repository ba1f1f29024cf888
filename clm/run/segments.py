"""Pages of a store in files: a checkpoint writes the pages that changed since the one before it, and links the others.

A segment, `pages_N.bin`, holds the live rows of some pages: page by page, of each page one array after the other in the order
of `Store.names`. `index.npy` [pages, 4] i64 says of every page of the store in which of the listed segments it lies (-1: it
has no rows), from which byte on, how many rows it has, and the CRC-32 of its bytes. A segment is written once and never
changed, so several checkpoints may have it under their names (hard links); a segment of which less than half is in use is not
linked any more: what is left of it is written anew.

Several ranks write one checkpoint, each a segment of its own pages; the index has the pages of rank 0, then those of rank 1, and
so on, so that whoever reads it needs not know how many there were. Rank 0 has the folder. Ranks that see it write there; those
on another disk send their pages to rank 0. Reading: `clm.run.segments_read`.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from clm.kernels.numbers import STATISTICS
from clm.progress import Report, tally
from clm.ranks import ALONE, Ranks
from clm.run.arrays import Listed, write_array
from clm.store.arrays import RowArrays, row_bytes_of
from clm.store.store import Store

INDEX = "index.npy"
SEGMENT = re.compile(r"pages_\d{1,18}(_\d{1,9})?\.bin")
_LEAST_USED = 0.5  # of a segment that is linked
IN_SEGMENT, OFFSET, FILL, CRC = range(4)  # columns of the index
T = TypeVar("T")


class Step(Protocol):
    """Does some work on every rank; raises on all of them where one could not."""

    def __call__(self, work: Callable[[], T]) -> T: ...


class Pages(NamedTuple):
    """Where the pages of a checkpoint lie, or those of one rank. names: of segments; where [pages, 4] i64: the index, or a part of
    it; listed: their entries in the manifest; statistics: how many of the columns of that array they have, the first ones (the
    others are zero)."""

    names: list[str]
    where: np.ndarray
    listed: dict[str, Listed]
    statistics: int = STATISTICS

    @property
    def fill(self) -> np.ndarray:
        """Live rows of each page, [pages] i32."""
        return self.where[:, FILL].astype(np.int32)


class Kept(NamedTuple):
    """A checkpoint, and where it has the pages of this rank as they were when it was written or read."""

    path: Path
    pages: Pages


def row_bytes(store: Store, statistics: int = STATISTICS) -> int:
    """Bytes of a row in a segment with so many columns of statistics."""
    return row_bytes_of(store.moments) - 4 * (STATISTICS - statistics)


def _pages_to_write(store: Store, before: Pages | None, ranks: Ranks) -> np.ndarray:
    """[pages] bool: pages that no segment of `before` holds as they are now, or only one that is not worth its space: of which
    all ranks together use less than half."""
    fresh = store.changed.copy()
    if before is None:
        fresh[:] = True
        return fresh & (store.fill > 0)
    known = before.where[: store.pages]
    fresh[len(known) :] = True
    stays = np.flatnonzero(~fresh[: len(known)] & (known[:, IN_SEGMENT] >= 0))
    used = np.bincount(known[stays, IN_SEGMENT], known[stays, FILL], len(before.names)) * row_bytes(store)
    of_all: dict[str, float] = {}
    for told in ranks.gather(dict(zip(before.names, used.tolist(), strict=True))):
        for name, size in told.items():
            of_all[name] = of_all.get(name, 0.0) + size
    wasted = np.array([of_all[name] < _LEAST_USED * before.listed[name].bytes for name in before.names], bool)
    fresh[stays[wasted[known[stays, IN_SEGMENT]]]] = True
    return fresh & (store.fill > 0)


def write_pages(
    folder: Path,
    image: int,
    store: Store,
    before: Kept | None,
    what: str,
    report: Report,
    ranks: Ranks = ALONE,
    step: Step = lambda work: work(),
) -> tuple[Pages, Pages | None]:
    """Write and sync the pages of a store into a new folder of rank 0. before: an earlier checkpoint of the same store, since
    which `store.changed` was kept; every rank has one, or none has. The bytes that are written are reported as `what`.

    Returns this rank's pages, and at rank 0 those of all ranks, with the index, which is written."""
    fresh, width = _pages_to_write(store, before.pages if before else None, ranks), row_bytes(store)
    index = np.zeros((store.pages, 4), np.int64)
    index[:, IN_SEGMENT] = -1
    names: list[str] = []
    listed: dict[str, Listed] = {}
    if before is not None:
        known = before.pages.where[: store.pages]
        keep = np.flatnonzero(~fresh[: len(known)] & (store.fill[: len(known)] > 0))
        linked = np.unique(known[keep, IN_SEGMENT])
        names = [before.pages.names[k] for k in linked.tolist()]
        listed = {name: before.pages.listed[name] for name in names}
        index[keep] = known[keep]
        index[keep, IN_SEGMENT] = np.searchsorted(linked, known[keep, IN_SEGMENT])
    pages = np.flatnonzero(fresh)
    everybody = ranks.gather((listed, len(pages) > 0))
    kept = {name: entry for theirs, _ in everybody for name, entry in theirs.items()}
    if before is not None and not step(lambda: _link_all(before.path, folder, kept, ranks)):
        return write_pages(folder, image, store, None, what, report, ranks, step)
    own = _segment_names(image, kept, [writes for _, writes in everybody])
    passed = tally(what, int(store.fill[pages].sum()) * width, "B", report)
    written = _write_segments(folder, store, pages, own, passed, ranks, step)
    if written is not None:
        fill = store.fill[pages].astype(np.int64)
        crcs, listed[own[ranks.rank]] = written
        first = width * (np.cumsum(fill) - fill)
        index[pages] = np.column_stack([np.full(len(pages), len(names)), first, fill, crcs])
        names.append(own[ranks.rank])
    mine = Pages(names, index, listed)
    joined = _join(ranks.gather((names, listed)), [where for (where,) in ranks.to_first([(index,)])])
    return mine, step(lambda: _with_index(folder, joined) if ranks.first else None)


def _link_all(there: Path, here: Path, listed: dict[str, Listed], ranks: Ranks) -> bool:
    """Whether rank 0 could link all segments that are kept; otherwise none is. A file may be gone or cut off, and some file
    systems know no hard links."""
    done = True
    if ranks.first:
        try:
            for name, entry in listed.items():
                if (there / name).stat().st_size != entry.bytes:
                    raise OSError(f"{name} is not as long as it was")
                os.link(there / name, here / name)
        except OSError:
            done = False
            for path in here.iterdir():
                path.unlink()
    return ranks.of_first(done)


def _segment_names(image: int, taken: Iterable[str], writes: list[bool]) -> list[str]:
    """The name of each rank's segment; of none for one that writes none."""
    used, names = set(taken), []
    for does in writes:
        free = (f"pages_{image}{f'_{k}' if k else ''}.bin" for k in range(len(used) + 1))
        names.append(next(name for name in free if name not in used) if does else "")
        used.add(names[-1])
    return names


def _write_segments(
    folder: Path,
    store: Store,
    pages: np.ndarray,
    names: list[str],
    passed: Callable[[int], None],
    ranks: Ranks,
    step: Step,
) -> tuple[list[int], Listed] | None:
    """Each rank's pages into the segment of its name: checksums of its pages, and its entry in the manifest."""
    here = ranks.gather(folder.is_dir())
    name = names[ranks.rank]
    written = step(lambda: _write_segment(folder / name, store, pages, passed) if name and here[ranks.rank] else None)
    if all(here):
        return written
    sums = _Sums()
    far = pages if not here[ranks.rank] else pages[:0]
    coming = ranks.to_first(_numbered(ranks.rank, store, far, sums, passed))
    step(lambda: _write_what_comes(folder, names, coming))
    return (sums.crcs, Listed(sums.size, sums.whole)) if name and not here[ranks.rank] else written


class _Sums:
    """Checksums of pages that go by, and of all of them, and how many bytes they are."""

    def __init__(self) -> None:
        self.crcs: list[int] = []
        self.size = self.whole = 0


def _write_segment(
    path: Path, store: Store, pages: np.ndarray, passed: Callable[[int], None]
) -> tuple[list[int], Listed]:
    """Write and sync the live rows of pages [A]; the checksums of their bytes, and the file's entry in the manifest."""
    sums = _Sums()
    with open(path, "wb") as file:
        for parts in _page_bytes(store, pages, sums):
            for part in parts:
                file.write(part)
            passed(sum(map(len, parts)))
        file.flush()
        os.fsync(file.fileno())
    return sums.crcs, Listed(sums.size, sums.whole)


def _page_bytes(store: Store, pages: np.ndarray, sums: _Sums) -> Iterator[list[memoryview]]:
    """The bytes of pages [A], page by page, without a copy: of use until the next page is asked for."""
    for group, held in store.sweep(pages):
        for page, frame in zip(group.tolist(), held.frames_of(group).tolist(), strict=True):
            parts, crc = list(page_parts(held, frame, int(store.fill[page]))), 0
            for part in parts:
                crc, sums.whole = zlib.crc32(part, crc), zlib.crc32(part, sums.whole)
                sums.size += len(part)
            sums.crcs.append(crc)
            yield parts


def _numbered(
    rank: int, store: Store, pages: np.ndarray, sums: _Sums, passed: Callable[[int], None]
) -> Iterator[tuple[np.ndarray, ...]]:
    """Pages on their way to rank 0: whose they are, and their bytes."""
    for parts in _page_bytes(store, pages, sums):
        together = np.concatenate([np.frombuffer(part, np.uint8) for part in parts])
        passed(len(together))
        yield np.array([rank]), together


def _write_what_comes(folder: Path, names: list[str], coming: Iterator[tuple[np.ndarray, ...]]) -> None:
    """At rank 0: pages of others into their segments. Whatever happens here, all of them are taken: the others must be able to
    send them."""
    failed: OSError | None = None
    with ExitStack() as files:
        open_files: dict[int, int] = {}
        for rank, data in coming:
            try:
                if failed is None:
                    number = int(rank[0])
                    if number not in open_files:
                        file = files.enter_context(open(folder / names[number], "wb", buffering=0))
                        open_files[number] = file.fileno()
                    _write_all(open_files[number], data)
            except OSError as error:
                failed = error
        if failed is not None:
            raise failed
        for descriptor in open_files.values():
            os.fsync(descriptor)


def _write_all(descriptor: int, data: np.ndarray) -> None:
    left = data.data
    while len(left):
        left = left[os.write(descriptor, left) :]


def _join(parts: list[tuple[list[str], dict[str, Listed]]], where: list[np.ndarray]) -> Pages:
    """The pages of all ranks, in their order; of nobody where `where` is empty, as on the ranks that do not write the index."""
    names: list[str] = []
    listed: dict[str, Listed] = {}
    for theirs, entries in parts:
        names += [name for name in theirs if name not in names]
        listed |= entries
    joined = []
    for (theirs, _), index in zip(parts, where, strict=False):
        number = np.array([names.index(name) for name in theirs] + [-1], np.int64)  # the last one: of no segment
        joined.append(np.column_stack([number[index[:, IN_SEGMENT]], index[:, OFFSET:]]))
    return Pages(names, np.concatenate([np.zeros((0, 4), np.int64), *joined]), listed)


def _with_index(folder: Path, pages: Pages) -> Pages:
    entry = write_array(folder / INDEX, pages.where)
    return pages._replace(listed={**pages.listed, INDEX: Listed(entry["bytes"], entry["crc32"])})


def page_parts(held: RowArrays, frame: int, rows: int, statistics: int = STATISTICS) -> Iterator[memoryview]:
    """The bytes of so many rows of a frame, array by array, without a copy; of the last one, statistics, as many as of rows with
    so many columns."""
    first = frame * held.page_rows
    for array in held.arrays:
        values = array[first : first + rows].reshape(-1)
        if array is held.statistics:
            values = values[: rows * statistics]
        yield values.view(np.uint8).data
