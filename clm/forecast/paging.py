"""Which pages a run on disk would read and write, turn by turn: some batches, as plans have them, between the views before and
those after them, replayed over the frames that host memory has. Pure functions; pages are those of the plans' rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from clm.plan.replay import Swaps, replay
from clm.plan.residency import Plan, Turn
from clm.stream.ticks import in_order

_MOST_USES = 1 << 20  # of pages before the first batch, and after the last one, that are replayed


class Tick(NamedTuple):
    """A use of pages by a turn: to gather its rows, or, `updates`, to step on those that are final."""

    batch: int
    turn: int
    updates: bool


class Moved(NamedTuple):
    """Bytes that come, after those that leave for them, once a tick is over (None: at any time before)."""

    read: float
    written: float
    after: Tick | None


@dataclass(frozen=True)
class PagedTurn:
    """What one turn has moved, in order: before its rows are gathered, before they are updated."""

    fetch: tuple[Moved, ...]
    update: tuple[Moved, ...]


@dataclass(frozen=True)
class Paging:
    """What the disk does for some batches."""

    batches: tuple[tuple[PagedTurn, ...], ...]  # as the plans and their turns
    hit_rate: float  # of the pages that turns ask for
    of_lru: float  # pages read, relative to letting those go that were used longest ago

    def _moved(self) -> Iterator[Moved]:
        return (moved for turns in self.batches for turn in turns for moved in (*turn.fetch, *turn.update))

    @property
    def bytes_read(self) -> float:
        return sum(moved.read for moved in self._moved())

    @property
    def bytes_written(self) -> float:
        return sum(moved.written for moved in self._moved())


class SeenPages:
    """Which pages each view sees, a bit each. A page is so many consecutive rows that are looked at; those of the plans are every
    `step`-th of these."""

    def __init__(self, rows: int, page_rows: int, step: int = 1):
        self.rows, self.page_rows, self.pages = rows, page_rows, -(-rows // page_rows)
        self._step = step
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
        return np.flatnonzero(self._flags(view)).astype(np.int32)

    def _flags(self, view: int) -> np.ndarray:
        return np.unpackbits(self._views[view], count=self.pages).astype(bool)

    @property
    def fill(self) -> np.ndarray:
        """[pages] i64: rows of each."""
        return np.minimum(self.page_rows, self.rows - np.arange(0, self.rows, self.page_rows))

    def of_turns(self, plan: Plan) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each turn of a plan, the pages [n] i32 of the rows that it loads, and of those that are final in it.

        Pages of which the plan has no row that the view sees come and go with those around them: they are loaded unless the
        turn before had them, and final where no later turn has them."""
        beside = [self._beside(turn) for turn in plan.turns]
        later, finals = np.zeros(self.pages, bool), []
        for turn, pages in zip(reversed(plan.turns), reversed(beside), strict=True):
            finals.append(self._with(turn.send_rows[: turn.finals], pages[~later[pages]]))
            later[self._of_rows(turn.rows)] = later[pages] = True
        before = np.zeros(self.pages, bool)
        for turn, pages, final in zip(plan.turns, beside, reversed(finals), strict=True):
            yield self._with(turn.load_rows, pages[~before[pages]]), final
            before[:] = False
            before[self._of_rows(turn.rows)] = before[pages] = True

    def _of_rows(self, rows: np.ndarray) -> np.ndarray:
        """Pages [n] of rows of a plan."""
        return np.unique(rows.astype(np.int64) * self._step // self.page_rows)

    def _with(self, rows: np.ndarray, pages: np.ndarray) -> np.ndarray:
        return np.union1d(self._of_rows(rows), pages).astype(np.int32)

    def _beside(self, turn: Turn) -> np.ndarray:
        """Pages that the view sees of which the plan has no row that it sees, and which lie among those of the turn."""
        if self._step == 1 or not len(turn.rows):
            return np.zeros(0, np.int64)
        flags = self._flags(turn.view)
        flags[self._of_rows(turn.view_rows)] = False
        pages, own = np.flatnonzero(flags), self._of_rows(turn.rows)
        first = 0 if turn.first == 0 else own[0]
        last = self.pages if turn.first + len(turn.rows) == len(turn.view_rows) else own[-1]
        return pages[(pages >= first) & (pages <= last)]


def page_batches(
    plans: Sequence[Plan],
    seen: SeenPages,
    before: Sequence[int],
    after: Sequence[int],
    *,
    frames: int,
    row_bytes: float,
    resident: np.ndarray,
) -> Paging:
    """What consecutive batches read and write.

    before, after: views in the order in which they are used before the first batch and after the last one, as far as that
    matters; frames: pages of `seen` that host memory holds; row_bytes: of a row that is looked at in its page's file;
    resident [pages] bool: pages that live on the device, which are not read."""
    page_bytes = row_bytes * seen.fill
    earlier = _view_ticks(seen, before[::-1], resident)[::-1]
    later = _view_ticks(seen, after, resident)
    ticks, uses = [*earlier], list[Tick]()
    for k, plan in enumerate(plans):
        pages = [[each[~resident[each]] for each in turn] for turn in seen.of_turns(plan)]
        for i, updates in in_order(len(plan.turns)):
            use = Tick(k, i, updates)
            uses.append(use)
            ticks.append(pages[use.turn][use.updates])
    first, last = len(earlier), len(ticks)
    changing = [*[True] * first, *(use.updates for use in uses), *[True] * len(later)]
    ticks += later
    done, lru = (replay(ticks, frames, changing=changing, by_next_use=choice) for choice in (True, False))
    moved = {use: tuple(_moves(done.swaps[first + n], n, uses, first, page_bytes)) for n, use in enumerate(uses)}
    asked = sum(map(len, ticks[first:last]))
    misses, lru_misses = (sum(map(len, reads[first:last])) for reads in (done.reads, lru.reads))
    batches = tuple(
        tuple(PagedTurn(moved[Tick(k, i, False)], moved[Tick(k, i, True)]) for i in range(len(plan.turns)))
        for k, plan in enumerate(plans)
    )
    return Paging(batches, 1.0 - misses / max(1, asked), misses / max(1, lru_misses))


def _moves(swaps: Swaps, number: int, uses: Sequence[Tick], first: int, page_bytes: np.ndarray) -> Iterator[Moved]:
    """What use `number` has moved, cut where it has to wait for another tick: pages make room one after the other, so
    whoever comes behind one that cannot leave yet waits for it, too. first: the tick of use 0."""
    since = np.minimum(np.maximum.accumulate(swaps.since) - first, number - 1)  # its own: a part of it is over by then
    edges = np.flatnonzero(np.diff(since, prepend=-2 - first, append=number))
    for a, b in pairwise(edges):
        leave = swaps.leave[a:b][swaps.written[a:b]]
        tick = int(since[a])
        yield Moved(
            float(page_bytes[swaps.come[a:b]].sum()), float(page_bytes[leave].sum()), uses[tick] if tick >= 0 else None
        )


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
