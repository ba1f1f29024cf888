"""Cameras as `cameras.json` entries (the format of INRIA's viewer and its relatives).

Entries are in the frame of the PLY beside them. `cx`, `cy`, `near`, `far` are ours: readers that do not know them ignore
them, and without them an off-centre principal point would be lost; read back, the first two default to the image centre.
"""

from __future__ import annotations

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
    except UNREADABLE as error:
        raise unreadable(
            index, error, "width, height, position [3], rotation [3][3] (camera to world), fx, fy"
        ) from None
    return checked_camera(index, (width, height), (fx, fy, cx, cy), rotation, position, near, far)


UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError)  # what odd JSON raises


def unreadable(index: int, error: BaseException, needs: str) -> ClmError:
    """For an entry of a camera file from which one of `UNREADABLE` was raised. needs: the keys of an entry."""
    what = f"`{error.args[0]}` is missing" if isinstance(error, KeyError) and error.args else str(error)
    return ClmError(f"Camera {index} of the camera file cannot be read: {what}.", f"An entry needs {needs}.")


def checked_camera(
    index: int,
    size: tuple[int, int],
    intrinsics: tuple[float, float, float, float],
    rotation: np.ndarray,
    position: np.ndarray,
    near: float = 0.0,
    far: float = FAR,
) -> Camera:
    """The camera that entry `index` of a file describes. size: width and height, intrinsics: fx, fy, cx, cy (px); rotation
    [3, 3] f64 camera to world, position [3] f64. Raises ClmError where no picture can be rendered with it."""
    width, height = size
    fx, fy, cx, cy = intrinsics
    if not (min(size) >= 1 and max(size) <= MAX_SIDE and width * height <= MAX_PIXELS):
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
    return Camera(width, height, fx, fy, cx, cy, pose_of(rotation, position), near, far)


def pose_of(camera_to_world: np.ndarray, position: np.ndarray) -> np.ndarray:
    """World to camera [4, 4] f64 from axes [3, 3] (columns) and centre [3]."""
    pose = np.eye(4)
    pose[:3, :3] = camera_to_world.T
    pose[:3, 3] = -camera_to_world.T @ position
    return pose
