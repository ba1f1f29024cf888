"""Rows of a file in another order than its own, in bounded memory.

They are brought into order a bucket at a time, of so many rows that they fit into memory. Where the rows of each bucket lie near
each other in the file, as in what this program exports, a bucket is read from there. Of a shuffled file that would be nearly all
of it for every bucket: then one pass over it puts each row into the bucket where it belongs, in a scratch file. That file has no
name, so whatever ends the process removes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from clm.formats.columns import read_at, write_at
from clm.formats.rows import Rows
from clm.formats.spool import scratch_file
from clm.progress import Report, counted, unseen
from clm.store.layout import CHUNK_ROWS, COLOUR_COLUMNS, GEOMETRY_COLUMNS

BUCKET_ROWS = 1 << 20  # held at once where there is memory: 240 MiB
_GAP = 256  # rows that are read to no purpose rather than beginning another read
_COPY_READS = 2.0  # what the way over a scratch file costs: writing and reading a row as often as it is in the file
_ROW = np.dtype([("place", "<i4"), ("geometry", "<f4", GEOMETRY_COLUMNS), ("colour", "<f4", COLOUR_COLUMNS)])

# Fills geometry and colour of a bucket, rows of which are wanted in the order of the bucket's numbers.
_Load = Callable[[int, np.ndarray, np.ndarray], None]


def in_order(
    ply: Rows, numbers: np.ndarray, scratch: Path, report: Report = unseen, *, bucket_rows: int = BUCKET_ROWS
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(geometry [k, 12] f32, colour [k, 48] f32) of rows `numbers` [n] i32, each usable and named once, in that order; arrays
    are overwritten later.

    scratch: folder for a file of 244 bytes per row, where one is needed. Memory: a bucket; with the file 4 bytes per row of the
    file more. ResourceError where the folder has no room."""
    buckets = [numbers[first : first + bucket_rows] for first in range(0, len(numbers), bucket_rows)]
    if ply.seekable and sum(map(_read_rows, buckets)) <= _COPY_READS * ply.count:
        yield from _pieces(buckets, lambda k, geometry, colour: _load_from_file(ply, buckets[k], geometry, colour))
        return
    with _copied(ply, numbers, scratch, report, bucket_rows) as load:
        yield from _pieces(buckets, load)


def _pieces(buckets: list[np.ndarray], load: _Load) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    most = max(map(len, buckets), default=0)
    geometry, colour = np.empty((most, GEOMETRY_COLUMNS), np.float32), np.empty((most, COLOUR_COLUMNS), np.float32)
    for k, bucket in enumerate(buckets):
        rows = len(bucket)
        load(k, geometry[:rows], colour[:rows])
        for first in range(0, rows, CHUNK_ROWS):
            piece = slice(first, min(first + CHUNK_ROWS, rows))
            yield geometry[piece], colour[piece]


# ---- from where they lie ----


def _runs(ascending: np.ndarray) -> np.ndarray:
    """Where runs of rows that are read together begin [R], and the end [1]; no run spans a gap of more than _GAP rows."""
    return np.concatenate([[0], np.flatnonzero(np.diff(ascending) > _GAP) + 1, [len(ascending)]])


def _read_rows(bucket: np.ndarray) -> int:
    """Rows that are read for those of a bucket, beginning a read counted as _GAP of them."""
    ascending = np.sort(bucket).astype(np.int64)
    cuts = _runs(ascending)
    return int((ascending[cuts[1:] - 1] - ascending[cuts[:-1]] + _GAP).sum())


def _load_from_file(ply: Rows, bucket: np.ndarray, geometry: np.ndarray, colour: np.ndarray) -> None:
    order = np.argsort(bucket)
    ascending = bucket[order]
    cuts = _runs(ascending)
    for begin, end in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        for first in range(int(ascending[begin]), int(ascending[end - 1]) + 1, CHUNK_ROWS):
            last = min(first + CHUNK_ROWS, int(ascending[end - 1]) + 1)
            wanted = slice(*np.searchsorted(ascending, [first, last]))
            piece = ply.read(first, last)
            theirs, colours = piece.geometry, piece.colour
            if len(theirs) > wanted.stop - wanted.start:
                found = np.searchsorted(piece.numbers, ascending[wanted])
                theirs, colours = theirs[found], colours[found]
            geometry[order[wanted]], colour[order[wanted]] = theirs, colours


# ---- over a copy in buckets ----


@contextmanager
def _copied(ply: Rows, numbers: np.ndarray, scratch: Path, report: Report, bucket_rows: int) -> Iterator[_Load]:
    with scratch_file(scratch, len(numbers) * _ROW.itemsize, f"Sorting {ply.path}") as file:
        filled = _write_buckets(ply, numbers, file.fileno(), report, bucket_rows)

        def load(k: int, geometry: np.ndarray, colour: np.ndarray) -> None:
            for first in range(0, filled[k], CHUNK_ROWS):
                needed, at = (
                    min(CHUNK_ROWS, filled[k] - first) * _ROW.itemsize,
                    (k * bucket_rows + first) * _ROW.itemsize,
                )
                data = read_at(file.fileno(), needed, at)
                if len(data) < needed:
                    raise OSError(f"a scratch file ends at {at + len(data)}")
                rows = data.view(_ROW)
                geometry[rows["place"]], colour[rows["place"]] = rows["geometry"], rows["colour"]

        yield load


def _write_buckets(ply: Rows, numbers: np.ndarray, file: int, report: Report, bucket_rows: int) -> list[int]:
    """Every row of `numbers` into its bucket's part of the file; returns the rows of each bucket."""
    place = np.full(ply.count, -1, np.int32)
    place[numbers] = np.arange(len(numbers), dtype=np.int32)
    filled = [0] * -(-len(numbers) // bucket_rows)
    what = f"sorting {ply.path.name} into pieces"
    for piece in counted(
        ply.numbered(CHUNK_ROWS), what, ply.count, "Gaussians", report, lambda piece: len(piece.numbers)
    ):
        places = place[piece.numbers]
        order = np.argsort(places, kind="stable")
        order = order[np.searchsorted(places[order], 0) :]
        places = places[order]
        rows = np.empty(len(order), _ROW)
        rows["geometry"], rows["colour"] = piece.geometry[order], piece.colour[order]
        rows["place"] = places % bucket_rows
        cuts = np.concatenate([[0], np.flatnonzero(np.diff(places // bucket_rows)) + 1, [len(order)]])
        for begin, end in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            if begin < end:
                k = int(places[begin]) // bucket_rows
                write_at(file, rows[begin:end].view(np.uint8).data, (k * bucket_rows + filled[k]) * _ROW.itemsize)
                filled[k] += end - begin
    return filled
