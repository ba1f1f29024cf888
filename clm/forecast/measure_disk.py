"""How fast pages move between a disk and frames, by the code and the number of threads that move them in a run: a few seconds with
a file that is gone afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np

from clm.files import free_bytes
from clm.kernels.page_file import PageArrays
from clm.plan.budget import page_file_bytes
from clm.store.arrays import RowArrays, row_bytes_of
from clm.store.frames import AT_ONCE, THREADS
from clm.store.layout import PAGE_ROWS
from clm.store.page_file import PageFile, aligned_buffer

PROBE_PAGES = 192  # 278 MiB; files of ten times as many were neither quicker nor slower
_REPEATS = 2
_UNKNOWN = {"disk_read_gb_s": 0.0, "disk_write_gb_s": 0.0, "disk_core_gb_s": 0.0}


def disk_rates(folder: Path, pages: int = PROBE_PAGES, moments: str = "f32") -> dict[str, float]:
    """GB/s of pages that are read, of pages that are written beside as many reads, and of both by what one core does for them.
    In a scratch file in `folder`, or where that would be; 0 where the disk has no room for the probe. Raises ResourceError for a
    folder that cannot be written."""
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.is_dir())
    if free_bytes(there) < 2 * pages * page_file_bytes(moments=moments):
        return _UNKNOWN
    with closing(PageFile(there, PAGE_ROWS, row_bytes_of(moments))) as file, ThreadPoolExecutor(THREADS) as threads:
        probe = _Probe(file, threads, pages, moments)
        probe.write()
        rates = np.median([probe.rates() for _ in range(_REPEATS)], axis=0).tolist()
    return dict(zip(_UNKNOWN, rates, strict=True))


class _Probe:
    """Pages of noise; each thread has its own of them, in no order, and frames for a few."""

    def __init__(self, file: PageFile, threads: ThreadPoolExecutor, pages: int, moments: str):
        self._file, self._threads = file, threads
        self._rows = RowArrays(THREADS * AT_ONCE * PAGE_ROWS, moments, PAGE_ROWS)
        self._frames = PageArrays.of(self._rows.arrays, PAGE_ROWS)
        rng = np.random.default_rng(0)
        for array in self._rows.arrays:
            array.reshape(-1).view(np.uint8)[:] = rng.integers(0, 256, array.nbytes, np.uint8)
        order = rng.permutation(pages).tolist()
        mine = [order[k::THREADS] for k in range(THREADS)]
        self._groups = [[own[a : a + AT_ONCE] for a in range(0, len(own), AT_ONCE)] for own in mine]
        file.reserve(pages)

    def write(self) -> None:
        """All pages, whose blocks are there from here on."""
        self._each(lambda before, pages: (pages, []))

    def rates(self) -> tuple[float, float, float]:
        """GB/s of reading alone, of writing beside as many reads, and of both by the seconds of a core."""
        read, _, seconds, _ = self._each(lambda before, pages: ([], pages))
        reading = read / seconds
        read, written, seconds, working = self._each(lambda before, pages: (before, pages))
        # Both take turns in a thread: what reading alone would not take, writing does.
        writing = written / max(seconds - read / reading, 0.1 * seconds)
        return reading, writing, (read + written) / working

    def _each(
        self, swap: Callable[[list[int], list[int]], tuple[list[int], list[int]]]
    ) -> tuple[float, float, float, float]:
        """Every group of pages after its thread's last one: swap(the group before, this one) -> (pages that leave, pages that
        come). Returns GB read, GB written, seconds, and seconds of a core."""

        def some(k: int) -> None:
            before, buffer = list[int](), aligned_buffer(self._file.slot_bytes)
            for pages in self._groups[k]:
                leave, come = (list(some[: len(pages)]) for some in swap(before, pages))
                frames = [k * AT_ONCE + i for i in range(len(pages))]
                out = [(page, PAGE_ROWS) for page in leave] + [(-1, 0)] * (len(pages) - len(leave))
                self._file.swap(self._frames, frames, out, come or [-1] * len(pages), buffer)
                before = pages

        file = self._file
        counted = file.bytes_read, file.bytes_written
        began, worked = time.perf_counter(), time.process_time()
        list(self._threads.map(some, range(THREADS)))
        seconds, working = time.perf_counter() - began, time.process_time() - worked
        return 1e-9 * (file.bytes_read - counted[0]), 1e-9 * (file.bytes_written - counted[1]), seconds, working
