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
    """next_use [pages] i32: the first tick to come in which each page is used."""

    def __init__(self) -> None:
        self.ticks: list[np.ndarray] = []
        self.next_use = np.zeros(0, np.int32)
        self._after: list[np.ndarray] = []

    def look(self, ticks: Sequence[np.ndarray], pages: int) -> None:
        """From now on tick k [A] i32 uses those of so many pages. Costs as much as there are uses."""
        ends = np.cumsum([len(tick) for tick in ticks])
        self.ticks = list(ticks[: int(np.searchsorted(ends, MOST_USES, side="right"))])
        self.next_use = np.full(pages, NEVER, np.int32)
        after = []
        for k in range(len(self.ticks) - 1, -1, -1):
            after.append(self.next_use[self.ticks[k]])
            self.next_use[self.ticks[k]] = k
        self._after = after[::-1]

    def grow(self, pages: int) -> None:
        """There are so many pages now; nothing is known of the new ones."""
        more = pages - len(self.next_use)
        if more > 0:
            self.next_use = np.append(self.next_use, np.full(more, NEVER, np.int32))

    def passed(self, tick: int) -> None:
        """The uses of a tick are over. Ticks may pass out of order."""
        if tick < len(self.ticks):
            pages = self.ticks[tick]
            self.next_use[pages] = np.maximum(self.next_use[pages], self._after[tick])
