"""The file that pages lie in while they are not in RAM: a slot per page, in a scratch folder.

The file has no name: it is unlinked as soon as it is open, so that no two runs ever share it and the system frees its space
however the run ends. Requests go past the system's page cache where the file system can do that; pages would be kept twice.
What is read has to have the checksum of what was written.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

import numpy as np

from clm.errors import ClmError, ResourceError
from clm.kernels.page_file import ENDED_EARLY, OTHER_CHECKSUM, PageArrays, swap_pages
from clm.units import format_bytes

BLOCK = 4096
_AT_ONCE = 64 << 20  # bytes that the file grows by, at least


def slot_bytes(page_rows: int, row_bytes: int) -> int:
    """Bytes of a page in the file, at most."""
    return -(-page_rows * row_bytes // BLOCK) * BLOCK


def aligned_buffer(size: int) -> np.ndarray:
    """u8 [size] that begins at a multiple of BLOCK."""
    raw = np.empty(size + BLOCK, np.uint8)
    return raw[-raw.ctypes.data % BLOCK :][:size]


class PageFile:
    """Pages of up to page_rows rows of row_bytes. `rows` [pages] i32: how many of each the file has; `sums` [pages] u64."""

    def __init__(self, folder: Path, page_rows: int, row_bytes: int):
        """folder is made where it is not there. Raises ResourceError where no file can be made in it."""
        self.folder, self.slot_bytes = folder, slot_bytes(page_rows, row_bytes)
        self._row_bytes = row_bytes
        self.rows, self.sums = np.zeros(0, np.int32), np.zeros(0, np.uint64)
        self.bytes_read = self.bytes_written = 0
        self._size, self._lock = 0, Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file, self.direct = _open(folder)
        except OSError as error:
            raise ResourceError(
                f"No scratch file can be made in {folder}: {error.strerror}.",
                "Pass a folder on a local disk with --scratch.",
            ) from None

    @property
    def disk_bytes(self) -> int:
        return self._size

    def reserve(self, pages: int) -> None:
        """Room on the disk for so many pages: a run does not find out half-way that there is none. Raises ResourceError."""
        more = pages - len(self.rows)
        if more > 0:
            with self._lock:
                self.rows = np.append(self.rows, np.zeros(more, np.int32))
                self.sums = np.append(self.sums, np.zeros(more, np.uint64))
        if (needed := pages * self.slot_bytes) <= self._size:
            return
        for size in (max(needed, self._size + _AT_ONCE), needed):
            try:
                os.posix_fallocate(self._file, self._size, size - self._size)
            except OSError as error:
                failure = error
            else:
                self._size = size
                return
        if failure.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise self._failed("grow", failure.errno or 0)
        raise ResourceError(
            f"The disk of {self.folder} has no room for a scratch file of {format_bytes(needed)}.",
            "Free space there, pass another folder with --scratch, or a smaller --max-gaussians.",
        )

    def swap(
        self,
        arrays: PageArrays,
        frames: Sequence[int],
        out: Sequence[tuple[int, int]],
        come: Sequence[int],
        buffer: np.ndarray,
    ) -> None:
        """For each frame: rows of a page go out, (page, rows), (-1, 0) for none; then page `come` comes in, as many rows as the
        file has of it, -1 for none. From any thread, never about the same page at once. Raises ClmError."""
        leaves, comes = (np.array(pages, np.int64) for pages in ([page for page, _ in out], come))
        left = np.array([rows for _, rows in out], np.int32)
        sums = np.zeros(len(left), np.uint64)
        with self._lock:  # -1 is the last page: of no use where nothing comes
            arrived, wanted = np.where(comes >= 0, self.rows[comes], 0).astype(np.int32), self.sums[comes]
        error, at, written = swap_pages(
            self._file,
            arrays,
            np.array(frames, np.int64),
            (leaves * self.slot_bytes, left, sums),
            (comes * self.slot_bytes, arrived, wanted),
            buffer,
        )
        if error:
            what = f"read page {come[at]} of" if written else f"write page {out[at][0]} to"
            raise self._failed(what, error)
        gone = np.flatnonzero(left > 0)
        with self._lock:
            self.rows[leaves[gone]], self.sums[leaves[gone]] = left[gone], sums[gone]
            self.bytes_written += int(left.sum()) * self._row_bytes
            self.bytes_read += int(arrived.sum()) * self._row_bytes

    def _failed(self, what: str, error: int) -> ClmError:
        reasons = {ENDED_EARLY: "it ends too early", OTHER_CHECKSUM: "it holds other bytes than were written there"}
        reason = reasons.get(error) or os.strerror(error)
        return ResourceError(
            f"Could not {what} the scratch file in {self.folder}: {reason}.",
            "Check that disk, or pass a folder on another one with --scratch, and go on with --resume.",
        )

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _open(folder: Path) -> tuple[int, bool]:
    """A file without a name, and whether its requests go past the page cache."""
    handle, name = tempfile.mkstemp(prefix=".clm-pages-", dir=folder)
    direct = getattr(os, "O_DIRECT", 0)
    try:
        if not direct:
            return handle, False
        try:
            unbuffered = os.open(name, os.O_RDWR | direct)
        except OSError:
            return handle, False
        os.close(handle)
        return unbuffered, True
    finally:
        os.unlink(name)
