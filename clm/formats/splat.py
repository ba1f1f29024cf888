"""`.splat` (antimatter15), both ways: 32 bytes a row without a header, no spherical harmonics; what matters most comes first.

A row: centre and standard deviations as 6 f32, red, green, blue and opacity as u8, quaternion wxyz as u8 (q * 128 + 128).
Colours outside 0..1 are clipped, as the viewer of such a file would. Memory: a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clm.errors import ClmError
from clm.files import atomic_write
from clm.formats.options import Options
from clm.formats.quantise import Clipped, linear_scales, logits_of, opacity_bytes, unit_quats
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

_ROW = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("colour", "u1", 3), ("opacity", "u1"), ("quats", "u1", 4)])


def write_splat(path: Path, selection: Selection, options: Options) -> int:
    """Write the rows; returns their number."""
    clipped, count = Clipped(".splat"), selection.count
    with atomic_write(path, needed=count * _ROW.itemsize) as file:
        for geometry, colour in selection.chunks(f"exporting {path.name}"):
            table = np.empty(len(geometry), _ROW)
            table["means"], table["scales"] = geometry[:, MEANS], linear_scales(geometry, clipped)
            rgb = np.clip(0.5 + SH_C0 * colour[:, SH0].astype(np.float64), 0, 1)
            table["colour"], table["opacity"] = np.floor(rgb * 255 + 0.5), opacity_bytes(geometry[:, LOGIT_OPACITIES])
            table["quats"] = np.clip(np.floor(unit_quats(geometry) * 128 + 128.5), 0, 255)
            file.write(table.data)
    clipped.say(selection.warn)
    return count


@dataclass
class SplatRows(Rows):
    """A `.splat` file, opened."""

    kind = "splat"

    def facts(self) -> dict[str, Any]:
        """As of any format; and that nobody can tell a whole file from one that was cut."""
        said = "the format states no count: a copy that ends between two Gaussians looks whole"
        return {**super().facts(), "comments": [said]}

    def pieces(self, size: int, first: int = 0) -> Iterator[Chunk]:
        with open(self.path, "rb") as file:
            file.seek(first * _ROW.itemsize)
            for start in range(first, self.count, size):
                table = np.fromfile(file, _ROW, min(size, self.count - start))
                if len(table) < min(size, self.count - start):
                    raise ClmError(
                        f"{self.path} ends after {start + len(table)} of {self.count} Gaussians.", "Copy it again."
                    )
                yield _decoded(table)


def _decoded(table: np.ndarray) -> Chunk:
    geometry = np.zeros((len(table), GEOMETRY_COLUMNS), np.float32)
    colour = np.zeros((len(table), COLOUR_COLUMNS), np.float32)
    geometry[:, MEANS], geometry[:, LOGIT_OPACITIES] = table["means"], logits_of(table["opacity"])
    with np.errstate(divide="ignore", invalid="ignore"):  # no size, or a negative one: left out as not finite
        geometry[:, LOG_SCALES] = np.log(table["scales"])
    quats = (table["quats"].astype(np.float32) - 128) / 128
    length = np.sqrt((quats * quats).sum(axis=1, keepdims=True))
    geometry[:, QUATS] = quats / np.where(length > 0, length, 1)
    colour[:, SH0] = (table["colour"] / 255.0 - 0.5) / SH_C0
    return geometry, colour


def open_splat(path: Path) -> SplatRows:
    """ClmError where the size is none of whole rows: such a file says nothing else of itself."""
    count, rest = divmod(path.stat().st_size, _ROW.itemsize)
    if rest or not count:
        what = f"{rest} bytes are left behind {count} Gaussians of {_ROW.itemsize} bytes" if rest else "it is empty"
        raise ClmError(f"{path} is no whole .splat file: {what}.", "Copy it again.")
    return SplatRows(path, count, 0, False)
