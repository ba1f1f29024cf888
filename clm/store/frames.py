"""Pages in a file, some of them in RAM: arrays of frames, and the threads that read ahead and write back.

Who holds pages waits until they are there; what is expected is read before anybody waits for it. A page that was changed is
written before its frame is used again. Which pages come and go, `page_table` decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, Thread

import numpy as np

from clm.kernels.page_file import PageArrays, places
from clm.store.arrays import RowArrays, row_bytes_of
from clm.store.page_file import PageFile, aligned_buffer
from clm.store.page_table import PageTable, Swap

LEAST_FRAMES = 16
THREADS = 4  # requests in flight
_HOLDERS = 4  # who may hold pages at a time, each a quarter of the frames
AT_ONCE = 4  # pages that a thread moves in one go


def seconds_of(spans: list[tuple[float, float]]) -> float:
    """Seconds in which at least one of some (begin, end) ran."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


class Frames(RowArrays):
    """Arrays of rows over frames: of `frames * page_rows` places, whatever the store has."""

    def __init__(self, frames: int, moments: str | None, page_rows: int, folder: Path):
        """folder: for the scratch file. Raises ResourceError."""
        if frames < LEAST_FRAMES:
            raise ValueError(f"{frames} frames: {LEAST_FRAMES} at least")
        self.file = PageFile(folder, page_rows, row_bytes_of(moments))
        super().__init__(frames * page_rows, moments, page_rows)
        self._moved = PageArrays.of(self.arrays, page_rows)
        self.table = PageTable(frames)
        self._stale = np.zeros(0, bool)  # pages whose statistics in the file do not count any more
        self._clears = 0  # how often they began anew
        self._failure: BaseException | None = None
        self._closed = False
        self._changed = Condition()  # guards the table and what is counted
        self.uses = self.missed = 0
        self.busy_seconds = self.exposed_seconds = 0.0
        self._waited: list[tuple[float, float]] = []  # when somebody waited for pages
        self._moving: list[tuple[float, float]] = []  # when a thread moved some
        self.trace: Callable[[np.ndarray], None] | None = None  # hears of the pages of each hold
        self._threads = [Thread(target=self._serve, name=f"disk-{k}", daemon=True) for k in range(THREADS)]
        for thread in self._threads:
            thread.start()

    frames = property(lambda self: self.table.frames)
    reads = property(lambda self: self.table.reads)
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
                self.table.pins[pages] -= 1
                if changing:
                    self.table.dirty[self.table.frame_of[pages]] = True
                if self.table.urgent:
                    self._changed.notify_all()

    def _have(self, pages: np.ndarray) -> None:
        table = self.table
        with self._changed:
            table.pins[pages] += 1
            there = table.there(pages)
            self.uses += len(pages)
            if self.trace is not None:
                self.trace(pages)
            if there.all():
                return
            self.missed += int((~there).sum())
            began = time.perf_counter()
            table.urgent.extend(pages[table.frame_of[pages] < 0].tolist())
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: self._failure is not None or bool(table.there(pages).all()))
                self._raise_failure()
            except BaseException:
                table.pins[pages] -= 1
                raise
            self._waited.append((began, time.perf_counter()))

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def at(self, rows: np.ndarray) -> np.ndarray:
        return places(rows, self.table.frame_of, self.page_rows)

    def frames_of(self, pages: np.ndarray) -> np.ndarray:
        return self.table.frame_of[pages].astype(np.int64)

    def on_hand(self, pages: np.ndarray) -> bool:
        """Whether each of pages [A] is in RAM or on its way."""
        with self._changed:
            return bool((self.table.frame_of[pages] >= 0).all())

    def expect(self, ticks: list[np.ndarray], after: int = 0) -> None:
        with self._changed:
            self.table.expect(ticks, after)
            self._changed.notify_all()

    def passed(self, tick: int) -> None:
        with self._changed:
            if self.table.passed(tick):
                self._changed.notify_all()

    # ---- pages that come and go ----

    def reserve(self, places: int) -> None:
        """Frames do not become more; pages do (`set_fill`)."""

    def reserve_pages(self, pages: int) -> None:
        self.file.reserve(pages)

    def set_fill(self, pages: np.ndarray, fill: np.ndarray) -> None:
        count = int(pages[-1]) + 1 if len(pages) else 0
        more = count - len(self.written)
        if more > 0:
            self.reserve_pages(count)
        with self._changed:
            if more > 0:
                self.table.grow(count)
                self.written = np.full(count, self.page_rows, np.int32)  # a frame holds what was there before
                self._stale = np.append(self._stale, np.zeros(more, bool))
            self.table.fill[pages] = fill

    def note_written(self, pages: np.ndarray, fill: np.ndarray) -> None:
        """Nothing is known to be zero."""

    def release(self, pages: np.ndarray, fill: np.ndarray) -> None:
        """Frames are used again."""

    def resize(self, frames: int) -> None:
        """So many frames from now on. Nobody holds pages meanwhile; where they become fewer, all pages leave RAM."""
        if frames == self.frames:
            return
        with self._changed:
            self._changed.wait_for(lambda: not self.table.busy.any())
            self._raise_failure()
            kept = self.frames if frames > self.frames else 0
            if not kept:
                self._write_dirty()
            del self._moved
            self._shape(frames * self.page_rows, anew=not kept)
            self._moved = PageArrays.of(self.arrays, self.page_rows)
            self.table.resize(frames, kept)
            self._changed.notify_all()

    def _write_dirty(self) -> None:
        """All pages that were changed are in the file; nothing is under way."""
        table = self.table
        dirty = np.flatnonzero(table.dirty & (table.page_of >= 0))
        pages = table.page_of[dirty]
        buffer = aligned_buffer(self.file.slot_bytes)
        goes = [(page, int(table.fill[page])) for page in pages.tolist()]
        self.file.swap(self._moved, dirty.tolist(), goes, [-1] * len(goes), buffer)
        table.dirty[:] = self._stale[pages] = False

    def clear_statistics(self, pages: np.ndarray) -> None:
        """Those in RAM at once, those in the file when they come from there: nothing is read or written for it."""
        with self._changed:
            self._stale[pages] = True
            self._clears += 1
            for frame in self.table.frame_of[pages[self.table.there(pages)]].tolist():
                self._zero_statistics(frame)

    def _zero_statistics(self, frame: int) -> None:
        self.statistics[frame * self.page_rows : (frame + 1) * self.page_rows] = 0

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
                while not (swaps := self._next_swaps()) and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                clears = self._clears
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
                    self._end(swap, clears)
                self._moving.append((began, time.perf_counter()))
                self._changed.notify_all()

    def _next_swaps(self) -> list[Swap]:
        if self._failure is not None or self._closed:
            return []
        return self.table.next_swaps(max(1, min(AT_ONCE, self.frames // (4 * THREADS))), self.file.rows)

    def _end(self, swap: Swap, clears: int) -> None:
        self.table.arrived(swap)
        if swap.rows and clears == self._clears:
            self._stale[swap.leaves] = False  # else what was written is of before
        if self._stale[swap.comes]:
            self._zero_statistics(swap.frame)
