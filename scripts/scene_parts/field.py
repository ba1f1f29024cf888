"""A flat field of Gaussians under a grid of cameras that look straight down, each on the same share of it: a scene of any size,
whose photos are smooth noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from clm.camera import Camera
from clm.formats.ply_write import write_ply
from clm.store.layout import COLOUR_COLUMNS, GEOMETRY_COLUMNS, LOG_SCALES, LOGIT_OPACITIES, MEANS, QUATS, SH0

SIDE, HEIGHT = 100.0, 10.0  # of the field, and of the cameras above it
PER_SIDE = 18  # cameras
PLY = "field.ply"


def field_rows(rows: int, side: float = SIDE) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`rows` Gaussians over the field, in random order; every 20th is about to be pruned."""
    rng = np.random.default_rng(0)
    for first in range(0, rows, 1 << 16):
        count = min(1 << 16, rows - first)
        geometry, colour = (
            np.zeros((count, GEOMETRY_COLUMNS), np.float32),
            np.zeros((count, COLOUR_COLUMNS), np.float32),
        )
        geometry[:, MEANS] = rng.uniform((-side / 2, -side / 2, -0.2), (side / 2, side / 2, 0.2), (count, 3))
        geometry[:, QUATS] = rng.normal(size=(count, 4))
        geometry[:, LOG_SCALES] = math.log(0.5 * side / math.sqrt(rows)) + rng.normal(0, 0.3, (count, 3))
        geometry[:, LOGIT_OPACITIES] = rng.normal(0.0, 0.5, count)
        geometry[::20, LOGIT_OPACITIES] = -5.0
        colour[:, SH0] = rng.normal(0, 0.3, (count, 3))
        yield geometry, colour


def focal_of(seen: float, width: int, height: int) -> float:
    """Pixels, for a photo that shows the share `seen` of the field."""
    return math.sqrt(width * height) * HEIGHT / (SIDE * math.sqrt(seen))


def above(seen: float, width: int, height: int) -> Camera:
    """The camera over the middle of the field."""
    pose, focal = np.eye(4), focal_of(seen, width, height)
    pose[2, 3] = HEIGHT
    return Camera(width, height, focal, focal, width / 2, height / 2, pose, 0.1, 1e4)


def write_field(folder: Path, rows: int, seen: float, width: int = 96, height: int = 64) -> None:
    """The COLMAP model (text) and photos of PER_SIDE^2 cameras that see the share `seen` of the field each, and the PLY."""
    rng, model = np.random.default_rng(1), folder / "sparse" / "0"
    model.mkdir(parents=True)
    (folder / "images").mkdir()
    focal, poses = focal_of(seen, width, height), []
    centres = np.linspace(-0.5, 0.5, PER_SIDE) * SIDE * (1 - math.sqrt(seen))
    for k, (y, x) in enumerate((y, x) for y in centres for x in centres):
        noise = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
        noise.resize((width, height), Image.Resampling.BICUBIC).save(folder / "images" / f"{k:04d}.jpg", quality=85)
        poses.append(f"{k + 1} 1 0 0 0 {-x} {-y} {HEIGHT} 1 {k:04d}.jpg\n\n")
    (model / "cameras.txt").write_text(f"1 PINHOLE {width} {height} {focal} {focal} {width / 2} {height / 2}\n")
    (model / "images.txt").write_text("".join(poses))
    (model / "points3D.txt").write_text("".join(f"{k + 1} {k - 5} 0 0 9 9 9 1\n" for k in range(10)))
    write_ply(folder / PLY, field_rows(rows))
