"""Normals of surfaces, from depth: what a renderer gives for nothing that has depth.

A pixel's normal is that of the plane through the points which its neighbours to the left, right, above and below see, so it is as
rough as the depth is, and none at an edge of what was drawn.
"""

from __future__ import annotations

import numpy as np

from clm.camera import Camera


def normals_of_depth(depth: np.ndarray, camera: Camera) -> np.ndarray:
    """Unit normals [H, W, 3] f32 towards the camera, in its axes (x right, y down, z forward), of depth [H, W] f32 along its
    viewing direction; zeros where the pixel or one of its four neighbours saw nothing."""
    height, width = depth.shape
    x = (np.arange(width, dtype=np.float32) + 0.5 - np.float32(camera.cx)) / np.float32(camera.fx)
    y = (np.arange(height, dtype=np.float32) + 0.5 - np.float32(camera.cy)) / np.float32(camera.fy)
    points = np.stack([depth * x, depth * y[:, None], depth], axis=2)  # [H, W, 3]
    normals = np.zeros((height, width, 3), np.float32)
    if min(height, width) < 3:
        return normals
    across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    inner = np.cross(down, across)  # of a plane that faces the camera: -z
    length = np.sqrt((inner * inner).sum(axis=2, keepdims=True))
    seen = depth > 0
    known = (
        seen[1:-1, 1:-1] & seen[1:-1, 2:] & seen[1:-1, :-2] & seen[2:, 1:-1] & seen[:-2, 1:-1] & (length[..., 0] > 0)
    )
    np.divide(inner, length, out=normals[1:-1, 1:-1], where=known[..., None])
    return normals


def normal_colours(normals: np.ndarray) -> np.ndarray:
    """[H, W, 3] u8 as normal maps are painted: x right red, y up green, z towards the viewer blue; black where there is none."""
    pixels = np.rint((normals * np.array([1, -1, -1], np.float32) + 1) * np.float32(127.5)).astype(np.uint8)
    pixels[~normals.any(axis=2)] = 0
    return pixels
