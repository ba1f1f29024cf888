"""Pages of a checkpoint come back: where they lie is checked before anything is read, and every page when it is.

A rank reads its own share, a range of the pages with about as many rows as every other rank's, however many ranks wrote them. Ranks
that do not see rank 0's disk get their pages from it, one at a time.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from clm.kernels.numbers import STATISTICS
from clm.ranks import Ranks
from clm.run.arrays import Damaged, Listed, check_array, opened, read_array
from clm.run.segments import CRC, FILL, IN_SEGMENT, INDEX, OFFSET, SEGMENT, Pages, page_parts, row_bytes
from clm.store.arrays import RowArrays
from clm.store.store import Store

Check = Callable[[RowArrays, slice], None]


class Share(NamedTuple):
    """The pages that one rank takes. cut: of a page that two ranks share, the rows that are this one's."""

    pages: Pages
    cut: dict[int, slice]

    @property
    def fill(self) -> np.ndarray:
        """Live rows of each page [pages] i32, as this rank has them."""
        fill = self.pages.fill
        for page, rows in self.cut.items():
            fill[page] = rows.stop - rows.start
        return fill

    @property
    def kept(self) -> Pages:
        """Where its pages lie as it has them: no other rank can link a part of one."""
        where = self.pages.where.copy()
        where[list(self.cut), IN_SEGMENT] = -1
        return self.pages._replace(where=where)


def share_of(pages: Pages, rank: int, world: int) -> Share:
    """The part of a rank: a range of all rows, such that all ranks have about as many. Ranges begin with a page; where there are so
    few pages that a rank would have less than half of its part, they begin with a row."""
    ends = np.cumsum(pages.where[:, FILL])
    total = int(ends[-1]) if len(ends) else 0
    parts = total * np.arange(1, world) // world
    cuts = np.concatenate([[0], np.searchsorted(ends, parts, side="left") + 1, [len(ends)]]).clip(0, len(ends))
    rows = np.diff(np.concatenate([[0], ends])[cuts])
    if world == 1 or total < world or rows.min() >= max(1, total // world // 2):
        return Share(pages._replace(where=pages.where[cuts[rank] : cuts[rank + 1]]), {})
    first, last = total * rank // world, total * (rank + 1) // world
    page, last_page = np.searchsorted(ends, [first, last - 1], side="right").tolist()
    end = last_page + 1
    starts = ends[page:end] - pages.where[page:end, FILL]
    mine = np.column_stack([first - starts, last - starts]).clip(0, pages.where[page:end, FILL, None])
    cut = {
        k: slice(int(a), int(b))
        for k, (a, b) in enumerate(mine.tolist())
        if (a, b) != (0, int(pages.where[page + k, FILL]))
    }
    return Share(pages._replace(where=pages.where[page:end]), cut)


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
    segment, fill = index[:, IN_SEGMENT], index[:, FILL]
    sizes = np.array([listed[name].bytes for name in names] + [0], np.int64)
    inside = (segment >= -1) & (segment < len(names)) & (fill >= 0) & (fill <= size) & ((fill > 0) == (segment >= 0))
    ends = index[:, OFFSET] + fill * row_bytes(like, statistics)
    if not (inside & (index[:, OFFSET] >= 0) & (ends <= sizes[np.where(inside, segment, -1)])).all():
        raise Damaged(f"{INDEX} names pages that are not in its segments")
    if int(fill.sum()) != state["rows"]:
        raise Damaged(f"{INDEX} does not share {state['rows']:,} rows out over pages")
    return Pages(list(names), index, {name: listed[name] for name in (*names, INDEX)}, statistics)


def read_pages(folder: Path, share: Share, store: Store, passed: Callable[[int], None], check: Check) -> None:
    """Fill a store (`Store.of_pages`) from its segments. check: called with the places of each page's rows once they are there;
    may raise Damaged, as this does where a page is not what was written."""
    pages, order = share.pages, _by_place(share.pages)
    for k, name in enumerate(pages.names):
        mine = order[pages.where[order, IN_SEGMENT] == k]
        if not len(mine):
            continue
        with opened(folder / name) as file:
            for page in mine.tolist():
                file.seek(int(pages.where[page, OFFSET]))
                passed(_read_page(file, share, page, store, check))


def read_pages_of_first(
    folder: Path,
    pages: Pages,
    here: list[bool],
    ranks: Ranks,
    store: Store,
    passed: Callable[[int], None],
    check: Check,
) -> None:
    """Fill the stores of ranks that do not see the folder: `here` says which do. pages: of all ranks. All ranks call it.

    Raises Damaged as `read_pages`, but only when all pages have come: nobody is left waiting."""
    width, failed = row_bytes(store, pages.statistics), None
    shares = [share_of(pages, rank, ranks.world) for rank in range(ranks.world)]
    orders = [
        np.zeros(0, np.int64) if there else _by_place(share.pages) for share, there in zip(shares, here, strict=True)
    ]
    for k in range(max(map(len, orders))):
        wanted = [
            share.pages.where[order[k]] if k < len(order) else None for share, order in zip(shares, orders, strict=True)
        ]
        sizes = np.array([0 if where is None else int(where[FILL]) * width for where in wanted], np.int64)
        none = np.zeros_like(sizes)
        from_first = none.copy()
        from_first[0] = sizes[ranks.rank]
        data = [_bytes_of(folder, pages, w, int(n)) for w, n in zip(wanted, sizes, strict=True) if w is not None]
        sent = np.concatenate([np.zeros(0, np.uint8), *(data if ranks.first else [])]).reshape(-1, 1)
        came, _ = ranks.exchange(sent, sizes if ranks.first else none, from_first)
        if len(came) and failed is None:
            mine = shares[ranks.rank]
            try:
                passed(_read_page(io.BytesIO(came.tobytes()), mine, int(orders[ranks.rank][k]), store, check))
            except Damaged as error:
                failed = error
    if failed is not None:
        raise failed


def _by_place(pages: Pages) -> np.ndarray:
    """Pages with rows, in the order in which they lie in files."""
    order = np.lexsort((pages.where[:, OFFSET], pages.where[:, IN_SEGMENT]))
    return order[pages.where[order, IN_SEGMENT] >= 0]


def _bytes_of(folder: Path, pages: Pages, where: np.ndarray, size: int) -> np.ndarray:
    """The bytes of one page [size] u8; what cannot be read is zero, which its checksum will say."""
    data = np.zeros(size, np.uint8)
    try:
        with opened(folder / pages.names[int(where[IN_SEGMENT])]) as file:
            file.seek(int(where[OFFSET]))
            file.readinto(data.data)
    except (Damaged, OSError):
        pass
    return data


def _read_page(file: IO[bytes], share: Share, page: int, store: Store, check: Check) -> int:
    """One page of a store from where a file is at; how many bytes it has there."""
    pages, one = share.pages, np.array([page], np.int32)
    with store.arrays.hold(one, True):
        frame = int(store.arrays.frames_of(one)[0])
        at = slice(frame * store.page_rows, frame * store.page_rows + int(store.fill[page]))
        if page in share.cut:
            whole = RowArrays(store.page_rows, store.moments, store.page_rows)
            read = _read_rows(file, pages, page, whole, 0)
            for mine, theirs in zip(store.arrays.arrays, whole.arrays, strict=True):
                mine[at] = theirs[share.cut[page]]
        else:
            read = _read_rows(file, pages, page, store.arrays, frame)
        store.seen[page] = bool(store.arrays.statistics[at, 0].any())
        check(store.arrays, at)
    return read


def _read_rows(file: IO[bytes], pages: Pages, page: int, held: RowArrays, frame: int) -> int:
    """The rows of a page into a frame, checked; how many bytes they are."""
    name, crc, read = pages.names[int(pages.where[page, IN_SEGMENT])], 0, 0
    rows = int(pages.where[page, FILL])
    for part in page_parts(held, frame, rows, pages.statistics):
        if file.readinto(part) != len(part):  # type: ignore[attr-defined]
            raise Damaged(f"{name} ends too early")
        crc = zlib.crc32(part, crc)
        read += len(part)
    if crc != pages.where[page, CRC]:
        raise Damaged(f"{name} does not match its checksums")
    first = frame * held.page_rows
    _spread(held.statistics[first : first + rows], pages.statistics)
    return read
