"""A pinhole camera: the one description of a view that the scene, the plan and the renderers share."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

MAX_SIDE, MAX_PIXELS = 1 << 16, 1 << 28  # beyond, a size is damage, not a picture; 2^28 pixels render in 8 GiB
MAX_VALUE = 1e18  # of lengths and pixels: its square is still a float32
NEAR, FAR = 0.01, 1e10  # gsplat's; a scene's own follow its unit (`clm.extent.near_plane`)


@dataclass(frozen=True, eq=False)
class Camera:
    """Undistorted pinhole camera, OpenCV axes (x right, y down, z forward). Pixel (j, i) has its centre at (j+0.5, i+0.5)."""

    width: int  # px
    height: int  # px
    fx: float  # px
    fy: float  # px
    cx: float  # px, from the left edge of the image
    cy: float  # px, from the top edge
    world_to_camera: np.ndarray = field(repr=False)  # [4, 4] f64, rigid
    near: float = NEAR  # scene units: nothing nearer or farther is drawn
    far: float = FAR

    @property
    def K(self) -> np.ndarray:
        """Intrinsics [3, 3] f64."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    @property
    def position(self) -> np.ndarray:
        """Camera centre in world coordinates [3] f64."""
        return -self.world_to_camera[:3, :3].T @ self.world_to_camera[:3, 3]

    @property
    def forward(self) -> np.ndarray:
        """Viewing direction in world coordinates [3] f64, unit length."""
        return self.world_to_camera[2, :3]

    def resized(self, width: int, height: int) -> Camera:
        """The same camera for an image resampled to width x height; each axis is scaled by its own exact ratio."""
        sx, sy = width / self.width, height / self.height
        intrinsics = (self.fx * sx, self.fy * sy, self.cx * sx, self.cy * sy)
        return Camera(width, height, *intrinsics, self.world_to_camera, self.near, self.far)

    def fitted(self, width: int, height: int) -> Camera:
        """For a picture of width x height whatever its shape, without stretching: the angle across its diagonal stays. The same
        as `resized` where the shape does, up to a pixel."""
        if abs(width * self.height - height * self.width) <= max(self.width, self.height):
            return self.resized(width, height)
        sx, sy = width / self.width, height / self.height
        scale = float(np.hypot(width, height) / np.hypot(self.width, self.height))
        intrinsics = (self.fx * scale, self.fy * scale, self.cx * sx, self.cy * sy)
        return Camera(width, height, *intrinsics, self.world_to_camera, self.near, self.far)

    @cached_property
    def packed(self) -> np.ndarray:
        """What the kernels take: rows of [R|t] (12), fx, fy, cx, cy, width, height, centre xyz. [21] f32, read-only."""
        w2c = self.world_to_camera[:3, :4].reshape(-1)
        rest = [self.fx, self.fy, self.cx, self.cy, self.width, self.height, *self.position]
        packed = np.ascontiguousarray(np.concatenate([w2c, rest]), dtype=np.float32)
        packed.flags.writeable = False
        return packed
