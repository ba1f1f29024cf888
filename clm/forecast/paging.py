"""Which pages a run on disk would read and write, turn by turn: its first batches, as plans have them, between an epoch before
and an epoch after them, replayed over the frames that host memory has. Pure functions; pages are those of the plans' rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from clm.plan.batch import batch_views
from clm.plan.replay import replay
from clm.plan.residency import Plan

_MOST_AHEAD = 64  # turns: more make no difference
_MOST_USES = 1 << 20  # of pages before the first batches, and after them, that are replayed


@dataclass(frozen=True)
class PagedTurn:
    """Bytes that one turn has read from disk, and written to make room: before its rows are gathered, before they are updated."""

    fetch_read: float
    fetch_written: float
    update_read: float
    update_written: float


@dataclass(frozen=True)
class Paging:
    """What the disk does for some batches."""

    batches: tuple[tuple[PagedTurn, ...], ...]  # as the plans and their turns
    hit_rate: float  # of the pages that turns ask for
    of_lru: float  # pages read, relative to letting those go that were used longest ago
    ahead: int  # turns whose pages are read before they are needed: half of the frames hold what these lack

    @property
    def bytes_read(self) -> float:
        return sum(turn.fetch_read + turn.update_read for turns in self.batches for turn in turns)

    @property
    def bytes_written(self) -> float:
        return sum(turn.fetch_written + turn.update_written for turns in self.batches for turn in turns)


class SeenPages:
    """Which pages each view sees, a bit each; a page is so many consecutive rows of the plans."""

    def __init__(self, rows: int, page_rows: int):
        self.rows, self.page_rows, self.pages = rows, page_rows, -(-rows // page_rows)
        self._views: list[np.ndarray] = []

    def marking(self, sets: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Visible sets (int32 ids, ascending) of one view after the other, noted on their way."""
        for rows in sets:
            seen = np.zeros(self.pages, bool)
            seen[rows // self.page_rows] = True
            self._views.append(np.packbits(seen))
            yield rows

    def of(self, view: int) -> np.ndarray:
        """Its pages, ascending [n] i32."""
        return np.flatnonzero(np.unpackbits(self._views[view], count=self.pages)).astype(np.int32)


def page_batches(
    plans: Sequence[Plan],
    seen: SeenPages,
    train: np.ndarray,
    seed: int,
    *,
    held: float,
    row_bytes: float,
    resident: np.ndarray,
) -> Paging:
    """What the run's first batches read and write, once it has gone on for an epoch.

    train: ids of the training views; held: share of the pages that host memory holds; row_bytes: of a row in its page's file;
    resident [rows] bool: rows that live on the device, whose pages are not read."""
    frames, resident = max(1, int(held * seen.pages)), resident[:: seen.page_rows]
    page_bytes = row_bytes * np.minimum(seen.page_rows, seen.rows - np.arange(0, seen.rows, seen.page_rows))
    images = sum(len(plan.views) for plan in plans)
    before = _view_ticks(seen, batch_views(train, seed + 1, 0, len(train)), resident)
    ticks, changing = before[::-1], [True] * len(before)
    places: list[list[tuple[int, int]]] = []  # of each turn: its ticks of fetching and of updating
    for plan in plans:
        places.append([])
        fetched, updated = (_turn_ticks(plan, which, seen.page_rows, resident) for which in ("load", "final"))
        at = 0  # turn i + 1 is fetched before turn i is updated
        for i in range(len(fetched)):
            while at <= min(i + 1, len(fetched) - 1):
                ticks.append(fetched[at])
                changing.append(False)
                places[-1].append((len(ticks) - 1, -1))
                at += 1
            ticks.append(updated[i])
            changing.append(True)
            places[-1][i] = places[-1][i][0], len(ticks) - 1
    first, last = len(before), len(ticks)
    after = _view_ticks(seen, batch_views(train, seed, images, len(train)), resident)
    ticks, changing = ticks + after, changing + [True] * len(after)
    done, lru = (replay(ticks, frames, changing=changing, by_next_use=choice) for choice in (True, False))
    read, written = ([float(page_bytes[pages].sum()) for pages in of] for of in (done.reads, done.writes))
    asked = sum(map(len, ticks[first:last]))
    misses, lru_misses = (sum(map(len, reads[first:last])) for reads in (done.reads, lru.reads))
    batches = tuple(tuple(PagedTurn(read[f], written[f], read[u], written[u]) for f, u in turns) for turns in places)
    ahead = frames * sum(map(len, batches)) // max(1, 2 * misses)
    return Paging(batches, 1.0 - misses / max(1, asked), misses / max(1, lru_misses), min(max(ahead, 1), _MOST_AHEAD))


def _view_ticks(seen: SeenPages, views: Sequence[int], resident: np.ndarray) -> list[np.ndarray]:
    """Pages of one view after the other, until there are many."""
    ticks, uses = [], 0
    for view in views:
        pages = seen.of(view)
        ticks.append(pages[~resident[pages]])
        uses += len(ticks[-1])
        if uses > _MOST_USES:
            break
    return ticks


def _turn_ticks(plan: Plan, which: str, page_rows: int, resident: np.ndarray) -> list[np.ndarray]:
    """Pages of the rows that each turn loads, or of those that are final in it."""
    rows = (turn.load_rows if which == "load" else turn.send_rows[: turn.finals] for turn in plan.turns)
    pages = (np.unique(ids // page_rows) for ids in rows)
    return [ids[~resident[ids]].astype(np.int32) for ids in pages]
