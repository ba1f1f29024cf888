"""The browser's frame: the model's, moved and scaled so that the browser's controls suit it, and cameras between the two.

Those controls know scenes of an ordinary size only: they see from 0.01 to 1000 units, and come no nearer than 0.1 to what they turn
around. So the middle of the scene is the origin there, and its size a few units, whatever its unit is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clm.camera import FAR, Camera
from clm.extent import FAR_PER_NEAR, camera_spread, near_plane, view_distance
from clm.scene.cameras import pose_of

_SIZE = 3.0  # of a scene in the browser: the distance from its middle to its usual cameras
_FOV = math.radians(60.0)  # of a browser that nothing was said to, vertical
_SAME = 1e-4  # of a position in units of the browser, of a quaternion, of a field of view in radians: as it comes back


@dataclass(frozen=True, eq=False)
class Gaze:
    """Where a browser looks from, in its own frame."""

    wxyz: np.ndarray  # [4] f64 unit quaternion, camera to world, OpenCV axes
    position: np.ndarray  # [3] f64
    fov: float  # radians, vertical
    width: int  # px of the canvas
    height: int

    def same_place(self, other: Gaze) -> bool:
        """Whether both see the same, up to what numbers lose on their way to a browser and back."""
        apart = float(np.abs(self.position - other.position).max())
        turned = 1.0 - abs(float(self.wxyz @ other.wxyz))
        return max(apart, abs(self.fov - other.fov)) <= _SAME and turned <= _SAME**2


@dataclass(frozen=True, eq=False)
class Frame:
    """browser = (model - middle) * scale. up [3]: unit length. near, far: of cameras made here, in the model's unit."""

    middle: np.ndarray  # [3] f64
    scale: float
    up: np.ndarray  # [3] f64, the same in both
    near: float
    far: float
    start: Camera  # where a browser that opens looks from

    @staticmethod
    def of(cameras: Sequence[Camera], centres: np.ndarray) -> Frame:
        """For a scene with these cameras (none: they look from outside) and with rows around `centres` [n, 3] (a sample)."""
        if len(centres) == 0:
            centres = np.zeros((1, 3))
        centres = centres[np.isfinite(centres).all(axis=1)].astype(np.float64)
        if not cameras:
            return Frame._from_outside(centres)
        places = np.array([camera.position for camera in cameras])
        middle, spread = camera_spread(places)
        size = max(spread, view_distance(places, centres)) or 1.0
        up = -np.mean([camera.world_to_camera[1, :3] for camera in cameras], axis=0)
        length = float(np.linalg.norm(up))
        up = up / length if length > 0.05 else np.array([0.0, -1.0, 0.0])
        return Frame(middle, _SIZE / size, up, cameras[0].near, cameras[0].far, cameras[0])

    @staticmethod
    def _from_outside(centres: np.ndarray) -> Frame:
        middle = np.median(centres, axis=0)
        size = float(np.quantile(np.linalg.norm(centres - middle, axis=1), 0.9)) or 1.0
        position = middle - np.array([0.0, 0.0, 2.0 * size])
        near = near_plane(position[None], centres)
        pixels = 0.5 / math.tan(_FOV / 2)  # focal length over the height
        pose = pose_of(np.eye(3), position)
        start = Camera(960, 720, 720 * pixels, 720 * pixels, 480.0, 360.0, pose, near, FAR_PER_NEAR * near)
        return Frame(middle, _SIZE / size, np.array([0.0, -1.0, 0.0]), near, max(FAR, FAR_PER_NEAR * near), start)

    def to_browser(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 3] of the model."""
        return (points - self.middle) * self.scale

    def camera(self, gaze: Gaze, width: int, height: int) -> Camera:
        """What the browser sees, as a picture of width x height px (of the canvas's shape)."""
        focal = 0.5 * height / math.tan(0.5 * gaze.fov)
        position = np.asarray(gaze.position, np.float64) / self.scale + self.middle
        pose = pose_of(matrix_of(gaze.wxyz), position)
        return Camera(width, height, focal, focal, 0.5 * width, 0.5 * height, pose, self.near, self.far)

    def gaze(self, camera: Camera, width: int, height: int) -> Gaze:
        """From where a browser with such a canvas sees all that the camera sees."""
        whole = inside(camera, width, height)
        return Gaze(
            quaternion_of(camera.world_to_camera[:3, :3].T),
            self.to_browser(camera.position),
            2.0 * math.atan(0.5 * height / whole.fy),
            width,
            height,
        )


def inside(camera: Camera, width: int, height: int) -> Camera:
    """The camera with its picture as large as it fits into the middle of width x height px (`rectangle`), which show what is
    around it, too."""
    left, top, right, bottom = rectangle(camera, width, height)
    whole = camera.resized(right - left, bottom - top)
    intrinsics = (whole.fx, whole.fy, whole.cx + left, whole.cy + top)
    return Camera(width, height, *intrinsics, camera.world_to_camera, camera.near, camera.far)


def rectangle(camera: Camera, width: int, height: int) -> tuple[int, int, int, int]:
    """Where the camera's own picture is in that of `inside`, in whole pixels: left, top, right, bottom."""
    scale = min(width / camera.width, height / camera.height)
    w, h = min(width, max(1, round(scale * camera.width))), min(height, max(1, round(scale * camera.height)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def matrix_of(wxyz: np.ndarray) -> np.ndarray:
    """Rotation matrix [3, 3] of a quaternion [4], which need not have unit length."""
    w, x, y, z = np.asarray(wxyz, np.float64) / np.linalg.norm(wxyz)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_of(rotation: np.ndarray) -> np.ndarray:
    """Unit quaternion [4] (wxyz, w >= 0) of a rotation matrix [3, 3]: the eigenvector of Bar-Itzhack's symmetric matrix that
    belongs to its largest eigenvalue, which is well conditioned for every angle."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation
    k = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, xy + yx, xz + zx],
            [xz - zx, xy + yx, yy - xx - zz, yz + zy],
            [yx - xy, xz + zx, yz + zy, zz - xx - yy],
        ]
    )
    wxyz = np.linalg.eigh(k / 3.0)[1][:, -1]
    return wxyz if wxyz[0] >= 0 else -wxyz
