"""Cameras as `cameras.json` entries (the format of INRIA's viewer and its relatives) and cameras along a path.

Entries are in the frame of the PLY beside them. `cx`, `cy`, `near`, `far` are ours: readers that do not know them ignore
them, and without them an off-centre principal point would be lost; read back, the first two default to the image centre.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from clm.camera import FAR, MAX_PIXELS, MAX_SIDE, MAX_VALUE, Camera
from clm.errors import ClmError
from clm.scene.scene import Scene


def cameras_json(scene: Scene) -> list[dict[str, Any]]:
    """One entry per view: id, img_name, width, height (px), position, rotation (camera to world), fx, fy, cx, cy."""
    entries = []
    for index, view in enumerate(scene.views):
        camera = view.camera
        entries.append(
            {
                "id": index,
                "img_name": view.name,
                "width": camera.width,
                "height": camera.height,
                "position": camera.position.tolist(),
                "rotation": camera.world_to_camera[:3, :3].T.tolist(),
                "fx": camera.fx,
                "fy": camera.fy,
                "cx": camera.cx,
                "cy": camera.cy,
                "near": camera.near,
                "far": camera.far,
            }
        )
    return entries


def camera_from_json(entries: Any) -> list[Camera]:
    """Cameras of a parsed cameras.json, in its order; `near` is 0 where an entry states none. Raises ClmError naming the
    entry that is not a camera."""
    if not isinstance(entries, list):
        raise ClmError(
            "The camera file is not a list of cameras.", "Each entry needs width, height, position, rotation, fx, fy."
        )
    return [_camera(index, entry) for index, entry in enumerate(entries)]


def _camera(index: int, entry: Any) -> Camera:
    try:
        width, height = int(entry["width"]), int(entry["height"])
        rotation = np.array(entry["rotation"], dtype=np.float64).reshape(3, 3)
        position = np.array(entry["position"], dtype=np.float64).reshape(3)
        fx, fy = float(entry["fx"]), float(entry["fy"])
        cx, cy = float(entry.get("cx", width / 2)), float(entry.get("cy", height / 2))
        near, far = float(entry.get("near", 0.0)), float(entry.get("far", FAR))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"`{error.args[0]}` is missing" if isinstance(error, KeyError) else str(error)
        raise ClmError(
            f"Camera {index} of the camera file cannot be read: {what}.",
            "An entry needs width, height, position [3], rotation [3][3] (camera to world), fx, fy.",
        ) from None
    if not (min(width, height) >= 1 and max(width, height) <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise ClmError(
            f"Camera {index} of the camera file is {width}x{height} px, which is no size of a picture.",
            f"At most {MAX_PIXELS:,} pixels are rendered at once.",
        )
    values = [*position, cx, cy, fx, fy, near]
    rigid = np.isfinite(rotation).all() and np.abs(rotation @ rotation.T - np.eye(3)).max() < 1e-3
    if not rigid or np.linalg.det(rotation) <= 0 or not np.isfinite([*values, far]).all() or min(fx, fy) <= 0:
        raise ClmError(f"Camera {index} of the camera file is not a rigid pinhole camera with finite values.")
    if max(map(abs, values)) > MAX_VALUE or not (0 <= near < far):
        raise ClmError(f"Camera {index} of the camera file has values that no picture can be rendered with.")
    return Camera(width, height, fx, fy, cx, cy, _pose(rotation, position), near, far)


def _pose(camera_to_world: np.ndarray, position: np.ndarray) -> np.ndarray:
    """World to camera [4, 4] f64 from axes [3, 3] (columns) and centre [3]."""
    pose = np.eye(4)
    pose[:3, :3] = camera_to_world.T
    pose[:3, 3] = -camera_to_world.T @ position
    return pose


def interp_path(cameras: Sequence[Camera], n: int) -> list[Camera]:
    """n cameras from the first view through all to the last: centres in straight lines, rotations by slerp.

    The intrinsics and the size are those of the first view, so that every frame of a video has one size.
    """
    first = cameras[0]
    centres = np.array([camera.position for camera in cameras])
    rotations = [camera.world_to_camera[:3, :3].T for camera in cameras]
    path = []
    for t in np.linspace(0.0, len(cameras) - 1, n):
        i = min(int(t), max(0, len(cameras) - 2))
        j = min(i + 1, len(cameras) - 1)
        part = t - i
        rotation = slerp(rotations[i], rotations[j], part)
        path.append(_like(first, rotation, centres[i] + part * (centres[j] - centres[i])))
    return path


def slerp(start: np.ndarray, end: np.ndarray, part: float) -> np.ndarray:
    """Rotation [3, 3] on the shortest arc from start (part 0) to end (part 1): start @ exp(part * log(start^T end))."""
    relative = start.T @ end
    angle = np.arccos(np.clip((np.trace(relative) - 1) / 2, -1.0, 1.0))
    if angle < 1e-9:
        return start
    # The axis is the eigenvector of eigenvalue 1; near 180 degrees the antisymmetric part vanishes, this does not.
    symmetric = (relative + relative.T) / 2
    axis = np.linalg.eigh(symmetric)[1][:, -1]
    skew = np.array([relative[2, 1] - relative[1, 2], relative[0, 2] - relative[2, 0], relative[1, 0] - relative[0, 1]])
    if axis @ skew < 0:
        axis = -axis
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn = np.eye(3) + np.sin(part * angle) * cross + (1 - np.cos(part * angle)) * cross @ cross  # Rodrigues
    return start @ turn


def ellipse_path(cameras: Sequence[Camera], n: int) -> list[Camera]:
    """n cameras around an ellipse through the region of the views, all looking at the point the views look at.

    The ellipse lies across the mean up direction of the views; its half axes are the 90th percentiles of the camera
    offsets along their two principal directions there (after the render path of Mip-NeRF 360).
    """
    centres = np.array([camera.position for camera in cameras])
    forwards = np.array([camera.forward for camera in cameras])
    up = _mean_up(cameras, forwards)
    focus = _focus(centres, forwards)
    middle = centres.mean(axis=0)
    flat = (centres - middle) - np.outer((centres - middle) @ up, up)
    first_axis = np.linalg.svd(flat, full_matrices=True)[2][0]
    first_axis = _unit(first_axis - (first_axis @ up) * up, _any_perpendicular(up))
    second_axis = np.cross(up, first_axis)
    a, b = (np.quantile(np.abs(flat @ axis), 0.9) for axis in (first_axis, second_axis))
    path = []
    for angle in np.linspace(0.0, 2 * np.pi, n, endpoint=False):
        position = middle + a * np.cos(angle) * first_axis + b * np.sin(angle) * second_axis
        path.append(_like(cameras[0], _looking(position, focus, up, forwards.mean(axis=0)), position))
    return path


def _mean_up(cameras: Sequence[Camera], forwards: np.ndarray) -> np.ndarray:
    """Mean upward direction of the images; where these cancel (a survey flown to and fro), against the view direction."""
    up = -np.mean([camera.world_to_camera[1, :3] for camera in cameras], axis=0)
    return (
        up / np.linalg.norm(up)
        if np.linalg.norm(up) > 0.3
        else _unit(-forwards.mean(axis=0), np.array([0.0, 0.0, 1.0]))
    )


def _focus(centres: np.ndarray, forwards: np.ndarray) -> np.ndarray:
    """The point nearest to all optical axes [3], where it lies before most cameras; else one ahead of their middle.

    Nearly parallel axes (a survey that looks straight down) meet anywhere, behind the cameras as well.
    """
    across = np.eye(3) - forwards[:, :, None] * forwards[:, None, :]  # [V, 3, 3]
    spread = np.linalg.norm(centres - centres.mean(axis=0), axis=1).max() or 1.0
    ahead = centres.mean(axis=0) + spread * forwards.mean(axis=0)
    ridge = 1e-2 * np.eye(3)  # keeps the system regular: axes that are all parallel leave one direction open
    normal = across.mean(axis=0) + ridge
    nearest = np.linalg.solve(normal, (across @ centres[:, :, None]).mean(axis=0)[:, 0] + ridge @ ahead)
    in_front = ((nearest - centres) * forwards).sum(axis=1) > 0
    return nearest if in_front.mean() > 0.75 else ahead


def _looking(position: np.ndarray, target: np.ndarray, up: np.ndarray, default: np.ndarray) -> np.ndarray:
    """Camera axes (columns right, down, forward) [3, 3] at `position`, looking at `target`."""
    forward = _unit(target - position, default)
    right = _unit(np.cross(forward, up), _any_perpendicular(forward))
    return np.stack([right, np.cross(forward, right), forward], axis=1)


def _unit(vector: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector)
    return vector / length if length > 1e-9 else otherwise / np.linalg.norm(otherwise)


def _any_perpendicular(vector: np.ndarray) -> np.ndarray:
    other = np.eye(3)[np.argmin(np.abs(vector))]
    cross = np.cross(vector, other)
    return cross / np.linalg.norm(cross)


def _like(camera: Camera, camera_to_world: np.ndarray, position: np.ndarray) -> Camera:
    pose = _pose(camera_to_world, position)
    return dataclasses.replace(camera, world_to_camera=pose)
