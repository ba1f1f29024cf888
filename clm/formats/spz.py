"""`.spz` (Niantic), version 3 out, 2 and 3 in: one gzip stream of columns, about 20 bytes a row and less for coefficients.

Columns: centres as 24-bit fixed point, opacities u8, colours u8, log-scales u8 (sixteenths from -10), rotations (the three lesser
components, 9 bits and a sign each), coefficients u8 over -1..1, of which fewer bits may differ from zero. Axes are the PLY's.

A stream cannot be written at several places: columns wait in a scratch file (up to 64 bytes a row) until they are compressed.
It is read by one decompressor for each column. Memory: a chunk.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from clm.errors import ClmError
from clm.files import atomic_write
from clm.formats.columns import ColumnWriter, column_starts, read_at
from clm.formats.options import Options
from clm.formats.quantise import ROTATION_SCALE, Clipped, logits_of, opacity_bytes, turn, unit_quats
from clm.formats.rows import Chunk, Rows
from clm.formats.select import Selection
from clm.formats.spool import scratch_file
from clm.progress import counted
from clm.store.layout import (
    COLOUR_COLUMNS,
    GEOMETRY_COLUMNS,
    LOG_SCALES,
    LOGIT_OPACITIES,
    MEANS,
    QUATS,
    SH0,
    SHN,
)
from clm.units import shown

_HEADER = struct.Struct("<IIIBBBB")  # magic, version, rows, SH degree, fractional bits, flags, reserved
_MAGIC, _VERSION = 0x5053474E, 3
_FRACTIONAL_BITS = 12
_FARTHEST = float(1 << 23 - _FRACTIONAL_BITS)  # 2048 units
_ANTIALIASED, _EXTENDED = 1, 2  # flags; extensions lie behind the columns
_COLOUR_SCALE = 0.15  # of coefficients of degree 0, so that colours beyond 0..1 have a place
# Of coefficients of degree 1, and of the others. One more each than other writers take: where colours change with the view
# their 5 and 4 cost 8 dB and save a fifth of the file (docs/log.md).
_DEFAULT_BITS = (6, 5)
_ROTATION_MOST = (1 << 9) - 1
_BLOCK = 1 << 20  # bytes that are compressed or read at a time


def _widths(sh_degree: int, version: int) -> list[int]:
    """Bytes a row of each column: centres, opacities, colours, log-scales, rotations, coefficients."""
    return [9, 1, 3, 3, 4 if version >= 3 else 3, 3 * ((sh_degree + 1) ** 2 - 1)]


# ---- out ----


def sh_bits(text: str | None) -> tuple[int, int]:
    """Bits of coefficients of degree 1 and of the others: `8` or `5,4`."""
    if text is None:
        return _DEFAULT_BITS
    words = text.split(",")
    if len(words) > 2 or not all(word.strip().isdecimal() and 1 <= int(word) <= 8 for word in words):
        raise ClmError(
            f"--sh-bits is `{shown(text)}`.", "Write 8, or 5,4 (the first degree, the others), from 1 to 8 each."
        )
    return int(words[0]), int(words[-1])


def write_spz(path: Path, selection: Selection, options: Options) -> int:
    """Write the rows, which compress best in order along a curve; returns their number. ClmError where a centre has no place."""
    bits, count, degree = sh_bits(options.sh_bits), selection.count, selection.sh_degree
    if count and (selection.low.min() < -_FARTHEST or selection.high.max() * (1 << _FRACTIONAL_BITS) > (1 << 23) - 1):
        low, high = (", ".join(f"{value:.6g}" for value in corner) for corner in (selection.low, selection.high))
        raise ClmError(
            f".spz holds centres from -{_FARTHEST:g} to {_FARTHEST:g}, and these reach from ({low}) to ({high}).",
            "Cut them with --crop, or write another format.",
        )
    widths, clipped = _widths(degree, _VERSION), Clipped(".spz")
    needed = count * sum(widths)
    with (
        atomic_write(path, needed=needed) as file,
        scratch_file(selection.scratch, needed, f"Writing {path.name}") as scratch,
    ):
        columns = ColumnWriter(scratch, 0, widths, count)
        for geometry, colour in selection.chunks(f"exporting {path.name}"):
            columns.write(_encoded(geometry, colour, degree, bits, clipped))
        columns.finish()
        flags = _ANTIALIASED if selection.antialiased else 0
        header = _HEADER.pack(_MAGIC, _VERSION, count, degree, _FRACTIONAL_BITS, flags, 0)
        gzip = zlib.compressobj(wbits=31)
        file.write(gzip.compress(header))
        blocks = (read_at(scratch.fileno(), min(_BLOCK, needed - at), at) for at in range(0, needed, _BLOCK))
        for block in counted(blocks, f"compressing {path.name}", -(-needed // _BLOCK), "MiB", selection.report):
            file.write(gzip.compress(block.data))
        file.write(gzip.flush())
    clipped.say(selection.warn)
    return count


def _encoded(
    geometry: np.ndarray, colour: np.ndarray, degree: int, bits: tuple[int, int], clipped: Clipped
) -> list[np.ndarray]:
    fixed = np.rint(geometry[:, MEANS].astype(np.float64) * (1 << _FRACTIONAL_BITS)).astype("<i4")
    centres = np.ascontiguousarray(fixed).view(np.uint8).reshape(-1, 3, 4)[:, :, :3]
    tint = colour[:, SH0].astype(np.float64) * (_COLOUR_SCALE * 255) + 127.5
    scales = (geometry[:, LOG_SCALES].astype(np.float64) + 10) * 16
    scales = np.maximum(clipped(scales, -0.5, 1e9, "log-scales below -10"), 0)
    return [
        np.ascontiguousarray(centres),
        opacity_bytes(geometry[:, LOGIT_OPACITIES]),
        _nearest(clipped(tint, -0.5, 255.5, "colours beyond what 8 bits hold")),
        _nearest(clipped(scales, 0, 255.5, "log-scales above 5.9")),
        _packed_rotations(geometry),
        _sh_bytes(colour, degree, bits, clipped),
    ]


def _nearest(values: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


def _packed_rotations(geometry: np.ndarray) -> np.ndarray:
    """Which component of xyzw is the largest (2 bits), then the others in that order: sign and 9 bits of magnitude [k] u32."""
    quats = np.roll(unit_quats(geometry), -1, axis=1)
    row, largest = np.arange(len(quats)), np.abs(quats).argmax(axis=1)
    quats = quats * np.where(quats[row, largest] < 0, -1.0, 1.0)[:, None]
    others = quats[np.arange(4)[None] != largest[:, None]].reshape(-1, 3)
    magnitude = np.minimum(np.floor(np.abs(others) / ROTATION_SCALE * _ROTATION_MOST + 0.5), _ROTATION_MOST)
    fields = magnitude.astype(np.uint32) | ((others < 0).astype(np.uint32) << np.uint32(9))
    packed = largest.astype(np.uint32)
    for column in range(3):
        packed = (packed << np.uint32(10)) | fields[:, column]
    return packed.astype("<u4")


def _sh_bytes(colour: np.ndarray, degree: int, bits: tuple[int, int], clipped: Clipped) -> np.ndarray:
    """Coefficients [k, 3 * coefficients] u8, of each the three channels; rounded to so many bits that zero stays zero."""
    coefficients = (degree + 1) ** 2 - 1
    values = colour[:, SHN][:, : 3 * coefficients].astype(np.float64) * 128
    steps = np.repeat([2.0 ** (8 - bits[0])] * 3 + [2.0 ** (8 - bits[1])] * 12, 3)[: 3 * coefficients]
    values = clipped(values, -128.5, 128.0, "coefficients beyond -1 and 1")
    return np.clip(128 + steps * np.floor(values / steps + 0.5), 0, 255).astype(np.uint8)


# ---- in ----


@dataclass
class SpzRows(Rows):
    """An SPZ file, opened. `axes`: what it is in; `rub` (older writers) is turned by 180 degrees about x while it is read."""

    kind = "SPZ"

    version: int = field(kw_only=True)
    fractional_bits: int = field(kw_only=True)
    axes: str = field(default="rdf", kw_only=True)

    @property
    def seekable(self) -> bool:
        return False

    def facts(self) -> dict:
        return super().facts() | {"format": f"SPZ version {self.version}"}

    def pieces(self, size: int, first: int = 0) -> Iterator[Chunk]:
        widths = _widths(self.sh_degree, self.version)
        starts = column_starts(_HEADER.size, widths, self.count)
        with ExitStack() as opened:
            cursors = [
                _Cursor(self.path, opened.enter_context(open(self.path, "rb")), start + first * width)
                for start, width in zip(starts, widths, strict=True)
            ]
            for start in range(first, self.count, size):
                rows = min(size, self.count - start)
                columns = [
                    np.frombuffer(cursor.read(rows * width), np.uint8).reshape(rows, width)
                    for cursor, width in zip(cursors, widths, strict=True)
                ]
                geometry, colour = self._decoded(columns)
                if self.axes == "rub":
                    turn(geometry, colour, "x")
                yield geometry, colour
            cursors[-1].finish()

    def _decoded(self, columns: list[np.ndarray]) -> Chunk:
        centres, opacities, tint, scales, rotations, shN = columns
        geometry = np.zeros((len(centres), GEOMETRY_COLUMNS), np.float32)
        colour = np.zeros((len(centres), COLOUR_COLUMNS), np.float32)
        fixed = np.zeros((len(centres), 3, 4), np.uint8)
        fixed[:, :, 1:] = centres.reshape(-1, 3, 3)  # the sign in the highest byte
        geometry[:, MEANS] = fixed.view("<i4")[:, :, 0] / float(1 << 8 + self.fractional_bits)
        geometry[:, LOGIT_OPACITIES] = logits_of(opacities[:, 0])
        geometry[:, LOG_SCALES] = scales / 16.0 - 10
        geometry[:, QUATS] = _unpacked_rotations(rotations) if self.version >= 3 else _three_bytes(rotations)
        colour[:, SH0] = (tint / 255.0 - 0.5) / _COLOUR_SCALE
        colour[:, SHN][:, : shN.shape[1]] = (shN - 128.0) / 128
        return geometry, colour


def _unpacked_rotations(packed: np.ndarray) -> np.ndarray:
    """Quaternions wxyz [k, 4] f64 of bytes [k, 4] u8, version 3."""
    words = np.ascontiguousarray(packed).view("<u4")[:, 0]
    largest = (words >> np.uint32(30)).astype(np.int64)
    fields = np.stack([(words >> np.uint32(shift)) & np.uint32(1023) for shift in (20, 10, 0)], axis=1)
    others = (fields & np.uint32(_ROTATION_MOST)) * (ROTATION_SCALE / _ROTATION_MOST) * np.where(fields >> 9, -1.0, 1.0)
    quats = np.empty((len(words), 4))
    quats[np.arange(4)[None] != largest[:, None]] = others.reshape(-1)
    quats[np.arange(len(words)), largest] = np.sqrt(np.maximum(0.0, 1.0 - (others * others).sum(axis=1)))
    return np.roll(quats, 1, axis=1)


def _three_bytes(packed: np.ndarray) -> np.ndarray:
    """Quaternions wxyz [k, 4] f64 of bytes [k, 3] u8 of x, y and z, version 2: w is what is left."""
    xyz = packed / 127.5 - 1
    w = np.sqrt(np.maximum(0.0, 1.0 - (xyz * xyz).sum(axis=1, keepdims=True)))
    return np.concatenate([w, xyz], axis=1)


class _Cursor:
    """A place in the decompressed stream that moves forward."""

    def __init__(self, path: Path, file: IO[bytes], at: int):
        self._path, self._file, self._gzip, self._waiting = path, file, zlib.decompressobj(wbits=31), b""
        while at:
            at -= len(self.read(min(at, _BLOCK)))

    def read(self, count: int) -> bytes:
        """The next `count` bytes; ClmError where the stream ends or is damaged before."""
        parts: list[bytes] = []
        while count:
            part = self._next(count)
            if not part:
                raise self._damaged()
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def finish(self) -> None:
        """Read to the end of the stream, where its checksum is."""
        while self._next(_BLOCK):
            pass
        if not self._gzip.eof:
            raise self._damaged()

    def _next(self, most: int) -> bytes:
        try:
            while not self._gzip.eof:
                if not self._waiting:
                    self._waiting = self._file.read(_BLOCK >> 4)
                    if not self._waiting:
                        break
                part = self._gzip.decompress(self._waiting, most)
                self._waiting = self._gzip.unconsumed_tail
                if part:
                    return part
        except zlib.error:
            raise self._damaged() from None
        return b""

    def _damaged(self) -> ClmError:
        return ClmError(f"{self._path} is damaged or cut short.", "Copy it again.")


def open_spz(path: Path) -> SpzRows:
    """ClmError where it is no SPZ of version 2 or 3, or its end is missing."""
    with open(path, "rb") as file:
        start = file.read(4)
        if start == struct.pack("<I", _MAGIC):
            raise ClmError(f"{path} is an SPZ of version 4 or later, which is not read.", "Write it as version 3.")
        if start[:2] != b"\x1f\x8b":
            raise ClmError(f"{path} is no SPZ file: it is not compressed by gzip.")
        file.seek(0)
        try:
            header = _Cursor(path, file, 0).read(_HEADER.size)
        except ClmError:
            raise ClmError(f"{path} is no SPZ file, or damaged: its header cannot be read.", "Copy it again.") from None
        magic, version, count, sh_degree, fractional_bits, flags, _ = _HEADER.unpack(header)
        if magic != _MAGIC:
            raise ClmError(f"{path} is no SPZ file: what is compressed in it is something else.")
        if version not in (2, 3) or sh_degree > 3 or fractional_bits > 23:
            raise ClmError(
                f"{path} is an SPZ of version {version}, SH degree {sh_degree}, {fractional_bits} fractional bits.",
                "Versions 2 and 3 up to degree 3 are read.",
            )
        file.seek(-4, 2)
        size, wanted = int.from_bytes(file.read(4), "little"), _HEADER.size + count * sum(_widths(sh_degree, version))
        if size != wanted % (1 << 32) and not flags & _EXTENDED:
            raise ClmError(f"{path} is cut short: its end is not that of {count} Gaussians.", "Copy it again.")
    return SpzRows(path, count, sh_degree, bool(flags & _ANTIALIASED), version=version, fractional_bits=fractional_bits)
