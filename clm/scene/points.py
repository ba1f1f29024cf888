"""COLMAP's points3D.bin and points3D.txt, read in a stream: places and colours, by ascending id.

Tens of millions of points, and tracks several times as large, are usual. Memory: 35 bytes for each point, 75 while points are
sorted that do not lie by id, and one piece of the file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clm.camera import MAX_VALUE
from clm.errors import ClmError
from clm.kernels.points import points_of_lines, points_of_records
from clm.kernels.sort import sorted_rows
from clm.progress import Report, tally
from clm.scene.observed import Sought

_PIECE = 8 << 20  # bytes of the file at a time
_RECORD = 51  # bytes of a point without its track
_FIX = "Copy the file again, or export the model from COLMAP again."


def read_points(path: Path, report: Report, sought: Sought | None = None) -> tuple[np.ndarray, np.ndarray, int]:
    """([P, 3] f64, [P, 3] u8, how many more were left out because they are not finite) of a points3D file, by ascending id; no
    point where there is no such file. sought: points whose colours it is told. ClmError names a file that is cut off or
    damaged, and where."""
    if not path.is_file():
        return np.empty((0, 3)), np.empty((0, 3), np.uint8), 0
    points = _Points(report)
    (_read_binary if path.suffix == ".bin" else _read_text)(path, points)
    return points.sorted(sought)


class _Points:
    """Points as they come."""

    def __init__(self, report: Report):
        self.count = self.dropped = 0
        self._report = report

    def expect(self, most: int) -> None:
        self._left = most
        self._ids = np.empty(most, np.uint64)  # memory that is not written costs nothing
        self._places, self._colours = np.empty((most, 3)), np.empty((most, 3), np.uint8)
        self._add = tally("reading points", most, "points", self._report)

    def room(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the next points go."""
        return self._ids[self.count :], self._places[self.count :], self._colours[self.count :]

    def take(self, new: int) -> None:
        """So many points are there; those that are finite stay."""
        room = self.room()
        good = (np.abs(room[1][:new]) <= MAX_VALUE).all(axis=1)  # a NaN is not
        kept = int(good.sum())
        if kept < new:
            for array in room:
                array[:kept] = array[:new][good]
        self.count += kept
        self.dropped += new - kept
        self._left -= new
        self._add(new)

    def sorted(self, sought: Sought | None) -> tuple[np.ndarray, np.ndarray, int]:
        ids, places, colours = (array[: self.count] for array in (self._ids, self._places, self._colours))
        del self._ids, self._places, self._colours
        self._add(self._left)  # lines of text that are no points
        shuffled = bool((ids[1:] < ids[:-1]).any())
        order = sorted_rows(ids if sought is None else ids.copy()) if shuffled else None
        if sought is not None:
            sought.look_up(ids, order, colours)
        del ids
        if order is not None:
            places, colours = places[order], colours[order]
        return places, colours, self.dropped


def _read_binary(path: Path, points: _Points) -> None:
    size = path.stat().st_size
    with open(path, "rb", buffering=0) as file:
        count = int.from_bytes(file.read(8), "little")
        if size < 8:
            raise ClmError(f"{path} is cut off: it holds {size} bytes, less than a count.", _FIX)
        points.expect(min(count, (size - 8) // _RECORD))
        at, done = 8, 0
        while done < count:
            file.seek(at)
            new, used = points_of_records(file.read(_PIECE), *(room[: count - done] for room in points.room()))
            if new == 0:
                break
            points.take(new)
            at, done = at + used, done + new
        if done < count or at > size:
            inside = min(done + 1, count) if at <= size else done
            raise ClmError(f"{path} is cut off or damaged: it ends inside point {inside} of {count}.", _FIX)


def _read_text(path: Path, points: _Points) -> None:
    with open(path, "rb", buffering=0) as file:
        lines = 1
        while piece := file.read(_PIECE):
            lines += piece.count(b"\n")
        points.expect(lines)
        file.seek(0)
        rest, done = b"", 0
        while piece := file.read(_PIECE):
            whole, end, rest = (rest + piece).rpartition(b"\n")
            if end:
                done += _take_lines(path, points, whole + end, done)
        _take_lines(path, points, rest + b"\n", done)


def _take_lines(path: Path, points: _Points, text: bytes, before: int) -> int:
    new, lines = points_of_lines(text, *points.room())
    if new < 0:
        line = text.split(b"\n", lines + 1)[lines][:60].decode("utf-8", "replace")
        raise ClmError(f"{path} is damaged: line {before + lines + 1} is no point (`{line}`).", _FIX)
    points.take(new)
    return lines
