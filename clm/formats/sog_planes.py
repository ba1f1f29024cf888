"""Rows to the 8-bit images of a SOG (version 2) and back; axes and frame are those of the rows.

Specification: developer.playcanvas.com, "The SOG Format". Centres have 16 bits per axis of sign(x) ln(1 + |x|) within the file's
box; rotations the three smaller components in 8 bits each, and which one is left out; log scales and sh0 one of 256 values each;
opacities 8 bits, linear; the rest of the spherical harmonics one palette entry a row. What is lost: tests/formats/test_sog.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clm.formats.codebook import nearest, scalar_codebook
from clm.formats.palette import SAMPLE_ROWS, Palette, fit_palette, palette_size
from clm.formats.quantise import ROTATION_SCALE, logits_of, opacity_bytes, unit_quats
from clm.store.layout import COLOUR_COLUMNS, GEOMETRY_COLUMNS, LOG_SCALES, LOGIT_OPACITIES, MEANS, QUATS, SH0, SHN

PALETTE_COLUMNS = 64  # entries in a row of the image of centroids
CHANNELS = {"means_l": 3, "means_u": 3, "quats": 4, "scales": 3, "sh0": 4}
_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])  # components that are kept, by the one that is not
_FIRST_MODE = 252


def coefficients(sh_degree: int) -> int:
    """Coefficients above degree 0, per channel: 0, 3, 8 or 15."""
    return (sh_degree + 1) ** 2 - 1


def log_places(means: np.ndarray) -> np.ndarray:
    """sign(x) ln(1 + |x|) f64 of places."""
    means = means.astype(np.float64)
    return np.copysign(np.log1p(np.abs(means)), means)


@dataclass(frozen=True)
class Books:
    """What the numbers of a file are rounded to. low, high: `log_places` of the file's box [3] f64."""

    low: np.ndarray
    high: np.ndarray
    scales: np.ndarray
    sh0: np.ndarray
    palette: Palette | None


class Survey:
    """What has to be known of a file's rows before the first one is encoded, gathered by chunk. Memory: a sample of at most
    `SAMPLE_ROWS` rows, every k-th."""

    def __init__(self, count: int, sh_degree: int):
        self.count, self.sh_degree = count, sh_degree
        self._step = -(-count // SAMPLE_ROWS)
        self._seen, self._has_rest = 0, False
        self._low, self._high = np.full(9, np.inf), np.full(9, -np.inf)
        self._sampled: list[np.ndarray] = []

    def add(self, geometry: np.ndarray, colour: np.ndarray) -> None:
        measured = np.concatenate([geometry[:, MEANS], geometry[:, LOG_SCALES], colour[:, SH0]], axis=1)
        if len(measured):
            self._low = np.minimum(self._low, measured.min(axis=0))
            self._high = np.maximum(self._high, measured.max(axis=0))
        every = slice(-self._seen % self._step, None, self._step)
        rest = colour[:, SHN][:, : 3 * coefficients(self.sh_degree)]
        self._has_rest = self._has_rest or bool(rest.any())
        self._sampled.append(np.concatenate([measured[every, 3:], rest[every]], axis=1))
        self._seen += len(geometry)

    def books(self) -> Books:
        sample, self._sampled = np.concatenate(self._sampled), []
        scales = scalar_codebook(sample[:, :3], self._low[3:6].min(), self._high[3:6].max())
        sh0 = scalar_codebook(sample[:, 3:6], self._low[6:].min(), self._high[6:].max())
        rest = np.ascontiguousarray(sample[:, 6:])
        palette = fit_palette(rest, palette_size(self.count)) if self._has_rest else None
        return Books(log_places(self._low[:3]), log_places(self._high[:3]), scales, sh0, palette)


class Planes:
    """The images of a file with room for `count` rows, filled from the first pixel on: 17 bytes a row, 19 with a palette."""

    def __init__(self, count: int, books: Books):
        self.width = 4 * -(-int(np.ceil(np.sqrt(count))) // 4)
        self.height = 4 * -(-count // (4 * self.width))
        self._books, self._filled = books, 0
        pixels = self.width * self.height
        self._flat = {name: np.zeros((pixels, channels), np.uint8) for name, channels in CHANNELS.items()}
        if books.palette is not None:
            self._flat["shN_labels"] = np.zeros((pixels, 2), np.uint8)

    def add(self, geometry: np.ndarray, colour: np.ndarray) -> None:
        """Rows with geometry [k, 12] and colour [k, 48] f32."""
        books, flat = self._books, self._flat
        here = slice(self._filled, self._filled + len(geometry))
        self._filled = here.stop
        span = np.where(books.high > books.low, books.high - books.low, 1.0)
        places = np.rint((log_places(geometry[:, MEANS]) - books.low) / span * 65535).clip(0, 65535).astype(np.uint16)
        flat["means_l"][here], flat["means_u"][here] = places & 255, places >> 8
        flat["quats"][here] = _packed_quats(unit_quats(geometry))
        flat["scales"][here] = nearest(books.scales, geometry[:, LOG_SCALES])
        flat["sh0"][here, :3] = nearest(books.sh0, colour[:, SH0])
        flat["sh0"][here, 3] = opacity_bytes(geometry[:, LOGIT_OPACITIES])
        if books.palette is not None:
            rest = np.ascontiguousarray(colour[:, SHN][:, : books.palette.entries.shape[1]])
            labels = books.palette.assign(rest)
            flat["shN_labels"][here, 0], flat["shN_labels"][here, 1] = labels & 255, labels >> 8

    def image(self, name: str) -> np.ndarray:
        """[height, width, 3 or 4] u8; its plane is given up."""
        plane = self._flat.pop(name)
        if plane.shape[1] == 2:
            plane = np.concatenate([plane, np.zeros((len(plane), 1), np.uint8)], axis=1)
        return plane.reshape(self.height, self.width, plane.shape[1])


def centroid_image(palette: Palette) -> tuple[np.ndarray, np.ndarray]:
    """Image [ceil(k / 64), 64 x coefficients, 3] u8 of the palette's entries, and the codebook [256] of its numbers."""
    entries = palette.entries
    book = scalar_codebook(entries, float(entries.min()), float(entries.max()))
    rows, each = -(-len(entries) // PALETTE_COLUMNS), entries.shape[1] // 3
    image = np.zeros((rows * PALETTE_COLUMNS, each, 3), np.uint8)
    image[: len(entries)] = nearest(book, entries).reshape(len(entries), each, 3)
    return image.reshape(rows, PALETTE_COLUMNS * each, 3), book


def _packed_quats(unit: np.ndarray) -> np.ndarray:
    """[k, 4] u8 of unit quaternions [k, 4] f64 wxyz."""
    largest = np.abs(unit).argmax(axis=1)
    signs = np.where(np.take_along_axis(unit, largest[:, None], axis=1) < 0, -1.0, 1.0)
    kept = np.take_along_axis(unit, _OTHERS[largest], axis=1) * signs
    packed = np.empty((len(unit), 4), np.uint8)
    packed[:, :3] = np.rint((kept * ROTATION_SCALE + 0.5) * 255).clip(0, 255)
    packed[:, 3] = _FIRST_MODE + largest
    return packed


def _unpacked_quats(packed: np.ndarray) -> np.ndarray:
    """[k, 4] f32 wxyz of [k, 4] u8; zero where the mode is none of the four."""
    kept = (packed[:, :3] / 255 - 0.5) * np.sqrt(2)
    left_out = np.sqrt(np.maximum(0, 1 - (kept * kept).sum(axis=1)))
    modes = packed[:, 3].astype(np.int64) - _FIRST_MODE
    valid = modes >= 0
    quats = np.zeros((len(packed), 4))
    rows = np.arange(len(packed))
    quats[rows[:, None], _OTHERS[modes * valid]] = kept
    quats[rows, modes * valid] = left_out
    return (quats * valid[:, None]).astype(np.float32)


@dataclass(frozen=True)
class Decoder:
    """Rows of planes [n, channels] u8. entries [k, 3 x coefficients] f32: the palette, with labels in `shN_labels`."""

    planes: dict[str, np.ndarray]
    low: np.ndarray
    high: np.ndarray
    scales: np.ndarray
    sh0: np.ndarray
    entries: np.ndarray | None

    def rows(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Geometry [k, 12] and colour [k, 48] f32 of rows first..last-1; what has no meaning becomes a zero quaternion or NaN."""
        planes = {name: plane[first:last] for name, plane in self.planes.items()}
        geometry = np.zeros((len(planes["quats"]), GEOMETRY_COLUMNS), np.float32)
        colour = np.zeros((len(geometry), COLOUR_COLUMNS), np.float32)
        places = planes["means_u"][:, :3] * 256.0 + planes["means_l"][:, :3]
        places = self.low + (self.high - self.low) * (places / 65535)
        geometry[:, MEANS] = np.copysign(np.expm1(np.abs(places)), places)
        geometry[:, QUATS] = _unpacked_quats(planes["quats"])
        geometry[:, LOG_SCALES] = self.scales[planes["scales"][:, :3]]
        geometry[:, LOGIT_OPACITIES] = logits_of(planes["sh0"][:, 3])
        colour[:, SH0] = self.sh0[planes["sh0"][:, :3]]
        if self.entries is not None:
            labels = planes["shN_labels"][:, 0].astype(np.int64) + 256 * planes["shN_labels"][:, 1].astype(np.int64)
            inside = labels < len(self.entries)
            values = np.where(inside[:, None], self.entries[labels * inside], np.nan)
            colour[:, SHN.start : SHN.start + values.shape[1]] = values
        return geometry, colour
