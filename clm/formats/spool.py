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
class SpooledRows(Rows):
    """Rows that were added one chunk after another; `count` says how many there will be."""

    kind = "scratch"

    file: IO[bytes] = field(kw_only=True, repr=False)
    added: int = field(default=0, kw_only=True)

    def add(self, geometry: np.ndarray, colour: np.ndarray) -> None:
        table = np.empty(len(geometry), _ROW)
        table["geometry"], table["colour"] = geometry, colour
        write_at(self.file.fileno(), table.view(np.uint8).data, self.added * _ROW.itemsize)
        self.added += len(table)

    def pieces(self, size: int, first: int = 0) -> Iterator[Chunk]:
        assert self.added == self.count
        for start in range(first, self.count, size):
            rows = min(size, self.count - start)
            table = read_at(self.file.fileno(), rows * _ROW.itemsize, start * _ROW.itemsize).view(_ROW)
            yield np.ascontiguousarray(table["geometry"]), np.ascontiguousarray(table["colour"])


@contextmanager
def empty_spool(count: int, like: Rows, sh_degree: int, folder: Path) -> Iterator[SpooledRows]:
    """Room for `count` rows, in a file without a name in `folder`; the rest is that of the rows `like` which they are."""
    with scratch_file(folder, count * _ROW.itemsize, f"Sorting {like.path}") as file:
        yield SpooledRows(like.path, count, sh_degree, like.antialiased, file=file)


@contextmanager
def spooled(chunks: Iterable[Chunk], count: int, like: Rows, sh_degree: int, folder: Path) -> Iterator[Rows]:
    """As `empty_spool`, filled from chunks."""
    with empty_spool(count, like, sh_degree, folder) as rows:
        for chunk in chunks:
            rows.add(*chunk)
        yield rows
