"""When pages are used next, as far as that is known: what a tier of pages keeps, reads ahead and lets go is decided by it.

The uses to come are a list of ticks, each some pages. Pages whose next use is farthest away, or unknown, leave first (Belady
1966): with all uses known no other choice reads less.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

NEVER = 2**31 - 1  # a use that is not known
MOST_USES = 1 << 22  # that are looked at: ticks beyond count as unknown


class Foresight:
    """next_use [pages] i32: the first tick to come in which each page is used. ahead_use [pages] i32: the same as seen from a
    later tick, `ahead`, which is the next one that is prepared; never earlier than next_use."""

    def __init__(self) -> None:
        self.ticks: list[np.ndarray] = []
        self.next_use, self.ahead_use = np.zeros(0, np.int32), np.zeros(0, np.int32)
        self.ahead = 0
        self._after: list[np.ndarray] = []
        self._passed: list[int] = []

    def look(self, ticks: Sequence[np.ndarray], pages: int) -> None:
        """From now on tick k [A] i32 uses those of so many pages. Costs as much as there are uses."""
        ends = np.cumsum([len(tick) for tick in ticks])
        self.ticks = list(ticks[: int(np.searchsorted(ends, MOST_USES, side="right"))])
        self.next_use = np.full(pages, NEVER, np.int32)
        after = []
        for k in range(len(self.ticks) - 1, -1, -1):
            after.append(self.next_use[self.ticks[k]])
            self.next_use[self.ticks[k]] = k
        self._after, self._passed = after[::-1], []
        self.ahead, self.ahead_use = 0, self.next_use.copy()

    def look_again(self, ticks: Sequence[np.ndarray], after: int) -> None:
        """What comes after the first `after` ticks is known better now: `ticks`. Those that passed are over."""
        if len(self.ticks) < after:
            return  # so far nobody looks
        passed = self._passed
        self.look([*self.ticks[:after], *ticks], len(self.next_use))
        for tick in passed:
            self.passed(tick)

    def grow(self, pages: int) -> None:
        """There are so many pages now; nothing is known of the new ones."""
        more = pages - len(self.next_use)
        if more > 0:
            new = np.full(more, NEVER, np.int32)
            self.next_use, self.ahead_use = np.append(self.next_use, new), np.append(self.ahead_use, new)

    def passed(self, tick: int) -> None:
        """The uses of a tick are over. Ticks may pass out of order."""
        if tick < len(self.ticks):
            self._passed.append(tick)
            pages = self.ticks[tick]
            self.next_use[pages] = np.maximum(self.next_use[pages], self._after[tick])
        while self.ahead <= min(tick, len(self.ticks) - 1):
            self.prepared()

    def prepared(self) -> None:
        """Nothing is left to be done for the tick `ahead`; the one after it is next."""
        pages = self.ticks[self.ahead]
        self.ahead_use[pages] = np.maximum(self.ahead_use[pages], self._after[self.ahead])
        self.ahead += 1
