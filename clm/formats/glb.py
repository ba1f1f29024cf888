"""`.glb` with `KHR_gaussian_splatting`, both ways: glTF 2.0 in one file, every attribute exact in float32 columns.

Scales are linear, opacities after the sigmoid, quaternions xyzw, as the viewers that read it take them. glTF's y points up and a
PLY's down: rows are turned by 180 degrees about z, spherical harmonics included, and turned back on reading. The format has no
word for antialiasing; ours stands in the primitive's extras. Memory: a chunk; columns are written at their places.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clm import __version__
from clm.errors import ClmError
from clm.files import atomic_write
from clm.formats.columns import ColumnWriter, column_starts, read_at
from clm.formats.options import Options
from clm.formats.quantise import Clipped, linear_scales, logits_of, opacity_bytes, sigmoid, turn, unit_quats
from clm.formats.rows import Chunk, Rows
from clm.formats.select import Selection
from clm.store.layout import (
    COLOUR_COLUMNS,
    GEOMETRY_COLUMNS,
    LOG_SCALES,
    LOGIT_OPACITIES,
    MEANS,
    QUATS,
    SH0,
    SH_C0,
)

_EXTENSION = "KHR_gaussian_splatting"
_MAGIC, _JSON, _BIN = b"glTF", b"JSON", b"BIN\0"
_MOST_BYTES = 2**32 - 1  # lengths are 32 bits
_MOST_JSON = 1 << 26  # more is not the file of a model
_FLOAT, _BYTE, _UBYTE, _SHORT, _USHORT = 5126, 5120, 5121, 5122, 5123
_TYPES = {_FLOAT: "<f4", _BYTE: "i1", _UBYTE: "u1", _SHORT: "<i2", _USHORT: "<u2"}
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}


def _sh_names(degree: int) -> list[str]:
    return [f"{_EXTENSION}:SH_DEGREE_{d}_COEF_{c}" for d in range(degree + 1) for c in range(2 * d + 1)]


def _attributes(degree: int) -> list[tuple[str, str]]:
    """(name, type) of every attribute in the order of the file; all are float32 but the colour of viewers that draw points."""
    return [
        ("POSITION", "VEC3"),
        ("COLOR_0", "VEC4"),
        (f"{_EXTENSION}:ROTATION", "VEC4"),
        (f"{_EXTENSION}:SCALE", "VEC3"),
        (f"{_EXTENSION}:OPACITY", "SCALAR"),
        *((name, "VEC3") for name in _sh_names(degree)),
    ]


# ---- out ----


def write_glb(path: Path, selection: Selection, options: Options) -> int:
    """Write the rows; returns their number. ClmError where the file would be larger than the format's 4 GiB."""
    count, attributes = selection.count, _attributes(selection.sh_degree)
    widths = [4 if name == "COLOR_0" else 4 * _WIDTHS[kind] for name, kind in attributes]
    header = _header(selection, attributes, widths)
    total = len(header) + count * sum(widths)
    if total > _MOST_BYTES:
        raise ClmError(
            f"{path.name} would take {total / 1e9:.1f} GB, and a .glb ends at 4.3 GB: {count:,} Gaussians of {sum(widths)} bytes.",
            "Keep fewer coefficients (--sh), or split the scene (--tile).",
        )
    clipped = Clipped(".glb")
    with atomic_write(path, needed=total) as file:
        file.write(header)
        columns = ColumnWriter(file, len(header), widths, count)
        for geometry, colour in selection.chunks(f"exporting {path.name}"):
            columns.write(_encoded(geometry, colour, selection.sh_degree, clipped))
        columns.finish()
    clipped.say(selection.warn)
    return count


def _header(selection: Selection, attributes: list[tuple[str, str]], widths: list[int]) -> bytes:
    """Everything before the first column: glTF's header, the JSON chunk, the binary chunk's header."""
    count = selection.count
    views, accessors = [], []
    for k, ((name, kind), start) in enumerate(zip(attributes, column_starts(0, widths, count), strict=True)):
        views.append({"buffer": 0, "byteOffset": start, "byteLength": count * widths[k], "target": 34962})
        accessor: dict[str, Any] = {"bufferView": k, "componentType": _FLOAT, "count": count, "type": kind}
        if name == "COLOR_0":
            accessor |= {"componentType": _UBYTE, "normalized": True}
        if name == "POSITION":
            low, high = selection.low, selection.high
            accessor["min"] = [-float(high[0]), -float(high[1]), float(low[2])]
            accessor["max"] = [-float(low[0]), -float(low[1]), float(high[2])]
        accessors.append(accessor)
    primitive: dict[str, Any] = {
        "attributes": {name: k for k, (name, _) in enumerate(attributes)},
        "mode": 0,
        "extensions": {
            _EXTENSION: {
                "kernel": "ellipse",
                "colorSpace": "srgb_rec709_display",
                "sortingMethod": "cameraDistance",
                "projection": "perspective",
            }
        },
    }
    if selection.antialiased:
        primitive["extras"] = {"antialiased": True}
    document = {
        "asset": {"version": "2.0", "generator": f"clm {__version__}"},
        "extensionsUsed": [_EXTENSION],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "buffers": [{"byteLength": count * sum(widths)}],
        "bufferViews": views,
        "accessors": accessors,
    }
    text = json.dumps(document, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 4)
    binary = count * sum(widths)
    total = 12 + 8 + len(text) + 8 + binary
    parts = [_MAGIC, struct.pack("<II", 2, total & _MOST_BYTES), struct.pack("<I", len(text)), _JSON, text]
    return b"".join([*parts, struct.pack("<I", binary & _MOST_BYTES), _BIN])


def _encoded(geometry: np.ndarray, colour: np.ndarray, degree: int, clipped: Clipped) -> list[np.ndarray]:
    geometry, colour = geometry.copy(), colour.copy()
    turn(geometry, colour, "z")
    opacity = sigmoid(geometry[:, LOGIT_OPACITIES])
    rgb = np.clip(0.5 + SH_C0 * colour[:, SH0].astype(np.float64), 0, 1)
    tint = np.column_stack([np.floor(rgb * 255 + 0.5).astype(np.uint8), opacity_bytes(geometry[:, LOGIT_OPACITIES])])
    return [
        geometry[:, MEANS].astype("<f4"),
        tint,
        np.roll(unit_quats(geometry), -1, axis=1).astype("<f4"),
        linear_scales(geometry, clipped).astype("<f4"),
        opacity.astype("<f4"),
        *(colour[:, 3 * k : 3 * k + 3].astype("<f4") for k in range((degree + 1) ** 2)),
    ]


# ---- in ----


@dataclass(frozen=True)
class _Column:
    """Where one attribute lies in the file."""

    at: int
    stride: int
    record: np.dtype  # of the components of one row
    scale: float  # integers are divided by it


@dataclass
class GlbRows(Rows):
    """A GLB with Gaussians, opened."""

    kind = "glTF"

    columns: dict[str, _Column] = field(kw_only=True, repr=False)

    def pieces(self, size: int, first: int = 0) -> Iterator[Chunk]:
        with open(self.path, "rb") as file:
            for start in range(first, self.count, size):
                yield self._piece(file.fileno(), start, min(size, self.count - start))

    def _piece(self, file: int, start: int, rows: int) -> Chunk:
        geometry = np.zeros((rows, GEOMETRY_COLUMNS), np.float32)
        colour = np.zeros((rows, COLOUR_COLUMNS), np.float32)
        geometry[:, MEANS] = self._column(file, "POSITION", start, rows)
        geometry[:, QUATS] = np.roll(self._column(file, f"{_EXTENSION}:ROTATION", start, rows), 1, axis=1)
        geometry[:, LOGIT_OPACITIES] = logits_of(self._column(file, f"{_EXTENSION}:OPACITY", start, rows)[:, 0])
        with np.errstate(divide="ignore", invalid="ignore"):  # no size, or a negative one: left out as not finite
            geometry[:, LOG_SCALES] = np.log(self._column(file, f"{_EXTENSION}:SCALE", start, rows).astype(np.float64))
        for k, name in enumerate(_sh_names(self.sh_degree)):
            colour[:, 3 * k : 3 * k + 3] = self._column(file, name, start, rows)
        turn(geometry, colour, "z")
        return geometry, colour

    def _column(self, file: int, name: str, start: int, rows: int) -> np.ndarray:
        """Values [rows, n] f32 of an attribute."""
        column = self.columns[name]
        wanted = (rows - 1) * column.stride + column.record.itemsize
        data = read_at(file, wanted, column.at + start * column.stride)
        if len(data) < wanted:
            raise ClmError(f"{self.path} ends inside its attribute {name}.", "Copy it again.")
        data = np.concatenate([data, np.zeros(column.stride - column.record.itemsize, np.uint8)])
        packed = np.ascontiguousarray(data.reshape(rows, column.stride)[:, : column.record.itemsize])
        values = packed.view(column.record.base).astype(np.float32)
        return values if column.scale == 1 else np.maximum(values / np.float32(column.scale), -1)


def open_glb(path: Path) -> GlbRows:
    """ClmError where it is no GLB, holds no Gaussians or several models, compresses them, or is shorter than it says."""
    document, binary, size = _chunks(path)
    try:
        return _opened(path, document, binary, size)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ClmError(
            f"{path} is a glTF whose JSON does not hold together ({type(error).__name__}: {error})."
        ) from None


def _chunks(path: Path) -> tuple[Any, int, int]:
    """The JSON, where the binary chunk begins, and its length."""
    with open(path, "rb") as file:
        head = file.read(20)
        if head[:4] != _MAGIC or len(head) < 20:
            raise ClmError(f"{path} is no GLB file.")
        version, total, length = struct.unpack("<III", head[4:16])
        actual = path.stat().st_size
        if actual < total:
            raise ClmError(f"{path} is {total - actual} bytes shorter than it says.", "Copy it again.")
        if version != 2 or head[16:20] != _JSON or length > _MOST_JSON:
            raise ClmError(f"{path} is no glTF of version 2.")
        try:
            document = json.loads(file.read(length))
        except ValueError:
            raise ClmError(f"{path} is damaged: its JSON cannot be read.", "Copy it again.") from None
        head = file.read(8)
        binary = struct.unpack("<I", head[:4])[0] if len(head) == 8 and head[4:] == _BIN else 0
    return document, 20 + length + 8, min(binary, max(0, actual - 28 - length))


def _opened(path: Path, document: Any, binary: int, size: int) -> GlbRows:
    primitives = [
        primitive
        for mesh in document.get("meshes", [])
        for primitive in mesh["primitives"]
        if _EXTENSION in primitive.get("extensions", {})
    ]
    if len(primitives) != 1:
        what = f"{len(primitives)} models of Gaussians" if primitives else "no Gaussians"
        raise ClmError(f"{path} holds {what} ({_EXTENSION}).", "One is read.")
    [primitive] = primitives
    if inner := primitive["extensions"][_EXTENSION].get("extensions"):
        raise ClmError(f"{path} holds compressed Gaussians ({', '.join(inner)}), which are not read.")
    attributes = primitive["attributes"]
    degree = next(d for d in (3, 2, 1, 0) if d == 0 or set(_sh_names(d)) <= set(attributes))
    names = [name for name, _ in _attributes(degree) if name != "COLOR_0"]
    if missing := [name for name in names if name not in attributes]:
        raise ClmError(f"{path} is no model of Gaussians: it has no {missing[0]}.")
    count = int(document["accessors"][attributes["POSITION"]]["count"])
    columns = {}
    for name, kind in _attributes(degree):
        if name in names:
            columns[name] = _column(path, document, attributes[name], name, kind, count, binary, size)
    moved = [
        key
        for node in document.get("nodes", [])
        for key in ("matrix", "rotation", "scale", "translation")
        if key in node
    ]
    notes = ["Its node is moved or turned, which is not applied to the Gaussians."] if moved else []
    antialiased = bool((primitive.get("extras") or {}).get("antialiased", False))
    return GlbRows(path, count, degree, antialiased, columns=columns, notes=notes, messages=list(notes))


def _column(
    path: Path, document: Any, accessor: int, name: str, kind: str, count: int, binary: int, size: int
) -> _Column:
    """Where an accessor's values lie, after checking that they are of its kind and inside the binary chunk."""
    entry = document["accessors"][accessor]
    if "sparse" in entry or entry["type"] != kind or entry["componentType"] not in _TYPES or entry["count"] != count:
        raise ClmError(f"{path} has an attribute {name} that is not read: {json.dumps(entry)[:120]}.")
    view = document["bufferViews"][entry["bufferView"]]
    if "uri" in document["buffers"][view["buffer"]]:
        raise ClmError(f"{path} keeps {name} in another file, which is not read.", "Write it as one .glb.")
    record = np.dtype((_TYPES[entry["componentType"]], (_WIDTHS[kind],)))
    stride = int(view.get("byteStride", record.itemsize))
    start = int(view.get("byteOffset", 0)) + int(entry.get("byteOffset", 0))
    if stride < record.itemsize or start < 0 or (count and start + (count - 1) * stride + record.itemsize > size):
        raise ClmError(f"{path} is damaged: its attribute {name} lies outside the file.", "Copy it again.")
    whole = {_FLOAT: 1.0, _BYTE: 127.0, _UBYTE: 255.0, _SHORT: 32767.0, _USHORT: 65535.0}[entry["componentType"]]
    return _Column(binary + start, stride, record, whole if entry.get("normalized", False) else 1.0)
