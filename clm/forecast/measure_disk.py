"""How fast a disk reads and overwrites pages in any order, several requests at a time: half a second with a file that is gone
afterwards."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from clm.files import free_bytes
from clm.plan.budget import page_file_bytes

PROBE_PAGES = 128  # 185 MiB
_REQUESTS = 4  # in flight
_REPEATS = 3


def disk_rates(folder: Path, pages: int = PROBE_PAGES) -> dict[str, float]:
    """GB/s of reading and of overwriting pages of a scratch file in `folder`, or where it would be. Past the page cache, where
    the file system can; 0 where the disk has no room for the probe. Raises OSError for a folder that cannot be written."""
    size = page_file_bytes()
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.is_dir())
    if free_bytes(there) < 2 * pages * size:
        return {"disk_read_gb_s": 0.0, "disk_write_gb_s": 0.0}
    with tempfile.NamedTemporaryFile(dir=there, prefix=".clm-probe-") as file, ThreadPoolExecutor(_REQUESTS) as threads:
        fd = _open_direct(Path(file.name))
        buffers = [mmap.mmap(-1, size) for _ in range(_REQUESTS)]  # of their own pages, as direct requests want them
        for buffer in buffers:
            buffer.write(np.random.default_rng(0).bytes(size))
        order = np.random.default_rng(0).permutation(pages).tolist()

        def write(buffer: mmap.mmap, page: int) -> None:
            os.pwrite(fd, buffer, page * size)

        def read(buffer: mmap.mmap, page: int) -> None:
            os.preadv(fd, [buffer], page * size)

        def timed(request: Callable[[mmap.mmap, int], None], pages: Sequence[int]) -> float:
            def some(k: int) -> None:
                for page in pages[k::_REQUESTS]:
                    request(buffers[k], page)

            began = time.perf_counter()
            list(threads.map(some, range(_REQUESTS)))
            return time.perf_counter() - began

        try:
            timed(write, range(pages))  # the blocks are there from here on
            os.fsync(fd)
            seconds = [(timed(read, order), timed(write, order)) for _ in range(_REPEATS)]
        finally:
            os.close(fd)
    reading, writing = np.median(seconds, axis=0).tolist()
    return {"disk_read_gb_s": 1e-9 * pages * size / reading, "disk_write_gb_s": 1e-9 * pages * size / writing}


def _open_direct(path: Path) -> int:
    """For requests that pass the page cache; where the file system refuses them, for ordinary ones."""
    try:
        return os.open(path, os.O_RDWR | getattr(os, "O_DIRECT", 0))
    except OSError:
        return os.open(path, os.O_RDWR)
