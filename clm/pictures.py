"""Pictures out: PNG, depth, colour maps, and the names of their files. Every file appears whole or not at all.

Pillow is imported when the first picture is written.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clm.errors import ClmError
from clm.files import atomic_write, write_json

_MARK = ("Software", "clm")  # a text of every PNG
STEPS = 65535  # of depth in a PNG
# Evenly spaced stops of a colour map, from 0 to 1 (dark to light, so that a print in grey reads the same).
_STOPS = np.array(
    [[10, 12, 45], [48, 40, 122], [121, 42, 129], [196, 66, 101], [240, 122, 66], [251, 196, 98], [252, 252, 220]],
    float,
)


def to_uint8(rgb: np.ndarray) -> np.ndarray:
    """[3, H, W] f32 in 0..1 (clamped) -> [H, W, 3] u8, rounded."""
    return np.ascontiguousarray((np.clip(rgb, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8).transpose(1, 2, 0))


def laid_over(cut_out: np.ndarray, opacity: np.ndarray, background: tuple[float, float, float]) -> np.ndarray:
    """[H, W, 3] u8: a picture over black, `cut_out` [H, W, 3] u8, of which `opacity` [H, W] u8 is opaque, on a colour instead (RGB,
    clamped to 0..1)."""
    behind = np.outer(255 - np.arange(256), np.clip(background, 0.0, 1.0))  # [256, 3], by opacity
    rest = (behind + 0.5).astype(np.uint8)[opacity]
    return np.minimum(cut_out, 255 - rest) + rest  # resizing may leave a little more than what is opaque


def save_png(path: Path, pixels: np.ndarray, **texts: str) -> None:
    """[H, W, 3] or [H, W] u8, or [H, W] u16, written whole and marked as ours; texts: what else the file says."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    mark = PngInfo()
    mark.add_text(*_MARK)
    for key, text in texts.items():
        mark.add_text(key, text)
    with atomic_write(path) as file:
        Image.fromarray(pixels).save(file, format="PNG", pnginfo=mark)


def refuse_foreign_pictures(paths: Iterable[Path]) -> None:
    """Raise ClmError where a file of one of these names is no picture that `save_png` wrote."""
    for path in paths:
        if path.exists() and not _is_ours(path):
            raise ClmError(f"{path} is there already, and clm did not write it.", "Pass another folder with -o.")


def _is_ours(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.info.get(_MARK[0]) == _MARK[1]
    except (OSError, ValueError, SyntaxError):
        return False


@dataclass(frozen=True)
class DepthScale:
    """How depth becomes pictures, the same for all of a call, so that they can be compared."""

    step: float  # world units of one step of a 16-bit PNG
    nearest: float  # of the colour map: brightest
    farthest: float  # darkest

    @staticmethod
    def of(depths: np.ndarray) -> DepthScale:
        """For a sample of depths [n] > 0 in world units: the PNG reaches twice the farthest, up to one in a hundred, in steps of
        1, 2 or 5 times a power of ten."""
        if not len(depths):
            return DepthScale(1e-3, 1.0, 10.0)
        near, far = (float(q) for q in np.quantile(depths, (0.01, 0.99)))
        least = 2 * far / STEPS
        power = 10.0 ** math.floor(math.log10(least))
        step = next(k * power for k in (1, 2, 5, 10) if k * power >= least)
        return DepthScale(float(f"{step:.6g}"), near, max(far, near * 1.001))

    def steps(self, depth: np.ndarray) -> np.ndarray:
        """Depth [H, W] f32 as [H, W] u16: 0 where nothing was drawn, 1 at least elsewhere; what is beyond has the largest."""
        steps = np.clip(np.clip(np.nan_to_num(depth), 0, STEPS * self.step) / self.step + 0.5, 1, STEPS)
        return np.where(depth > 0, steps, 0).astype(np.uint16)

    def colours(self, depth: np.ndarray) -> np.ndarray:
        """[H, W, 3] u8, by the logarithm of depth, near is light; black where nothing was drawn."""
        drawn = depth > 0
        logs = np.log(np.where(drawn, depth, self.farthest)) - math.log(self.nearest)
        pixels = colour_map(1 - logs / math.log(self.farthest / self.nearest))
        pixels[~drawn] = 0
        return pixels


def colour_map(values: np.ndarray) -> np.ndarray:
    """[H, W] in 0..1 (clamped) -> [H, W, 3] u8, dark to light."""
    at = np.clip(np.nan_to_num(values), 0, 1) * (len(_STOPS) - 1)
    table = np.stack(
        [np.interp(np.linspace(0, len(_STOPS) - 1, 256), np.arange(len(_STOPS)), _STOPS[:, c]) for c in range(3)],
        axis=1,
    )
    return table.astype(np.uint8)[(at * 255 / (len(_STOPS) - 1) + 0.5).astype(np.uint8)]


def save_depth(output: Path, stem: str, depth: np.ndarray, scale: DepthScale) -> None:
    """Expected depth [H, W] f32: exact as .npy (world units), and as a 16-bit PNG."""
    with atomic_write(output / f"{stem}.depth.npy") as file:
        np.save(file, depth)
    save_png(output / f"{stem}.depth.png", scale.steps(depth), Depth=_in_words(scale))


def _in_words(scale: DepthScale) -> str:
    return f"value x {scale.step:g} = expected depth in world units; 0: nothing was drawn; {STEPS}: as far or farther"


def save_depth_scale(path: Path, scale: DepthScale) -> None:
    """What the depth PNGs beside `path` mean, for programs."""
    write_json(path, {"depth_step": scale.step, "unit": "world", "meaning": _in_words(scale)})


def refuse_foreign_depth_scale(path: Path) -> None:
    """Raise ClmError where a file of this name is none that `save_depth_scale` wrote."""
    if not path.exists():
        return
    try:
        ours = "depth_step" in json.loads(path.read_text())
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        raise ClmError(f"{path} is there already, and clm did not write it.", "Pass another folder with -o.")


def file_stems(names: Sequence[str]) -> list[str]:
    """For each image name one file name without extension, subfolders flattened; no two are equal.

    Names that differ in their extension only keep it (a.jpg, a.png); what is equal even so is numbered in order."""
    plain = [os.path.splitext(name)[0] for name in names]
    counts = Counter(plain)
    flat = [_flat(stem if counts[stem] < 2 else name) for name, stem in zip(names, plain, strict=True)]
    taken: set[str] = set()
    for k, stem in enumerate(flat):
        number = 2
        while flat[k].casefold() in taken:
            flat[k], number = f"{stem}~{number}", number + 1
        taken.add(flat[k].casefold())
    return flat


def _flat(name: str) -> str:
    return name.replace("/", "__").replace("\\", "__").replace("\0", "")[:80] or "image"
