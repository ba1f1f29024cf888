"""Streamed SOG (lod-meta.json, version 1) out: a tree of leaves, each at several levels of detail, in SOG folders of one level.

Specification: developer.playcanvas.com, "The Streamed SOG Format". A level has a quarter of the rows of the one before, as a
surface needs at twice the distance; a leaf's rows are merged among themselves (`decimate`), so levels are made in a stream.

Memory: 32 bytes a row while the order is made, then 12; a file's rows, sample and palette, 400 MiB. On disk, for a while: 240 bytes
for each row of two levels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clm import __version__
from clm.errors import ClmError
from clm.files import atomic_folder
from clm.formats.decimate import decimated
from clm.formats.lod_tree import Node, extents, in_parts, tree_of
from clm.formats.options import Options
from clm.formats.rows import Chunk
from clm.formats.select import Selection
from clm.formats.sog_planes import Survey
from clm.formats.sog_write import META, encode_chunks, into_folder
from clm.formats.spool import empty_spool
from clm.kernels.sort import sorted_rows
from clm.progress import counted, pending, rows_of, unseen
from clm.store.order import space_keys_of

INDEX = "lod-meta.json"
FACTOR = 4  # rows of a level for one of the next
MOST_LEVELS = 12
FIXED_BYTES = 400 << 20
_COARSEST_ROWS = 500_000  # of the last level, at most, where the user does not say how many there are
_LEAF_ROWS = 1 << 15
_FILE_ROWS = 1 << 18
_SET = re.compile(r"lod-meta\.json|env|\d+_\d+")


def levels_of(count: int, asked: int | None) -> int:
    """How many levels a model of so many rows gets."""
    if asked is not None:
        if not 1 <= asked <= MOST_LEVELS:
            raise ClmError(f"--lod is {asked}.", f"Choose 1 to {MOST_LEVELS} levels.")
        return asked
    levels = 1
    while count > _COARSEST_ROWS:
        count, levels = -(-count // FACTOR), levels + 1
    return levels


def fewer(counts: list[int]) -> list[int]:
    """Rows of the next level of leaves with so many."""
    return [-(-count // FACTOR) for count in counts]


def write_lod(path: Path, rows: Selection, options: Options) -> int:
    """The folder of a path `FOLDER/lod-meta.json`; returns the rows of the finest level."""
    levels = levels_of(rows.count, options.lod)
    order, tree = _arranged(rows)
    leaves = list(tree.leaves())
    with atomic_folder(path.parent, _SET) as folder, ExitStack() as spools:
        writer = _Writer(folder, leaves, rows.antialiased, rows.sh_degree)
        counts = [leaf.last - leaf.first for leaf in leaves]
        chunks: Iterable[Chunk] = rows.part(order).chunks(f"exporting {path.parent.name}")
        for level in range(levels):
            after, spool = fewer(counts), None
            if level + 1 < levels:
                spool = spools.enter_context(empty_spool(sum(after), rows.rows, rows.sh_degree, rows.scratch))
            for k, part in enumerate(in_parts(chunks, counts)):
                writer.add(level, k, part)
                if spool is not None:
                    spool.add(*decimated(*part, after[k]))
            writer.finish_file()
            counts = after
            if spool is not None:
                name = f"exporting level {level + 1} of {path.parent.name}"
                chunks = counted(spool.pieces(_LEAF_ROWS), name, spool.count, "Gaussians", rows.report, rows_of)
        writer.write_index(tree)
    return rows.count


def _arranged(rows: Selection) -> tuple[np.ndarray, Node]:
    """Places [n] i32 of a selection's rows in the tree's order, and the tree."""
    entries = rows.entries()
    with pending(f"sorting {len(entries):,} Gaussians into leaves", rows.report):
        keys = space_keys_of(entries)
        del entries
        order = sorted_rows(keys.copy())
        return order, tree_of(keys[order], _LEAF_ROWS)


class _Writer:
    """Files of a streamed SOG, leaf by leaf and level by level."""

    def __init__(self, folder: Path, leaves: list[Node], antialiased: bool, sh_degree: int):
        self._folder, self._antialiased, self._sh_degree = folder, antialiased, sh_degree
        self._names: list[str] = []
        self._counts: list[int] = []
        self._runs: list[dict[str, dict[str, int]]] = [{} for _ in leaves]
        self._numbers = {leaf.first: k for k, leaf in enumerate(leaves)}
        self._bounds = np.array([[[np.inf] * 3, [-np.inf] * 3]] * len(leaves))
        self._parts: list[Chunk] = []
        self._held = self._of_level = 0

    def add(self, level: int, leaf: int, part: Chunk) -> None:
        """Rows of a leaf at a level; levels and leaves come in order."""
        if level == len(self._counts):
            self._counts.append(0)
            self._of_level = 0
        rows = len(part[0])
        if self._held + rows > _FILE_ROWS:
            self.finish_file()
        if not self._parts:
            self._names.append(f"{level}_{self._of_level}")
            self._of_level += 1
        low, high = extents(part[0])
        self._bounds[leaf] = np.minimum(self._bounds[leaf, 0], low), np.maximum(self._bounds[leaf, 1], high)
        self._runs[leaf][str(level)] = {"file": len(self._names) - 1, "offset": self._held, "count": rows}
        self._parts.append(part)
        self._held += rows
        self._counts[level] += rows

    def finish_file(self) -> None:
        """Write the rows that are held as a SOG."""
        if not self._parts:
            return
        folder = self._folder / self._names[-1]
        folder.mkdir()
        survey = Survey(self._held, self._sh_degree)
        for part in self._parts:
            survey.add(*part)
        put = partial(into_folder, folder)
        encode_chunks(self._parts, survey, put, antialiased=self._antialiased, report=unseen)
        self._parts, self._held = [], 0

    def write_index(self, tree: Node) -> None:
        index = {
            "version": 1,
            "asset": {"generator": f"clm {__version__}"},
            "count": sum(self._counts),
            "counts": self._counts,
            "lodLevels": len(self._counts),
            "filenames": [f"{name}/{META}" for name in self._names],
            "tree": tree.described(self._lods, iter(self._bounds)),
        }
        (self._folder / INDEX).write_text(json.dumps(index))

    def _lods(self, leaf: Node) -> dict[str, Any]:
        return {"lods": self._runs[self._numbers[leaf.first]]}
