"""A trace of page uses replayed over frames of host memory: which pages are read from disk and written back, and when.

A tick is a set of pages that are in memory at one time. What is read for a tick is what it lacks; what makes room is, by next
use, the pages that are needed latest (Belady 1966: no other choice reads fewer), or, by last use, those that were used
longest ago (LRU). Pure functions of the trace; pages are small integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_NOTHING = np.zeros(0, np.int32)


@dataclass(frozen=True, eq=False)
class Swaps:
    """What one tick lacks, in the order in which room is made for it: pages [n] i32 that come; leave [n] i32, those whose frames
    they get (-1: an empty one); written [n] bool: of these, those that are written back; since [n] i32: the tick in which they
    were used last (-1: none), before whose end they cannot leave."""

    come: np.ndarray
    leave: np.ndarray
    written: np.ndarray
    since: np.ndarray


@dataclass(frozen=True, eq=False)
class Replay:
    """What each tick has read and written."""

    swaps: tuple[Swaps, ...]
    uses: int  # pages of all ticks together

    @property
    def reads(self) -> list[np.ndarray]:
        """Per tick: pages that are read [n] i32."""
        return [swaps.come for swaps in self.swaps]

    @property
    def writes(self) -> list[np.ndarray]:
        """Per tick: pages that are written back to make room for them [m] i32."""
        return [swaps.leave[swaps.written] for swaps in self.swaps]

    @property
    def misses(self) -> int:
        return sum(map(len, self.reads))

    @property
    def hit_rate(self) -> float:
        return 1.0 - self.misses / self.uses if self.uses else 1.0


def replay(
    ticks: Sequence[np.ndarray], frames: int, *, changing: Sequence[bool] | None = None, by_next_use: bool = True
) -> Replay:
    """Replay ticks, each some pages [n] i32 without duplicates, over `frames` frames that are empty at first.

    changing: whether a tick changes its pages, which are then written back before they leave (None: every tick does). A tick
    of more pages than there are frames passes through them in parts. ValueError for no frames."""
    if frames < 1:
        raise ValueError("pages need a frame")
    parts = [(t, pages[at : at + frames]) for t, pages in enumerate(ticks) for at in range(0, len(pages), frames)]
    uses = np.concatenate([pages for _, pages in parts]) if parts else _NOTHING
    ranks = _next_uses(parts, uses)
    memory = _Memory(frames, int(uses.max()) + 1 if len(uses) else 0)
    swaps: list[list[Swaps]] = [[] for _ in ticks]
    at = 0
    for k, (t, pages) in enumerate(parts):
        rank = ranks[at : at + len(pages)] if by_next_use else np.full(len(pages), -k)
        swaps[t].append(memory.use(pages, rank, t, changing is None or changing[t]))
        at += len(pages)
    return Replay(tuple(map(_joined, swaps)), len(uses))


def _joined(parts: list[Swaps]) -> Swaps:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return Swaps(_NOTHING, _NOTHING, _NOTHING.astype(bool), _NOTHING)
    return Swaps(*(np.concatenate([getattr(part, name) for part in parts]) for name in Swaps.__dataclass_fields__))


def _next_uses(parts: Sequence[tuple[int, np.ndarray]], uses: np.ndarray) -> np.ndarray:
    """For each use, the part that uses its page next [len(uses)] i64; their number where none does."""
    when = np.repeat(np.arange(len(parts)), [len(pages) for _, pages in parts])
    order = np.argsort(uses, kind="stable")  # page by page, in time
    following = np.full(len(uses), len(parts), np.int64)
    again = uses[order[:-1]] == uses[order[1:]]
    following[order[:-1][again]] = when[order[1:][again]]
    return following


class _Memory:
    """Frames and what is in them. A page's rank says how soon it goes: the largest first, a clean one before one that must be
    written."""

    def __init__(self, frames: int, pages: int):
        self._frames, self._count = frames, 0
        self._page_in = np.full(frames, -1, np.int32)
        self._frame_of = np.full(pages, -1, np.int32)  # -1: on disk
        self._rank = np.zeros(frames, np.int64)
        self._used = np.full(frames, -1, np.int32)  # the tick in which it was used last
        self._dirty = np.zeros(frames, bool)

    def use(self, pages: np.ndarray, rank: np.ndarray, tick: int, changing: bool) -> Swaps:
        """Have pages [n <= frames] in memory, with ranks [n] i64 from now on."""
        there = self._frame_of[pages] >= 0
        missing = pages[~there]
        free = np.arange(self._count, min(self._frames, self._count + len(missing)))
        room = len(missing) - len(free)
        self._count += len(free)
        if room > 0:
            first = 2 * self._rank + ~self._dirty
            first[self._frame_of[pages[there]]] = first[free] = np.iinfo(np.int64).min  # in use, or about to be
            gone = np.argpartition(first, self._frames - room)[self._frames - room :]
            gone = gone[np.argsort(-first[gone], kind="stable")]
            self._frame_of[self._page_in[gone]] = -1
            free = np.concatenate([free, gone])
        swaps = Swaps(missing, self._page_in[free], self._dirty[free], self._used[free])
        self._dirty[free] = False
        self._page_in[free] = missing
        self._frame_of[missing] = free
        frames = self._frame_of[pages]
        self._rank[frames], self._used[frames] = rank, tick
        self._dirty[frames] |= changing
        return swaps
