"""Pages in a file, some of them in RAM: arrays of frames, a table that says which page lies in which, and the threads that read
ahead and write back.

A page is absent, under way, or there. Pages that somebody holds stay; of all others those leave first whose next use is
farthest away (`foresight`). A page that was changed is written before its frame is used again. Who holds pages waits until
they are there; what is expected is read before anybody waits for it, into the frames of pages that are used later.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, Thread
from typing import NamedTuple

import numpy as np

from clm.kernels.page_file import PageArrays, places
from clm.store.arrays import RowArrays, row_bytes_of
from clm.store.foresight import NEVER, Foresight
from clm.store.page_file import PageFile, aligned_buffer

LEAST_FRAMES = 16
THREADS = 4  # requests in flight
_HOLDERS = 4  # who may hold pages at a time, each a quarter of the frames
_AT_ONCE = 4  # pages that a thread moves in one go
_VICTIMS = 64  # frames that are looked for at a time


def seconds_of(spans: list[tuple[float, float]]) -> float:
    """Seconds in which at least one of some (begin, end) ran."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


class _Swap(NamedTuple):
    """One frame: `leaves` with `rows` of it that have to be written (0: none) gives way to `comes`."""

    frame: int
    leaves: int
    rows: int
    comes: int


class Frames(RowArrays):
    """Arrays of rows over frames: of `frames * page_rows` places, whatever the store has. Invariant: frame_of and page_of say
    the same; a page under way is in `frame_of` already, and its frame is busy."""

    def __init__(self, frames: int, moments: str | None, page_rows: int, folder: Path):
        """folder: for the scratch file. Raises ResourceError."""
        if frames < LEAST_FRAMES:
            raise ValueError(f"{frames} frames: {LEAST_FRAMES} at least")
        self.file = PageFile(folder, page_rows, row_bytes_of(moments))
        super().__init__(frames * page_rows, moments, page_rows)
        self.frames = frames
        self._moved = PageArrays.of(self.arrays, page_rows)
        self.fill = np.zeros(0, np.int32)
        self.frame_of = np.zeros(0, np.int32)
        self._pins = np.zeros(0, np.int32)
        self.page_of = np.full(frames, -1, np.int32)
        self._dirty, self._busy = np.zeros(frames, bool), np.zeros(frames, bool)
        self._leaving: set[int] = set()
        self._foresight = Foresight()
        self._tick = self._looked = 0  # what is read ahead next: tick, and how many of its pages were looked at
        self._full = False  # nothing more can be read ahead until something changes
        self._urgent: deque[int] = deque()
        self._victims: list[int] = []
        self._failure: BaseException | None = None
        self._closed = False
        self._changed = Condition()
        self.uses = self.reads = self.missed = 0
        self.busy_seconds = self.exposed_seconds = 0.0
        self._waited: list[tuple[float, float]] = []  # when somebody waited for pages
        self._moving: list[tuple[float, float]] = []  # when a thread moved some
        self.trace: Callable[[np.ndarray], None] | None = None
        self._threads = [Thread(target=self._serve, name=f"disk-{k}", daemon=True) for k in range(THREADS)]
        for thread in self._threads:
            thread.start()

    bytes_read = property(lambda self: self.file.bytes_read)
    bytes_written = property(lambda self: self.file.bytes_written)
    disk_bytes = property(lambda self: self.file.disk_bytes)

    # ---- for those who use rows ----

    @property
    def most_pages(self) -> int:
        return max(1, self.frames // _HOLDERS)

    @contextmanager
    def hold(self, pages: np.ndarray, changing: bool) -> Iterator[None]:
        if len(pages) > self.most_pages:
            raise ValueError(f"{len(pages)} pages are held at once, {self.most_pages} at most")
        self._have(pages)
        try:
            yield
        finally:
            with self._changed:
                self._pins[pages] -= 1
                if changing:
                    self._dirty[self.frame_of[pages]] = True
                if self._urgent:
                    self._changed.notify_all()

    def _have(self, pages: np.ndarray) -> None:
        with self._changed:
            self._pins[pages] += 1
            frames = self.frame_of[pages]
            there = (frames >= 0) & ~self._busy[frames]
            self.uses += len(pages)
            if self.trace is not None:
                self.trace(pages)
            if there.all():
                return
            self.missed += int((~there).sum())
            began = time.perf_counter()
            self._urgent.extend(pages[frames < 0].tolist())
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: self._failure is not None or self._there(pages))
                self._raise_failure()
            except BaseException:
                self._pins[pages] -= 1
                raise
            self._waited.append((began, time.perf_counter()))

    def _there(self, pages: np.ndarray) -> bool:
        frames = self.frame_of[pages]
        return bool((frames >= 0).all()) and not bool(self._busy[frames].any())

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def at(self, rows: np.ndarray) -> np.ndarray:
        return places(rows, self.frame_of, self.page_rows)

    def frames_of(self, pages: np.ndarray) -> np.ndarray:
        return self.frame_of[pages].astype(np.int64)

    def expect(self, ticks: list[np.ndarray]) -> None:
        with self._changed:
            self._foresight.look(ticks, len(self.fill))
            self._tick = self._looked = 0
            self._victims.clear()
            self._full = False
            self._changed.notify_all()

    def passed(self, tick: int) -> None:
        with self._changed:
            self._foresight.passed(tick)
            if self._tick <= tick:
                self._tick, self._looked = tick + 1, 0  # whoever was too late for it reads nothing for nobody
            if self._full:
                self._full = False
                self._changed.notify_all()

    # ---- pages that come and go ----

    def reserve(self, places: int) -> None:
        """Frames do not become more; pages do (`set_fill`)."""

    def set_fill(self, pages: np.ndarray, fill: np.ndarray) -> None:
        count = int(pages[-1]) + 1 if len(pages) else 0
        more = count - len(self.fill)
        if more > 0:
            self.file.reserve(count)
        with self._changed:
            if more > 0:
                none, zeros = np.full(more, -1, np.int32), np.zeros(more, np.int32)
                self.frame_of = np.append(self.frame_of, none)
                self.fill, self._pins = np.append(self.fill, zeros), np.append(self._pins, zeros)
                self.written = np.append(self.written, zeros + self.page_rows)  # a frame holds what was there before
                self._foresight.grow(count)
            self.fill[pages] = fill

    def note_written(self, pages: np.ndarray, fill: np.ndarray) -> None:
        """Nothing is known to be zero."""

    def release(self, pages: np.ndarray, fill: np.ndarray) -> None:
        """Frames are used again."""

    def resize(self, frames: int) -> None:
        """So many frames from now on. Nobody holds pages meanwhile; where they become fewer, all pages leave RAM."""
        if frames == self.frames:
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._busy.any())
            self._raise_failure()
            kept = self.frames
            if frames < self.frames:
                self._write_dirty()
                self.frame_of[:] = -1
                kept = 0
            self._view = None
            del self._moved
            self._shape(frames * self.page_rows, anew=kept == 0)
            self.page_of, before = np.full(frames, -1, np.int32), self.page_of
            dirty, self._dirty, self._busy = self._dirty, np.zeros(frames, bool), np.zeros(frames, bool)
            self.page_of[:kept], self._dirty[:kept] = before[:kept], dirty[:kept]
            self._moved = PageArrays.of(self.arrays, self.page_rows)
            self.frames = frames
            self._victims.clear()
            self._full = False
            self._changed.notify_all()

    def _write_dirty(self) -> None:
        """All pages that were changed are in the file; nothing is under way."""
        dirty = np.flatnonzero(self._dirty & (self.page_of >= 0))
        pages = self.page_of[dirty].tolist()
        buffer = aligned_buffer(self.file.slot_bytes)
        goes = [(page, int(self.fill[page])) for page in pages]
        self.file.swap(self._moved, dirty.tolist(), goes, [-1] * len(goes), buffer)
        self._dirty[:] = False

    def drain(self, computing: list[tuple[float, float]]) -> list[tuple[float, float]]:
        """When the threads moved pages since the last call. computing: when there was other work to do meanwhile; what somebody
        waited beside that counts as exposed."""
        with self._changed:
            moving, self._moving = self._moving, []
            waited, self._waited = self._waited, []
        self.busy_seconds += seconds_of(moving)
        self.exposed_seconds += seconds_of(waited + computing) - seconds_of(computing)
        return moving

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self.file.close()

    # ---- the threads ----

    def _serve(self) -> None:
        buffer = aligned_buffer(self.file.slot_bytes)
        while True:
            with self._changed:
                swaps = self._next_swaps()
                while not swaps and not self._closed:
                    self._changed.wait()
                    swaps = self._next_swaps()
                if self._closed:
                    return
            began, failure = time.perf_counter(), None
            try:
                self.file.swap(
                    self._moved,
                    [swap.frame for swap in swaps],
                    [(swap.leaves, swap.rows) for swap in swaps],
                    [swap.comes for swap in swaps],
                    buffer,
                )
            except BaseException as error:
                failure = error
            with self._changed:
                self._failure = self._failure or failure
                for swap in swaps:
                    self._leaving.discard(swap.leaves)
                    self._busy[swap.frame] = False
                self._moving.append((began, time.perf_counter()))
                self._changed.notify_all()

    def _next_swaps(self) -> list[_Swap]:
        """What is most urgent, a few pages: those that somebody waits for, then those that are expected."""
        swaps: list[_Swap] = []
        if self._failure is not None or self._closed:
            return swaps
        at_once = max(1, min(_AT_ONCE, self.frames // (4 * THREADS)))
        for _ in range(len(self._urgent)):
            if len(swaps) == at_once:
                break
            page = self._urgent.popleft()
            if self.frame_of[page] >= 0:
                continue
            swap = None if page in self._leaving else self._swap(page, -1)
            if swap is None:
                self._urgent.append(page)  # until it has left, or a frame is free
            else:
                swaps.append(swap)
        while len(swaps) < at_once and not self._urgent and not self._full:
            page = self._next_ahead()
            swap = None if page < 0 else self._swap(page, self._tick)
            if swap is None:
                self._full = True
            else:
                swaps.append(swap)
        return swaps

    def _next_ahead(self) -> int:
        """The next page that is expected and absent; -1: there is none."""
        ticks = self._foresight.ticks
        while self._tick < len(ticks):
            pages = ticks[self._tick][self._looked :]
            for k in np.flatnonzero(self.frame_of[pages] < 0).tolist():
                page = int(pages[k])
                if page not in self._leaving and self.fill[page] > 0 and self.file.rows[page] > 0:
                    self._looked += k
                    return page
            self._tick, self._looked = self._tick + 1, 0
        return -1

    def _swap(self, page: int, tick: int) -> _Swap | None:
        """Have `page` come into the frame of a page that is not used before `tick` (-1: whenever); None: there is none."""
        frame = self._victim(tick)
        if frame < 0:
            return None
        leaves, rows = int(self.page_of[frame]), 0
        if leaves >= 0:
            rows = int(self.fill[leaves]) if self._dirty[frame] else 0
            self.frame_of[leaves] = -1
            if rows:
                self._leaving.add(leaves)
        self.frame_of[page], self.page_of[frame] = frame, page
        self._dirty[frame], self._busy[frame] = False, True
        self.reads += int(self.file.rows[page] > 0)
        return _Swap(frame, leaves, rows, page)

    def _victim(self, tick: int) -> int:
        for again in (False, True):
            while self._victims:
                frame = self._victims[-1]
                page = int(self.page_of[frame])
                if self._busy[frame] or (page >= 0 and self._pins[page]):
                    self._victims.pop()
                    continue
                if page >= 0 and tick >= 0 and self._foresight.next_use[page] <= tick:
                    break
                return self._victims.pop()
            if again:
                return -1
            self._victims = self._farthest()
        return -1

    def _farthest(self) -> list[int]:
        """Frames that may be used for another page, the best one last: empty ones, then those whose pages are used latest."""
        pages = self.page_of
        use = np.where(pages < 0, np.int64(NEVER) + 1, self._foresight.next_use[pages])
        use[self._busy | ((pages >= 0) & (self._pins[pages] > 0))] = -1
        some = np.arange(len(use)) if len(use) <= _VICTIMS else np.argpartition(use, -_VICTIMS)[-_VICTIMS:]
        some = some[use[some] >= 0]
        return some[np.argsort(use[some], kind="stable")].tolist()
