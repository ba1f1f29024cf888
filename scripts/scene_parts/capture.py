"""Cameras, the photos that they take of what a `Shade` shows, and the COLMAP model of them.

Scenes are made with z up, in metres; a model's world is y down, as viewers expect of a PLY. Poses are world to camera,
[4, 4] f64, OpenCV axes. One camera takes all photos of a scene.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pycolmap

from scene_parts.solids import dot

SAMPLES = 2  # rays per pixel and axis
QUALITY = 90
Z_UP_TO_Y_DOWN = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])

Shade = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""(origins, unit directions [3, k] f32, which of a pixel's rays they are) -> linear RGB [k, 3]."""


class Lens(NamedTuple):
    width: int  # pixels
    height: int
    focal: float


def pose_of(centre: np.ndarray, right: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """The pose of a camera at `centre`, from two perpendicular unit vectors of the world."""
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(forward, right), forward])
    pose[:3, 3] = -pose[:3, :3] @ centre
    return pose


def rays(lens: Lens, pose: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Origins and unit directions [3, k] f32 through image positions in pixels."""
    local = np.stack([(x - lens.width / 2) / lens.focal, (y - lens.height / 2) / lens.focal, np.ones_like(x)])
    direction = pose[:3, :3].T @ (local / np.sqrt(dot(local, local)))
    origin = np.broadcast_to(-(pose[:3, :3].T @ pose[:3, 3:]), direction.shape)
    return origin.astype(np.float32), direction.astype(np.float32)


def project(lens: Lens, pose: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [..., 2] and camera z [...] of world positions [..., 3]."""
    local = p @ pose[:3, :3].T + pose[:3, 3]
    return local[..., :2] / local[..., 2:] * lens.focal + [lens.width / 2, lens.height / 2], local[..., 2]


def encoded(color: np.ndarray) -> np.ndarray:
    """Linear light as a display wants it, 0..1."""
    return np.clip(color, 0, 1) ** (1 / 2.2)


def photo(lens: Lens, pose: np.ndarray, shade: Shade, band: int) -> np.ndarray:
    """The photo [H, W, 3] uint8 of one camera, `band` rows of pixels at a time."""
    image = np.zeros((lens.height, lens.width, 3), np.float32)
    for top in range(0, lens.height, band):
        rows = min(band, lens.height - top)
        y, x = np.divmod(np.arange(rows * lens.width), lens.width)
        for share in range(SAMPLES**2):
            dx, dy = ((share % SAMPLES) + 0.5) / SAMPLES, ((share // SAMPLES) + 0.5) / SAMPLES
            color = shade(*rays(lens, pose, x + dx, top + y + dy), share)
            # Encoded before averaging, so that a highlight does not eat the edge it shares a pixel with.
            image[top : top + rows] += encoded(color).reshape(rows, lens.width, 3)
    return np.round(image / SAMPLES**2 * 255).astype(np.uint8)


def model_of(
    lens: Lens,
    views: Sequence[np.ndarray],
    names: Sequence[str],
    observed: Sequence[Sequence[np.ndarray]] | None = None,
) -> pycolmap.Reconstruction:
    """The COLMAP model without points, in the y-down world. observed: for each view, the pixels [2] of its points."""
    model = pycolmap.Reconstruction()
    parameters = [lens.focal, lens.focal, lens.width / 2, lens.height / 2]
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(camera_id=1, model="PINHOLE", width=lens.width, height=lens.height, params=parameters)
    )
    for view, pose in enumerate(views):
        turned = pose[:3, :3] @ Z_UP_TO_Y_DOWN.T
        image = pycolmap.Image(name=names[view], camera_id=1, image_id=view + 1)
        if observed is not None:
            image.points2D = pycolmap.Point2DList([pycolmap.Point2D(pixel) for pixel in observed[view]])
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pycolmap.Rotation3d(turned), pose[:3, 3]))
    return model
