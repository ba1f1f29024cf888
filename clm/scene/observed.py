"""What some images of a model saw of its points: where in the image, and the point's colour, which is the mean over all images
that saw it. That shows how much brighter or redder an image is than the others (`clm.scene.brightness`).

Some images, because their photos will have to be decoded: at most `IMAGES`, evenly by name, and `POINTS` points of each. All
other observations, which may be gigabytes, are passed over. Evidence, not input: what cannot be read is left out.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clm.scene.binary import after_image

IMAGES, POINTS = 128, 512
_LOOKED_AT = 16 * POINTS  # observations of an image, of which most are of no point
_LONGEST_TEXT = 256 << 20  # bytes of an images.txt that is read a second time
_RECORD = np.dtype([("place", "<f8", 2), ("point", "<u8")])
_NO_POINT = 2**64 - 1


@dataclass(frozen=True, eq=False)
class Observed:
    """One image's."""

    name: str
    places: np.ndarray = field(repr=False)  # [n, 2] f32, fractions of the image's width and height
    colours: np.ndarray = field(repr=False)  # [n, 3] u8, of the points


@dataclass(frozen=True, eq=False)
class Sought:
    """Points whose colours are wanted while a file of points is read."""

    ids: np.ndarray  # [n] u64, ascending
    colours: np.ndarray  # [n, 3] u8, filled in
    found: np.ndarray  # [n] bool, filled in

    @staticmethod
    def of(ids: np.ndarray) -> Sought:
        ids = np.unique(ids)
        return Sought(ids, np.zeros((len(ids), 3), np.uint8), np.zeros(len(ids), bool))

    def look_up(self, ids: np.ndarray, order: np.ndarray | None, colours: np.ndarray) -> None:
        """Points as they were read: ids [P] u64 ascending, or in `order`; colours [P, 3]."""
        if len(ids) == 0:
            return
        low, high = np.zeros(len(self.ids), np.int64), np.full(len(self.ids), len(ids), np.int64)
        while (low < high).any():  # bisection: an order of 64-bit integers would be as long as the ids
            middle = np.minimum((low + high) // 2, len(ids) - 1)
            smaller = (ids[_through(order, middle)] < self.ids) & (low < high)
            low, high = np.where(smaller, middle + 1, low), np.where(smaller | (low >= high), high, middle)
        at = _through(order, np.minimum(low, len(ids) - 1))
        self.found[:] = ids[at] == self.ids
        self.colours[:] = colours[at]


def _through(order: np.ndarray | None, at: np.ndarray) -> np.ndarray:
    return at if order is None else order[at]


@dataclass(frozen=True, eq=False)
class Observations:
    """As they are in the file."""

    name: str
    places: np.ndarray  # [n, 2] f32, fractions
    points: np.ndarray  # [n] u64, ids

    def observed(self, sought: Sought) -> Observed:
        at = np.searchsorted(sought.ids, self.points)
        known = sought.found[at]
        return Observed(self.name, self.places[known], sought.colours[at[known]])


def sampled_observations(path: Path, images: Mapping[int, tuple[str, int, int]]) -> list[Observations]:
    """Of images.bin or images.txt; images: name, width and height (px) by image id, in order of names."""
    ids = list(images)
    wanted = {ids[k] for k in np.unique(np.linspace(0, len(ids) - 1, min(IMAGES, len(ids))).astype(int))}
    found = (_of_binary if path.suffix == ".bin" else _of_text)(path, wanted)
    return [_observations(*images[k], found[k]) for k in ids if k in found and len(found[k])]


def sought_points(observations: Sequence[Observations]) -> Sought:
    return Sought.of(np.concatenate([np.zeros(0, np.uint64), *(o.points for o in observations)]))


def _observations(name: str, width: int, height: int, records: np.ndarray) -> Observations:
    some = records[np.unique(np.linspace(0, len(records) - 1, min(POINTS, len(records))).astype(int))]
    return Observations(name, (some["place"] / (width, height)).astype(np.float32), some["point"].astype(np.uint64))


def _of_binary(path: Path, wanted: set[int]) -> dict[int, np.ndarray]:
    """Records of points by image id; the file is whole."""
    found = {}
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = 8
        for _ in range(struct.unpack_from("<Q", data, 0)[0]):
            number, end = struct.unpack_from("<I", data, at)[0], after_image(data, at)
            if number in wanted:
                first = data.find(b"\0", at + 64) + 9
                records = np.frombuffer(data, _RECORD, (end - first) // _RECORD.itemsize, first)
                found[number] = _with_points(records[:: max(1, len(records) // _LOOKED_AT)].copy())
                del records  # it holds the map open
            at = end
    return found


def _of_text(path: Path, wanted: set[int]) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    if path.stat().st_size > _LONGEST_TEXT:
        return found
    with open(path, "rb") as file:
        for line in file:
            if not line.strip() or line.startswith(b"#"):
                continue
            number, observations = line.split(None, 1)[0], file.readline()
            if not number.isdigit() or int(number) not in wanted:
                continue
            try:
                values = np.array(observations.split(), np.float64).reshape(-1, 3)
            except ValueError:
                continue
            values = values[values[:, 2] >= 0]
            records = np.zeros(len(values), _RECORD)
            records["place"], records["point"] = values[:, :2], values[:, 2].astype(np.uint64)
            found[int(number)] = _with_points(records)
    return found


def _with_points(records: np.ndarray) -> np.ndarray:
    return records[records["point"] != _NO_POINT]
