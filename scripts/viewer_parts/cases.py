"""Which files are shown by which viewer, what their pictures must reach, and whether they did.

Spark with the options of `spark_options` draws what `clm` draws, but for its own rounding. PlayCanvas and SuperSplat blur
splats by a quarter of what ours are blurred by, and let them fall to zero at their rim: how near they come to our render depends on
the scene (`--least`). So the sharper tests of a file are the picture that the same viewer makes of the PLY, and that of PlayCanvas
with our footprint in its shaders (`matched`), which shows that nothing else is between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PLY = "model.ply"
FILES = (
    PLY,
    "model.compressed.ply",
    "model.sog",
    "lod/lod-meta.json",
    "model.glb",
    "model.spz",
    "fine.spz",
    "model.splat",
)
EXPORT_OPTIONS = {"lod/lod-meta.json": ["--lod", "2"], "fine.spz": ["--sh-bits", "8"]}
AS_TRAINED, LEVEL, OFF_CENTRE = "test views", "without roll", "principal point moved"

_MATCHED = {
    PLY: 38.0,
    "model.compressed.ply": 38.0,
    "model.sog": 38.0,
    "fine.spz": 38.0,
    "model.spz": 35.0,
    "model.splat": 33.0,
}
_LIKE_PLY = {"model.spz": 35.0, "model.splat": 33.0}  # of a picture to the PLY's in the same viewer; 38 for other files
_ENGINE = (PLY, "model.compressed.ply", "model.sog", "lod/lod-meta.json", "model.glb")
_SUPERSPLAT = (PLY, "model.compressed.ply", "model.sog", "lod/lod-meta.json")


@dataclass(frozen=True)
class Case:
    """One file in one viewer, from some cameras."""

    viewer: str
    file: str
    cameras: str = AS_TRAINED
    least: float | None = None  # dB against our render; None: measured, nothing is required
    like_ply: float | None = None  # dB against the viewer's picture of the PLY
    level: int | None = None  # of detail; None: the viewer chooses, or there is one
    matched: bool = False  # PlayCanvas with our footprint

    @property
    def id(self) -> str:
        """Also a name for a folder."""
        words = [self.viewer, self.file.replace("/", "_"), self.cameras.replace(" ", "_")]
        words += [f"level{self.level}"] if self.level is not None else []
        return "-".join(words + ["matched"] * self.matched)

    @property
    def of_ply(self) -> Case:
        """The case that a picture of a compressed file is compared with."""
        return Case(self.viewer, PLY, self.cameras)

    def options(self, antialiased: bool) -> dict[str, Any]:
        """What the viewer's page is told."""
        level = {} if self.level is None else {"level": self.level}
        return {"antialiased": antialiased, "spark": spark_options(antialiased), "matched": self.matched, **level}


def spark_options(antialiased: bool) -> dict[str, Any]:
    """Options with which Spark's footprint is ours: 0.3 px^2 of blur, paid for in opacity only where the model was trained so; and
    nothing is left out whose centre is beside the picture (its clipXY of 1.4 costs 9 dB where large splats reach into it)."""
    blur = {"preBlurAmount": 0.0, "blurAmount": 0.3} if antialiased else {"preBlurAmount": 0.3, "blurAmount": 0.0}
    return {**blur, "maxStdDev": 3.33, "sortRadial": False, "accumExtSplats": True, "clipXY": 2.0}


def cases(viewers: Sequence[str], least: float) -> list[Case]:
    """All that is shown, the PLY of a viewer before its other files. least: dB that PlayCanvas and SuperSplat have to reach."""
    found = [Case("spark", file, least=_MATCHED[file], like_ply=_like_ply(file)) for file in _MATCHED]
    found.append(Case("spark", PLY, OFF_CENTRE, _MATCHED[PLY]))
    for file in _ENGINE:
        finest = 0 if file.endswith(".json") else None
        found.append(Case("playcanvas", file, least=least, like_ply=_like_ply(file), level=finest))
        found.append(Case("playcanvas", file, least=_MATCHED.get(file, 38.0), level=finest, matched=True))
    found += [Case("playcanvas", "lod/lod-meta.json", level=1), Case("playcanvas", PLY, OFF_CENTRE, least)]
    found.append(Case("playcanvas", PLY, OFF_CENTRE, _MATCHED[PLY], matched=True))
    found += [Case("supersplat", file, LEVEL, least, _like_ply(file)) for file in _SUPERSPLAT]
    found.append(Case("three", "model.glb"))
    return [case for case in found if case.viewer in viewers]


VIEWERS = ("spark", "playcanvas", "supersplat", "three")


def _like_ply(file: str) -> float | None:
    return None if file == PLY else _LIKE_PLY.get(file, 38.0)


@dataclass(frozen=True)
class Shown:
    """What became of a case. psnr, psnr_ply: of each view, dB; the means have to reach what is required."""

    case: Case
    psnr: Sequence[float]
    psnr_ply: Sequence[float]  # empty where there is no picture of the PLY
    complaints: Sequence[str] = ()  # of the page
    error: str | None = None

    @property
    def missed(self) -> list[str]:
        """What was required and not reached, in words."""
        if self.error is not None:
            return [self.error]
        pairs = (("our render", self.psnr, self.case.least), ("its PLY", self.psnr_ply, self.case.like_ply))
        return [
            f"{mean(values):.1f} dB against {whom}, {least:g} required"
            for whom, values, least in pairs
            if least is not None and not (values and mean(values) >= least)
        ]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def table(shown: Sequence[Shown], sizes: dict[str, int]) -> str:
    """Markdown; sizes: bytes of each file."""
    lines = [
        "| viewer | file | MB | cameras | against our render: required | mean (least) "
        "| against its PLY: required | mean (least) | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in shown:
        case = each.case
        file = case.file + ("" if case.level is None else f", level {case.level}") + ", our footprint" * case.matched
        cells = [case.viewer, file, f"{sizes[case.file] / 1e6:.1f}", case.cameras]
        cells += [_required(case.least), _reached(each.psnr), _required(case.like_ply), _reached(each.psnr_ply)]
        lines.append("| " + " | ".join([*cells, "; ".join(each.missed) or "ok"]) + " |")
    return "\n".join(lines)


def _required(least: float | None) -> str:
    return "" if least is None else f"{least:g}"


def _reached(values: Sequence[float]) -> str:
    return f"{mean(values):.1f} ({min(values):.1f})" if values else ""
