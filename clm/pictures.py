"""Pictures out: PNG, depth, video, and the names of their files. Every file appears whole or not at all.

Pillow is imported when the first picture is written.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from clm.errors import ClmError
from clm.files import atomic_write, temporary_name

_MARK = ("Software", "clm")  # a text of every PNG


def to_uint8(rgb: np.ndarray) -> np.ndarray:
    """[3, H, W] f32 in 0..1 (clamped) -> [H, W, 3] u8, rounded."""
    return np.ascontiguousarray((np.clip(rgb, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8).transpose(1, 2, 0))


def save_png(path: Path, pixels: np.ndarray) -> None:
    """[H, W, 3] or [H, W] u8, or [H, W] u16, written whole and marked as ours."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    mark = PngInfo()
    mark.add_text(*_MARK)
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


def save_depth(output: Path, stem: str, depth: np.ndarray) -> None:
    """Expected depth [H, W] f32: exact as .npy (world units), and as a 16-bit PNG scaled to its largest value."""
    with atomic_write(output / f"{stem}.depth.npy") as file:
        np.save(file, depth)
    top = float(depth.max()) or 1.0
    save_png(output / f"{stem}.depth.png", (np.clip(depth / top, 0, 1) * 65535).astype(np.uint16))


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


def video_path(output: Path) -> Path:
    """Where `write_video` writes: video.mp4 through ffmpeg, or an animated video.webp where there is none."""
    return output / ("video.mp4" if shutil.which("ffmpeg") else "video.webp")


def write_video(output: Path, stems: Sequence[str], rate: int = 30) -> Path:
    """A video of pictures that are in `output` already, `rate` of them a second."""
    pictures, target = [output / f"{stem}.png" for stem in stems], video_path(output)
    if target.suffix == ".mp4":
        temporary = temporary_name(target)
        options = ["-f", "image2pipe", "-framerate", str(rate), "-i", "-", "-pix_fmt", "yuv420p"]
        even = ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"]
        command = ["ffmpeg", "-y", "-loglevel", "error", *options, *even, "-f", "mp4", str(temporary)]
        subprocess.run(command, input=b"".join(p.read_bytes() for p in pictures), check=True)
        temporary.replace(target)
        return target
    from PIL import Image

    first, *rest = (Image.open(p) for p in pictures)
    with atomic_write(target) as file:
        first.save(file, format="WEBP", save_all=True, append_images=rest, duration=round(1000 / rate), quality=80)
    return target
