"""Small COLMAP scenes for tests, written through pycolmap: cameras on an arc that look at a handful of points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
from PIL import Image

POINTS = np.random.default_rng(5).uniform(-1, 1, (20, 3))
POSITIVE = ("OPENCV", [60.0, 61.0, 41.0, 29.0, 0.05, 0.01, 0.001, -0.002])


def names(count: int) -> list[str]:
    return [f"{i:03d}.png" for i in range(count)]


def pose(angle: float, shift: np.ndarray) -> np.ndarray:
    """World to camera [3, 4] of a camera 6 units from `shift`, looking at it."""
    c, s = np.cos(angle), np.sin(angle)
    rotation = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    return np.column_stack([rotation, np.array([0, 0, 6.0]) - rotation @ shift])


def write_model(
    folder: Path,
    image_names: list[str],
    *,
    camera: tuple[str, list[float]] = ("PINHOLE", [60.0, 60.0, 40.0, 30.0]),
    size: tuple[int, int] = (80, 60),
    text: bool = False,
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
    with_points: bool = True,
) -> None:
    """A model without observations; image i sees the points from 0.1 i radians along the arc."""
    folder.mkdir(parents=True)
    model = pycolmap.Reconstruction()
    name, params = camera
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(
            camera_id=1, model=getattr(pycolmap.CameraModelId, name), width=size[0], height=size[1], params=params
        )
    )
    for i, image_name in enumerate(image_names):
        image = pycolmap.Image(name=image_name, camera_id=1, image_id=i + 1)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose(0.1 * i, np.array(shift))))
    for xyz in POINTS + np.array(shift) if with_points else []:
        model.add_point3D(xyz, pycolmap.Track(), np.array([10, 20, 30], np.uint8))
    (model.write_text if text else model.write_binary)(str(folder))


def write_photo(path: Path, size: tuple[int, int] = (80, 60), value: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels if value is None else np.full_like(pixels, value)).save(path)


def write_scene(path: Path, count: int = 4, *, photo_size: tuple[int, int] = (80, 60), **model: object) -> Path:
    """path/sparse/0 and path/images with `count` photos; returns path."""
    write_model(path / "sparse" / "0", names(count), **model)  # type: ignore[arg-type]
    for name in names(count):
        write_photo(path / "images" / name, photo_size)
    return path
