"""What a user may ask of an export: which rows (filters, the same for every format), and how they are written (options)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from clm.errors import ClmError
from clm.units import shown

Box = tuple[float, float, float, float, float, float]  # lowest x, y, z, highest x, y, z; world units of the model


@dataclass(frozen=True)
class Filters:
    """Which rows are written, and how much of each."""

    sh: int | None = None  # highest degree that is kept; None: all that the file and the format have
    min_opacity: float = 0.0  # after the sigmoid
    crop: Box | None = None  # of centres
    nan: str = "drop"  # rows that nobody can use (not finite, no rotation): drop, or refuse the model

    def __post_init__(self) -> None:
        if not 0 <= self.min_opacity < 1:
            raise ClmError(f"--min-opacity is {self.min_opacity:g}.", "Choose a number from 0 up to 1.")
        if self.nan not in ("drop", "refuse"):
            raise ClmError(f"--nan is `{shown(self.nan)}`.", "Use drop or refuse.")

    def named(self) -> str:
        """The flags that leave rows out, as typed."""
        flags = ["--crop"] * (self.crop is not None) + ["--min-opacity"] * (self.min_opacity > 0)
        return " and ".join(flags)


@dataclass(frozen=True)
class Options:
    """How rows are written; None: as the format does it by default. Each format names those that it takes."""

    sh_bits: str | None = None  # .spz: bits of the first degree and of the others
    lod: int | None = None  # lod-meta.json: levels of detail

    def given(self) -> list[str]:
        return [f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None]


def parse_box(text: str) -> Box:
    """`x0,y0,z0,x1,y1,z1`, two opposite corners in any order; ClmError otherwise."""
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 6 or any(math.isnan(value) for value in values):
        raise ClmError(
            f"--crop is `{shown(text)}`.", "Write two corners of a box, x0,y0,z0,x1,y1,z1, in the model's units."
        )
    low, high = zip(*(sorted(pair) for pair in zip(values[:3], values[3:], strict=True)), strict=True)
    return (*low, *high)
