"""Rows in a file without a name: in an order once, then read from any place at their own cost, and gone with the process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from clm.errors import ResourceError
from clm.files import storage_failure
from clm.formats.columns import read_at, write_at
from clm.formats.rows import Chunk, Rows
from clm.store.layout import COLOUR_COLUMNS, GEOMETRY_COLUMNS
from clm.units import format_bytes

_ROW = np.dtype([("geometry", "<f4", GEOMETRY_COLUMNS), ("colour", "<f4", COLOUR_COLUMNS)])


@contextmanager
def scratch_file(folder: Path, needed: int, what: str) -> Iterator[IO[bytes]]:
    """An empty file without a name, for `needed` bytes. ResourceError where the folder has no room, or fills up."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{what} takes {format_bytes(needed)} in {folder} for a while, where {format_bytes(free)} are free.",
            "Free space there, or name another folder with --scratch.",
        )
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            yield file
    except OSError as error:
        if error.filename is not None:  # of another file
            raise
        raise storage_failure(error, folder, needed) or error from None


@dataclass
class _SpooledRows(Rows):
    kind = "scratch"

    file: IO[bytes] = field(kw_only=True, repr=False)

    def pieces(self, size: int, first: int = 0) -> Iterator[Chunk]:
        for start in range(first, self.count, size):
            rows = min(size, self.count - start)
            table = read_at(self.file.fileno(), rows * _ROW.itemsize, start * _ROW.itemsize).view(_ROW)
            yield np.ascontiguousarray(table["geometry"]), np.ascontiguousarray(table["colour"])


@contextmanager
def spooled(chunks: Iterable[Chunk], count: int, like: Rows, sh_degree: int, folder: Path) -> Iterator[Rows]:
    """`count` rows from chunks, in a file without a name in `folder`; the rest is that of the rows `like` which they are."""
    with scratch_file(folder, count * _ROW.itemsize, f"Sorting {like.path}") as file:
        done = 0
        for geometry, colour in chunks:
            table = np.empty(len(geometry), _ROW)
            table["geometry"], table["colour"] = geometry, colour
            write_at(file.fileno(), table.view(np.uint8).data, done * _ROW.itemsize)
            done += len(table)
        assert done == count
        yield _SpooledRows(like.path, count, sh_degree, like.antialiased, file=file)
