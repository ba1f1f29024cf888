"""Which page lies in which frame, and which one goes where next: the decisions of the disk tier, without its threads.

A page is absent, under way, or there. Pages that somebody holds (`pins`) stay; of all others those leave first whose next use is
farthest away (`foresight`). Pages that somebody waits for come first, then those that are expected, in their order. For those
the page leaves that would have to if they were read when they are used, no other one, and not before its last use until then:
what is read ahead is no more than what would be read without (Cao et al. 1995 call it conservative prefetching; to take the
farthest page of the moment instead, as soon as there is one, read as much as LRU does). Invariant: frame_of and page_of say
the same; a page under way is in `frame_of` already, and its frame is busy.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

from clm.store.foresight import NEVER, Foresight

_VICTIMS = 16  # frames that are looked for at a time: what is farthest away changes as ticks pass


class Swap(NamedTuple):
    """One frame: `leaves` with `rows` of it that have to be written (0: none) gives way to `comes`."""

    frame: int
    leaves: int
    rows: int
    comes: int


class PageTable:
    """By page: frame_of [pages] i32 (-1: absent), pins, fill. By frame: page_of [frames] i32 (-1: empty), dirty: changed since it
    was read, busy: under way."""

    def __init__(self, frames: int):
        self.fill = np.zeros(0, np.int32)
        self.frame_of = np.zeros(0, np.int32)
        self.pins = np.zeros(0, np.int32)
        self.leaving: set[int] = set()  # pages that are being written
        self.urgent: deque[int] = deque()  # pages that somebody waits for
        self.foresight = Foresight()
        self.reads = 0
        self._full = False  # nothing more can be read ahead until something changes
        self._looked = 0  # how many pages of the tick that is read ahead next were looked at
        self.page_of = np.full(0, -1, np.int32)
        self.dirty, self.busy = np.zeros(0, bool), np.zeros(0, bool)
        self.resize(frames, 0)

    def resize(self, frames: int, kept: int) -> None:
        """So many frames, of which the first `kept` are as they were."""
        page_of, dirty = self.page_of, self.dirty
        self.frames, self.page_of = frames, np.full(frames, -1, np.int32)
        self.dirty, self.busy = np.zeros(frames, bool), np.zeros(frames, bool)
        self.page_of[:kept], self.dirty[:kept] = page_of[:kept], dirty[:kept]
        if not kept:
            self.frame_of[:] = -1
        self._victims: dict[bool, list[int]] = {
            True: [],
            False: [],
        }  # for pages that are read ahead, and for urgent ones
        self._full = False

    def grow(self, pages: int) -> None:
        """There are so many pages now; the new ones are empty."""
        more = max(0, pages - len(self.fill))
        self.frame_of = np.append(self.frame_of, np.full(more, -1, np.int32))
        self.fill, self.pins = (np.append(a, np.zeros(more, np.int32)) for a in (self.fill, self.pins))
        self.foresight.grow(pages)

    def there(self, pages: np.ndarray) -> np.ndarray:
        """Which of pages [A] are in RAM."""
        frames = self.frame_of[pages]
        return np.asarray((frames >= 0) & ~self.busy[frames])

    def expect(self, ticks: list[np.ndarray], after: int = 0) -> None:
        """Ticks to come; after: instead of those that were expected after so many others."""
        if after:
            self.foresight.look_again(ticks, after)
        else:
            self.foresight.look(ticks, len(self.fill))
        self._looked = 0
        self._forget_victims()
        self._full = False

    def passed(self, tick: int) -> bool:
        """A tick is over; returns whether there may be something to read ahead again."""
        if self.foresight.ahead <= tick:
            self._looked = 0  # whoever was too late for it reads nothing for nobody
        self.foresight.passed(tick)
        self._forget_victims()
        was_full, self._full = self._full, False
        return was_full

    def next_swaps(self, at_once: int, stored: np.ndarray) -> list[Swap]:
        """What is most urgent, a few pages, under way from now on. stored [pages] i32: rows of each page in the file."""
        swaps: list[Swap] = []
        for _ in range(len(self.urgent)):
            if len(swaps) == at_once:
                break
            page = self.urgent.popleft()
            if self.frame_of[page] >= 0:
                continue
            swap = None if page in self.leaving else self._swap(page, -1, stored)
            if swap is None:
                self.urgent.append(page)  # until it has left, or a frame is free
            else:
                swaps.append(swap)
        while len(swaps) < at_once and not self.urgent and not self._full:
            page = self._next_ahead(stored)
            swap = None if page < 0 else self._swap(page, self.foresight.ahead, stored)
            if swap is None:
                self._full = True
            else:
                swaps.append(swap)
        return swaps

    def arrived(self, swap: Swap) -> None:
        """A swap is done."""
        self.leaving.discard(swap.leaves)
        self.busy[swap.frame] = False

    def _next_ahead(self, stored: np.ndarray) -> int:
        """The next page that is expected and absent; -1: there is none."""
        ticks = self.foresight.ticks
        while self.foresight.ahead < len(ticks):
            pages = ticks[self.foresight.ahead][self._looked :]
            for k in np.flatnonzero(self.frame_of[pages] < 0).tolist():
                page = int(pages[k])
                if page not in self.leaving and self.fill[page] > 0 and stored[page] > 0:
                    self._looked += k
                    return page
            self.foresight.prepared()
            self._looked = 0
            self._victims[True].clear()
        return -1

    def _swap(self, page: int, tick: int, stored: np.ndarray) -> Swap | None:
        """Have `page` come into the frame of a page that is not used before `tick` (-1: whenever); None: there is none."""
        frame = self._victim(tick)
        if frame < 0:
            return None
        for victims in self._victims.values():
            if frame in victims:  # what it holds now is needed sooner than what made it one
                victims.remove(frame)
        leaves, rows = int(self.page_of[frame]), 0
        if leaves >= 0:
            rows = int(self.fill[leaves]) if self.dirty[frame] else 0
            self.frame_of[leaves] = -1
            if rows:
                self.leaving.add(leaves)
        self.frame_of[page], self.page_of[frame] = frame, page
        self.dirty[frame], self.busy[frame] = False, True
        self.reads += int(stored[page] > 0)
        return Swap(frame, leaves, rows, page)

    def _victim(self, tick: int) -> int:
        """A frame for a page that is used at `tick`, or is urgent (-1); -1: there is none now."""
        victims = self._victims[tick >= 0]
        for again in (False, True):
            while victims:
                frame = victims[-1]
                page = int(self.page_of[frame])
                free = not self.busy[frame] and (page < 0 or not self.pins[page])
                if tick >= 0:
                    if page >= 0 and not (free and self._leaves_for(page, tick)):
                        return -1
                elif not free:
                    victims.pop()
                    continue
                return victims.pop()
            if again:
                return -1
            victims[:] = self._farthest(tick >= 0)
        return -1

    def _leaves_for(self, page: int, tick: int) -> bool:
        """Whether a page is used after a tick, and not before it."""
        use = self.foresight.ahead_use[page]
        return bool(use > tick and use == self.foresight.next_use[page])

    def _farthest(self, ahead: bool) -> list[int]:
        """Frames that may be used for another page, the best one last: empty ones, then those whose pages are used latest, as
        seen from the tick that is read ahead, or from now; of those frames that may be used now."""
        pages, foresight = self.page_of, self.foresight
        next_use = np.where(pages < 0, np.int64(NEVER) + 1, foresight.next_use[pages])
        if ahead:  # of equal ones, those that are not used before
            ahead_use = np.where(pages < 0, np.int64(NEVER) + 1, foresight.ahead_use[pages])
            use = 2 * ahead_use + (next_use == ahead_use)
        else:
            use = next_use
            use[self.busy | ((pages >= 0) & (self.pins[pages] > 0))] = -1
        some = np.arange(len(use)) if len(use) <= _VICTIMS else np.argpartition(use, -_VICTIMS)[-_VICTIMS:]
        some = some[use[some] >= 0]
        return some[np.argsort(use[some], kind="stable")].tolist()

    def _forget_victims(self) -> None:
        for victims in self._victims.values():
            victims.clear()
