"""One model as several files: tiles of a grid, files of a stated size, levels of detail; a manifest says what lies where.

`OUT.ply` becomes a folder `OUT` with `OUT_0000.ply`, ... and `manifest.json`, which appears whole or not at all. Files hold rows
that lie near each other along a Morton curve. Memory: 48 bytes a row while they are shared out, and what the format takes for a
file; 240 bytes a row on disk for a while.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from clm import __version__
from clm.errors import ClmError
from clm.files import atomic_folder, write_json
from clm.formats.decimate import decimated
from clm.formats.joined import JoinedRows, Run, joined, read_index
from clm.formats.lod_tree import in_parts
from clm.formats.lod_write import fewer, levels_of
from clm.formats.options import Filters
from clm.formats.rows import Rows
from clm.formats.select import SPACE, Selection, select
from clm.formats.spool import empty_spool
from clm.kernels.sort import sorted_rows
from clm.progress import pending
from clm.store.layout import CHUNK_ROWS
from clm.store.order import space_keys_of
from clm.units import shown

MANIFEST = "manifest.json"
_MOST_FILES = 10_000
_CURVE_BITS = 50  # of a key: above is the number of the tile, below the place along the curve
_CELL = np.array([1 << 40, 1 << 20, 1])  # a tile's number of its places along the axes
_MERGED_ROWS = 1 << 15  # rows that are merged among themselves, at most

Write = Callable[[Path, Selection], int]


@dataclass(frozen=True)
class Split:
    """What one model is divided by."""

    tile: float | None = None  # edge of a grid's cubes, world units; corners at multiples of it
    max_per_file: int | None = None  # rows
    lod: int | None = None  # levels of detail

    def __post_init__(self) -> None:
        if self.tile is not None and not 0 < self.tile < np.inf:
            raise ClmError(f"--tile is {shown(self.tile)}.", "Choose the edge of a tile, in the model's units.")
        if self.max_per_file is not None and self.max_per_file < 1:
            raise ClmError(f"--max-per-file is {self.max_per_file}.", "Choose how many Gaussians a file holds at most.")
        levels_of(0, self.lod)  # refuses what is no number of levels

    def __bool__(self) -> bool:
        return (self.tile, self.max_per_file, self.lod) != (None, None, None)


@dataclass(frozen=True)
class _Piece:
    """Rows of one file: places [n] i32 in the selection, along the curve; the tile that they lie in."""

    at: np.ndarray
    low: np.ndarray  # [3] f32, of centres
    high: np.ndarray
    cell: list[int] | None


def folder_of(out: Path, ending: str) -> Path:
    """Where the files of a split export go: OUT without its ending, or the folder of a file that makes a folder."""
    return out.with_name(out.name[: -len(ending)]) if ending.startswith(".") else out.parent


def write_split(out: Path, ending: str, order: str, rows: Selection, split: Split, write: Write) -> int:
    """Files of the format with this ending, which wants rows in `order`, from a selection in that order; returns the rows of the
    finest level."""
    folder, levels = folder_of(out, ending), levels_of(rows.count, split.lod or 1)
    pieces = _pieces(rows, split)
    if len(pieces) * levels > _MOST_FILES:
        flags = " or ".join(
            flag for flag, value in (("--tile", split.tile), ("--max-per-file", split.max_per_file)) if value
        )
        raise ClmError(
            f"{len(pieces) * levels:,} files would be written, and {_MOST_FILES:,} are the most.",
            f"Use a larger {flags}.",
        )
    name = folder.name
    ours = re.compile(rf"manifest\.json|{re.escape(name)}(_\d+)?(_lod\d+)?({re.escape(ending)})?")
    files: list[dict[str, Any]] = []
    with atomic_folder(folder, ours) as made, rows.on_disk() as on_disk:
        for number, piece in enumerate(pieces):
            stem = f"{name}_{number:04d}" if len(pieces) > 1 else name
            for level, selection in enumerate(_levels(rows, on_disk, piece, order, levels)):
                file = _file_name(stem if levels == 1 else f"{stem}_lod{level}", ending)
                (made / file).parent.mkdir(exist_ok=True)
                count = write(made / file, selection)
                files.append(_entry(file, level, count, selection, piece))
        counts = [sum(file["count"] for file in files if file["level"] == level) for level in range(levels)]
        manifest = {
            "version": 1,
            "asset": {"generator": f"clm {__version__}"},
            "format": ending,
            "count": counts[0],
            "counts": counts,
            "levels": levels,
            "tile": split.tile,
            "max_per_file": split.max_per_file,
            "files": files,
        }
        write_json(made / MANIFEST, manifest)
    return counts[0]


def _file_name(stem: str, ending: str) -> str:
    return stem + ending if ending.startswith(".") else f"{stem}/{ending}"


def _entry(file: str, level: int, count: int, selection: Selection, piece: _Piece) -> dict[str, Any]:
    low, high = (piece.low, piece.high) if level == 0 else (selection.low, selection.high)
    where = {} if piece.cell is None else {"tile": piece.cell}
    return {"file": file, "level": level, "count": count, **where, "min": low.tolist(), "max": high.tolist()}


def _levels(rows: Selection, on_disk: Rows, piece: _Piece, order: str, levels: int) -> Iterator[Selection]:
    """The selections of a piece's levels, each valid until the next is asked for."""
    along = rows.part(piece.at, on_disk)
    # Places rise in the order that the format wants.
    yield along if order == SPACE else rows.part(np.sort(piece.at), on_disk)
    left = dataclasses.replace(rows.filters, crop=None, min_opacity=0.0)  # both were applied
    chunks, counts = along.chunks("merging"), _equal_parts(len(piece.at), _MERGED_ROWS)
    with ExitStack() as spools:
        for _ in range(1, levels):
            after = fewer(counts)
            spool = spools.enter_context(empty_spool(sum(after), on_disk, rows.sh_degree, rows.scratch))
            for part, target in zip(in_parts(chunks, counts), after, strict=True):
                spool.add(*decimated(*part, target))
            yield _selected(spool, left, order, rows)
            chunks, counts = spool.pieces(_MERGED_ROWS), after


def _selected(spool: Rows, filters: Filters, order: str, rows: Selection) -> Selection:
    return select(
        spool, filters, order, sh_degree=rows.sh_degree, scratch=rows.scratch, bucket_rows=rows.bucket_rows,
        warn=rows.warn, report=rows.report,
    )  # fmt: skip


def _equal_parts(count: int, most: int) -> list[int]:
    parts = max(1, -(-count // most))
    return np.diff(np.linspace(0, count, parts + 1).astype(np.int64)).tolist()


def _pieces(rows: Selection, split: Split) -> list[_Piece]:
    """The rows of each file, tile by tile."""
    entries = rows.entries()
    with pending(f"sharing out {len(entries):,} Gaussians", rows.report):
        keys, cells = _keys(entries, split)
        order = sorted_rows(keys.copy())
        keys = keys[order]
        tiles = [0, *(np.flatnonzero(np.diff(keys >> np.uint64(_CURVE_BITS))) + 1).tolist(), len(keys)]
        pieces = []
        for first, last in pairwise(tiles):
            cell = None if cells is None else cells[int(keys[first] >> np.uint64(_CURVE_BITS))].tolist()
            for count in _equal_parts(last - first, split.max_per_file or last - first):
                at = order[first : first + count]
                means = entries[at, :3]
                pieces.append(_Piece(at, means.min(axis=0), means.max(axis=0), cell))
                first += count
    return pieces


def _keys(entries: np.ndarray, split: Split) -> tuple[np.ndarray, np.ndarray | None]:
    """Keys [n] u64 by tile, then along the curve, and the tiles [t, 3] i64 by their numbers (None: there is one)."""
    keys = (space_keys_of(entries) & np.uint64((1 << 60) - 1)) >> np.uint64(60 - _CURVE_BITS)  # without radius classes
    tile = split.tile
    if tile is None:
        return keys, None
    pieces = [slice(first, first + CHUNK_ROWS) for first in range(0, len(entries), CHUNK_ROWS)]

    def cells(piece: slice) -> np.ndarray:  # a chunk at a time: of all rows they would be 72 bytes of each
        return np.floor(entries[piece, :3].astype(np.float64) / tile)

    low = np.min([cells(piece).min(axis=0) for piece in pieces], axis=0)
    wide = np.max([cells(piece).max(axis=0) for piece in pieces], axis=0) - low + 1
    if wide.max() >= 1 << 20:
        raise ClmError(
            f"--tile {split.tile:g} divides the model into {wide.max():,.0f} tiles along one axis.",
            "Use a larger --tile.",
        )
    packed = np.concatenate([((cells(piece) - low) @ _CELL).astype(np.int64) for piece in pieces])
    found = np.unique(packed)
    if len(found) > _MOST_FILES:
        raise ClmError(
            f"--tile {split.tile:g} makes {len(found):,} tiles, and {_MOST_FILES:,} are the most.",
            "Use a larger --tile.",
        )
    for piece in pieces:
        keys[piece] |= np.searchsorted(found, packed[piece]).astype(np.uint64) << np.uint64(_CURVE_BITS)
    tiles = np.stack([found >> 40, found >> 20 & (1 << 20) - 1, found & (1 << 20) - 1], axis=1)
    return keys, tiles + low.astype(np.int64)


class SplitRows(JoinedRows):
    """The finest level of a split export."""

    kind = "split export"


def open_split(path: Path, open_: Callable[[Path], Rows]) -> JoinedRows:
    """The rows of `FOLDER/manifest.json`; open_: opens a file of any format."""
    index = read_index(path, 1, "manifest of a split export")
    try:
        entries = [
            (path.parent / entry["file"], int(entry["count"])) for entry in index["files"] if entry["level"] == 0
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ClmError(f"{path} is damaged: its list of files cannot be read ({error!r}).", "Copy it again.") from None
    runs = [Run(k, 0, count) for k, (_, count) in enumerate(entries)]
    return joined(SplitRows, path, [file for file, _ in entries], runs, open_)
