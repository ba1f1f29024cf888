"""Cameras out of files of several tools, in the frame of a model: cameras.json (ours, INRIA's), nerfstudio's camera paths and
transforms.json, COLMAP models.

The first are in the frame of the PLY beside them. The others are in the input's world, from which the model's `offset` is
subtracted; nerfstudio turns, moves and scales that world before it trains, and `dataparser_transforms.json`, which it writes
into its run, undoes it where a copy lies beside the path.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clm.camera import FAR, MAX_SIDE, Camera
from clm.errors import ClmError
from clm.progress import Report, unseen
from clm.scene.cameras import UNREADABLE, camera_from_json, checked_camera, unreadable
from clm.scene.colmap import read_model
from clm.scene.georef import shifted_pose
from clm.scene.undistort import plan_training

_GL = np.diag([1.0, -1.0, -1.0])  # OpenGL's camera axes (y up, looking along -z) as ours; its own inverse
_ACCEPTED = (
    "Pass a cameras.json as written by `clm train`, a camera path of nerfstudio, a transforms.json, or a folder with "
    "a COLMAP model."
)


class CameraFile(NamedTuple):
    """Named cameras of a file. rate: frames per second, if it states one. messages: what the user should know of it."""

    named: list[tuple[str, Camera]]
    rate: float | None = None
    messages: tuple[str, ...] = ()


def read_camera_file(path: Path, offset: np.ndarray, report: Report = unseen) -> CameraFile:
    """Cameras of a file or folder for a model whose frame is the input's minus `offset` [3] f64. Their `near` is 0 where none is
    stated. Raises ClmError naming what is wrong, and which camera it is."""
    if path.is_dir():
        return _of_colmap(path, offset, report)
    try:
        content = json.loads(path.read_text())
    except OSError:
        raise ClmError(f"No such file: {path}.", "Pass test, train, all, or a file. " + _ACCEPTED) from None
    except (ValueError, RecursionError) as error:  # not JSON, or not even text
        raise ClmError(f"{path} is not JSON: {error}.", _ACCEPTED) from None
    if isinstance(content, dict) and "camera_path" in content:
        found = _of_nerfstudio(content, path, offset)
    elif isinstance(content, dict) and "frames" in content:
        found = _of_transforms(content, offset)
    else:
        cameras = camera_from_json(content)
        names = [str(entry.get("img_name", f"camera_{k:05d}")) for k, entry in enumerate(content)]
        found = CameraFile(list(zip(names, cameras, strict=True)))
    if not found.named:
        raise ClmError(f"{path} holds no camera.", _ACCEPTED)
    return found


def _of_colmap(folder: Path, offset: np.ndarray, report: Report) -> CameraFile:
    """At the calibrated sizes, without distortion."""
    model, named = read_model(folder, points=False, report=report), []
    for image in model.images:
        training = plan_training(image.camera, "auto", MAX_SIDE)
        named.append((image.name, training.camera(shifted_pose(image.world_to_camera, offset), 0.0, FAR)))
    return CameraFile(named, None, model.messages)


def _of_nerfstudio(content: dict[str, Any], path: Path, offset: np.ndarray) -> CameraFile:
    """Of its viewer: `camera_to_world` (16 numbers, row by row, OpenGL's axes) and `fov` (degrees, vertical) per frame."""
    kind = content.get("camera_type", "perspective")
    if kind != "perspective":
        raise ClmError(f"{path} is a camera path of type `{kind}`.", "Only perspective cameras are rendered.")
    frames = _listed(content["camera_path"], "camera_path")
    beside = path.with_name("dataparser_transforms.json")
    turn, shift, scale = _nerfstudio_frame(beside) if beside.is_file() else (np.eye(3), np.zeros(3), 1.0)
    named = []
    for k, frame in enumerate(frames):
        try:
            width, height = int(content["render_width"]), int(content["render_height"])
            focal = height / 2 / math.tan(math.radians(float(frame["fov"])) / 2)
            pose = np.array(frame["camera_to_world"], np.float64).reshape(4, 4)
        except (*UNREADABLE, ZeroDivisionError) as error:
            raise unreadable(k, error, "camera_to_world [16], fov; the file, render_width and render_height") from None
        axes, place = turn.T @ pose[:3, :3] @ _GL, turn.T @ (pose[:3, 3] / scale - shift) - offset
        middle = (width / 2, height / 2)
        named.append((f"frame_{k:05d}", checked_camera(k, (width, height), (focal, focal, *middle), axes, place)))
    try:
        rate = float(content["fps"]) if content.get("fps") else None
    except (TypeError, ValueError):
        rate = None
    said = f"{path} is taken back to the input's world by {beside.name}" if beside.is_file() else (
        f"{path} is taken as it is; a path of nerfstudio's own, scaled world needs the {beside.name} of its run beside it"
    )  # fmt: skip
    return CameraFile(named, rate, (said,))


def _nerfstudio_frame(path: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """R [3, 3], t [3], s of nerfstudio's world, s (R x + t) for x of the input's."""
    try:
        content = json.loads(path.read_text())
        transform, scale = np.array(content["transform"], np.float64)[:3].reshape(3, 4), float(content["scale"])
    except (*UNREADABLE, OSError):
        transform, scale = np.zeros((3, 4)), 0.0
    turn = transform[:, :3]
    rigid = np.isfinite(transform).all() and np.abs(turn @ turn.T - np.eye(3)).max() < 1e-3
    if not (rigid and np.linalg.det(turn) > 0 and math.isfinite(scale) and scale > 0):
        raise ClmError(f"{path} does not hold a transform [3][4] and a scale.", "Copy it from nerfstudio's run again.")
    return turn, transform[:, 3], scale


def _of_transforms(content: dict[str, Any], offset: np.ndarray) -> CameraFile:
    """Of instant-ngp and `ns-process-data`: `transform_matrix` (camera to world, OpenGL's axes); distortion is left out."""
    back = np.eye(4)  # from its world to the input's
    if "applied_transform" in content:
        try:
            back[:3] = np.array(content["applied_transform"], np.float64)[:3].reshape(3, 4)
            back[:] = np.linalg.inv(back)
        except (*UNREADABLE, np.linalg.LinAlgError):
            raise ClmError("`applied_transform` of the camera file is no transform.", "It must be [3][4].") from None
    named = []
    for k, frame in enumerate(_listed(content["frames"], "frames")):
        try:
            of = {**content, **frame}
            width, height = int(of["w"]), int(of["h"])
            fx = of["fl_x"] if "fl_x" in of else width / 2 / math.tan(float(of["camera_angle_x"]) / 2)
            fx, fy = float(fx), float(of.get("fl_y", fx))
            middle = float(of.get("cx", width / 2)), float(of.get("cy", height / 2))
            pose = back @ np.array(of["transform_matrix"], np.float64).reshape(4, 4)
            name = str(of.get("file_path", f"camera_{k:05d}"))
        except (*UNREADABLE, ZeroDivisionError) as error:
            raise unreadable(k, error, "transform_matrix [4][4], w, h, and fl_x or camera_angle_x") from None
        axes, place = pose[:3, :3] @ _GL, pose[:3, 3] - offset
        named.append((name, checked_camera(k, (width, height), (fx, fy, *middle), axes, place)))
    return CameraFile(named)


def _listed(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise ClmError(f"`{key}` of the camera file is not a list of cameras.", _ACCEPTED)
    return value
