"""Gaussian PLY files in: what any tool wrote opens here.

Read in a stream: memory is one chunk, whatever the number of rows (only an ASCII file is read whole). Nothing is changed
silently: what had to be changed on reading is a message. Frame and units are those of the rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from plyfile import PlyData, PlyParseError

from clm.errors import ClmError
from clm.formats.ply_write import property_names
from clm.formats.rows import Chunk, Rows
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

_READ_ROWS = 1024  # picked apart at a time: columns are strided, so the piece has to stay in the first-level caches
_HEADER_BYTES = 1 << 20
_SH_DEGREE = {0: 0, 9: 1, 24: 2, 45: 3}  # number of f_rest properties -> degree
_GEOMETRY_NAMES = {
    **{name: column for column, name in enumerate("xyz", MEANS.start)},
    **{f"rot_{i}": QUATS.start + i for i in range(4)},
    **{f"scale_{i}": LOG_SCALES.start + i for i in range(3)},
    "opacity": LOGIT_OPACITIES,
}
_TYPES = {
    **{
        "char": "i1",
        "uchar": "u1",
        "short": "i2",
        "ushort": "u2",
        "int": "i4",
        "uint": "u4",
        "float": "f4",
        "double": "f8",
    },
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float32": "f4", "float64": "f8"},
}
_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}


@dataclass(frozen=True)
class _Header:
    """What a PLY header says about its vertex element, and where that lies."""

    format: str
    count: int
    properties: tuple[tuple[str, str], ...]  # (name, numpy type without byte order)
    comments: tuple[str, ...]
    offset: int  # bytes from the start of the file to the first vertex

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype([(name, _ORDERS[self.format] + kind) for name, kind in self.properties])


@dataclass
class PlyRows(Rows):
    """A Gaussian PLY of any tool, opened."""

    kind = "PLY"

    header: _Header = field(kw_only=True, repr=False)

    @property
    def seekable(self) -> bool:
        return self.header.format != "ascii"

    def facts(self) -> dict[str, Any]:
        known = set(property_names(self.sh_degree))
        return super().facts() | {
            "format": self.header.format,
            "extra_properties": [name for name, _ in self.header.properties if name not in known],
            "comments": list(self.header.comments),
        }

    def pieces(self, size: int, first: int = 0) -> Iterator[Chunk]:
        """As `Rows.pieces`; an ASCII file is read whole, and only from the start."""
        columns = _columns(self.header, self.sh_degree)
        for table in _tables(self.path, self.header, size, first):
            geometry = np.zeros((len(table), GEOMETRY_COLUMNS), np.float32)
            colour = np.zeros((len(table), COLOUR_COLUMNS), np.float32)
            with np.errstate(
                over="ignore", invalid="ignore"
            ):  # a double beyond float32 becomes infinite, then is dropped
                for start in range(0, len(table), _READ_ROWS):
                    piece = slice(start, start + _READ_ROWS)
                    for name, of_colour, column in columns:
                        (colour if of_colour else geometry)[piece, column] = table[name][piece]
            yield geometry, colour


def _columns(header: _Header, sh_degree: int) -> list[tuple[str, bool, int]]:
    """(property, whether it is a colour, its column) for every property that a row takes."""
    per_channel = (sh_degree + 1) ** 2 - 1
    wanted = {name: (False, column) for name, column in _GEOMETRY_NAMES.items()}
    wanted |= {f"f_dc_{i}": (True, SH0.start + i) for i in range(3)}
    for i in range(3 * per_channel):
        channel, coefficient = divmod(i, per_channel)
        wanted[f"f_rest_{i}"] = (True, SHN.start + 3 * coefficient + channel)
    # In file order, so that reading walks through memory once.
    return [(name, *wanted[name]) for name, _ in header.properties if name in wanted]


def _tables(path: Path, header: _Header, size: int, first: int = 0) -> Iterator[np.ndarray]:
    """The vertex records from `first` on (ASCII: from 0), `size` at a time, as structured arrays."""
    if header.format == "ascii":
        try:
            table = PlyData.read(str(path))["vertex"].data
        except (PlyParseError, ValueError) as error:
            raise ClmError(f"{path} cannot be read: {error}.", "Write the file again.") from error
        yield from (table[start : start + size] for start in range(0, header.count, size))
        return
    with open(path, "rb") as file:
        file.seek(header.offset + first * header.dtype.itemsize)
        for start in range(first, header.count, size):
            want = min(size, header.count - start)
            # Read, not mapped: pages of a mapping count as this process's memory until it ends.
            table = np.fromfile(file, header.dtype, want)
            if len(table) < want:
                raise ClmError(f"{path} ends after {start + len(table)} of {header.count} Gaussians.", "Copy it again.")
            yield table


def _header_lines(path: Path) -> tuple[list[str], int]:
    """Lines of the header without their ends, and its length in bytes."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        raise ClmError(f"No such file: {path}") from None
    except OSError as error:
        raise ClmError(f"{path} cannot be read: {error.strerror}.") from error
    if not re.match(rb"ply\s*\n", head):
        raise ClmError(f"{path} is not a PLY file (its first line is not `ply`).")
    end = re.search(rb"\nend_header[ \t\r]*\n", head)
    if end is None:
        raise ClmError(f"{path} has no complete PLY header (no `end_header`).", "Copy it again.")
    return [line.strip() for line in head[: end.start()].decode("utf-8", "replace").split("\n")], end.end()


Elements = list[
    tuple[str, int, list[tuple[str, str]]]
]  # (name, count, [(property, numpy type without byte order, or `list`)])


def parse_header(path: Path) -> tuple[str, Elements, tuple[str, ...], int]:
    """Format, elements, comments, and the bytes from the start of the file to the first element; ClmError where it is no PLY."""
    lines, offset = _header_lines(path)
    form, comments = "", []
    elements: Elements = []
    for line in lines[1:]:
        word, _, rest = line.partition(" ")
        fields = rest.split()
        if word in ("comment", "obj_info"):
            comments.append(rest.strip())
        elif word == "format" and len(fields) == 2 and fields[0] in _ORDERS:
            form = fields[0]
        elif word == "element" and len(fields) == 2 and fields[1].isdigit():
            elements.append((fields[0], int(fields[1]), []))
        elif word == "property" and elements and len(fields) == 2 and fields[0] in _TYPES:
            elements[-1][2].append((fields[1], _TYPES[fields[0]]))
        elif word == "property" and elements and len(fields) == 4 and fields[0] == "list":
            elements[-1][2].append((fields[3], "list"))
        elif line:
            raise ClmError(f"{path} has a header line that is not PLY: `{line[:80]}`.")
    if not form:
        raise ClmError(f"{path} has no `format` line in its header.")
    return form, elements, tuple(comments), offset


def said_antialiased(comments: tuple[str, ...]) -> bool:
    """Whether comments of ours, of Brush or of Postshot say that the model was trained with antialiasing."""
    modes = [comment.lower().split() for comment in comments]
    return any(mode in (["splatrendermode:", "mip"], ["antialiased", "1"]) for mode in modes)


def _vertex_header(path: Path) -> _Header:
    """Finds the vertex element behind those that precede it."""
    form, elements, comments, offset = parse_header(path)
    for name, count, properties in elements:
        has_list = any(kind == "list" for _, kind in properties)
        if name == "vertex":
            names = [name for name, _ in properties]
            twice = [name for name in names if names.count(name) > 1]
            if twice or has_list:
                what = f"property {twice[0]} is there twice" if twice else "a vertex property is a list"
                raise ClmError(f"{path} is not a Gaussian PLY: {what}.")
            return _Header(form, count, tuple(properties), comments, offset)
        if has_list and count and form != "ascii":
            raise ClmError(
                f"{path} has element `{name}` of unknown length before its vertices.", "Put the vertices first."
            )
        offset += count * sum(int(kind[1]) for _, kind in properties if kind != "list")
    raise ClmError(f"{path} has no `vertex` element.")


def _degree(path: Path, names: set[str]) -> int:
    """SH degree by the number of f_rest properties, after checking that all that a Gaussian needs is there."""
    needed = [*_GEOMETRY_NAMES, *(f"f_dc_{i}" for i in range(3))]
    missing = [name for name in needed if name not in names]
    if missing:
        kind = "a mesh or a point cloud, not Gaussians" if len(missing) == len(needed) - 3 else "not a Gaussian PLY"
        raise ClmError(
            f"{path} is {kind}: it has no property {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}."
        )
    rest = {name for name in names if re.fullmatch(r"f_rest_\d+", name)}
    if len(rest) not in _SH_DEGREE or rest != {f"f_rest_{i}" for i in range(len(rest))}:
        raise ClmError(f"{path} has {len(rest)} f_rest properties: 0, 9, 24 or 45, numbered from 0, make an SH degree.")
    return _SH_DEGREE[len(rest)]


def open_ply(path: Path | str) -> PlyRows:
    """Open the Gaussian PLY of any tool: any property order and numeric type, extra properties, ASCII or binary.

    SH degree 0 to 3 by the number of f_rest properties (channel-major with that degree's stride). ClmError when it is no
    PLY, no Gaussians, or shorter than its header says.
    """
    path = Path(path)
    header = _vertex_header(path)
    sh_degree = _degree(path, {name for name, _ in header.properties})
    if header.format != "ascii":
        missing = header.offset + header.count * header.dtype.itemsize - path.stat().st_size
        if missing > 0:
            raise ClmError(
                f"{path} is {missing} bytes shorter than its {header.count} Gaussians need.", "Copy it again."
            )
    return PlyRows(path, header.count, sh_degree, said_antialiased(header.comments), header=header)
