"""Rows that lie in several files, read as those of one: the levels of a streamed SOG, the files of a split export."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clm.errors import ClmError
from clm.formats.rows import Chunk, Rows

_OPEN_FILES = 8  # that are kept open, decoded if need be


@dataclass(frozen=True)
class Run:
    """Consecutive rows of one file."""

    file: int
    offset: int
    count: int


@dataclass
class JoinedRows(Rows):
    """The rows of runs, in order. Memory: the files that were read last, 20 bytes a row of each where they are SOGs."""

    kind = "files"
    files: list[Path] = field(kw_only=True, repr=False)
    runs: list[Run] = field(kw_only=True, repr=False)
    open: Callable[[Path], Rows] = field(kw_only=True, repr=False)
    _held: OrderedDict[int, Rows] = field(default_factory=OrderedDict, kw_only=True, repr=False)

    def pieces(self, size: int, first: int = 0) -> Iterator[Chunk]:
        begins = np.concatenate([[0], np.cumsum([run.count for run in self.runs], dtype=np.int64)])
        for start in range(first, self.count, size):
            stop = min(start + size, self.count)
            found = []
            for k in range(int(np.searchsorted(begins, start, "right")) - 1, int(np.searchsorted(begins, stop))):
                low, high = max(start, int(begins[k])), min(stop, int(begins[k + 1]))
                if low < high:
                    at = self.runs[k].offset + low - int(begins[k])
                    found.append(self._rows(self.runs[k].file, at, high - low))
            geometry, colour = zip(*found, strict=True)
            yield np.concatenate(geometry), np.concatenate(colour)

    def _rows(self, file: int, first: int, count: int) -> Chunk:
        rows = self._held.pop(file, None) or self.open(self.files[file])
        self._held[file] = rows
        if len(self._held) > _OPEN_FILES:
            self._held.popitem(last=False)
        if first + count > rows.count:
            raise ClmError(
                f"{self.path} is damaged: {rows.path} has {rows.count:,} Gaussians, fewer than it names.",
                "Copy it again.",
            )
        return next(rows.pieces(count, first))

    def facts(self) -> dict[str, Any]:
        size = self.path.stat().st_size + sum(_size(file) for file in self.files)
        return super().facts() | {"bytes": size, "files": len(self.files)}


def _size(file: Path) -> int:
    """Bytes of a file of a set, or of all files in the folder of a meta.json."""
    files = file.parent.iterdir() if file.name == "meta.json" else [file]
    return sum(each.stat().st_size for each in files)


def joined(
    kind: type[JoinedRows], path: Path, files: list[Path], runs: list[Run], open_: Callable[[Path], Rows]
) -> JoinedRows:
    """Rows of `runs` in `files`, as of one file `path`; ClmError where a file is missing or damaged."""
    opened = [open_(files[file]) for file in sorted({run.file for run in runs})]
    degree = max((rows.sh_degree for rows in opened), default=0)
    antialiased = any(rows.antialiased for rows in opened)
    count = sum(run.count for run in runs)
    return kind(path, count, degree, antialiased, files=files, runs=_adjacent(runs), open=open_)


def _adjacent(runs: list[Run]) -> list[Run]:
    """Runs that follow one another in their file, as one."""
    out: list[Run] = []
    for run in runs:
        if out and out[-1].file == run.file and out[-1].offset + out[-1].count == run.offset:
            out[-1] = Run(run.file, out[-1].offset, out[-1].count + run.count)
        elif run.count:
            out.append(run)
    return out


def read_index(path: Path, version: int, kind: str) -> dict[str, Any]:
    """The JSON object of an index file; ClmError where it is none, or of a later version."""
    try:
        index = json.loads(path.read_text())
    except FileNotFoundError:
        raise ClmError(f"No such file: {path}.") from None
    except (OSError, ValueError) as error:
        raise ClmError(f"{path} is no {kind}: {error}.", "Copy it again.") from None
    if not isinstance(index, dict):
        raise ClmError(f"{path} is no {kind}: it holds no JSON object.", "Copy it again.")
    found = index.get("version", version)
    if not isinstance(found, int) or found > version:
        raise ClmError(f"{path} is a {kind} of version {found!r}; version {version} is read.", "Install a newer clm.")
    return index
