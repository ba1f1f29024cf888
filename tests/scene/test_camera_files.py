"""Cameras of several tools come to the same views, and what is no camera is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clm.camera import Camera
from clm.errors import ClmError
from clm.scene import load_scene
from clm.scene.camera_files import read_camera_file
from clm.scene.cameras import cameras_json
from clm.scene.paths import turned
from tests.scene.synthetic import POSITIVE, write_scene

HERE = np.zeros(3)
GL = np.diag([1.0, -1.0, -1.0, 1.0])


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scene(tmp_path_factory.mktemp("scene"), 3)


@pytest.fixture(scope="module")
def cameras(scene_folder: Path) -> list[Camera]:
    return [view.camera for view in load_scene(scene_folder).views]


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def gl_pose(camera: Camera) -> np.ndarray:
    """Camera to world [4, 4], OpenGL's axes."""
    return np.linalg.inv(camera.world_to_camera) @ GL


def assert_same(found: list[tuple[str, Camera]], cameras: list[Camera]) -> None:
    assert len(found) == len(cameras)
    for (_, ours), theirs in zip(found, cameras, strict=True):
        assert (ours.width, ours.height) == (theirs.width, theirs.height)
        np.testing.assert_allclose(ours.world_to_camera, theirs.world_to_camera, atol=1e-9)
        np.testing.assert_allclose(ours.K, theirs.K, atol=1e-9)


def nerfstudio(cameras: list[Camera], turn: np.ndarray, shift: np.ndarray, scale: float) -> dict[str, Any]:
    """A camera path as its viewer writes it, in its world s (R x + t)."""
    frames = []
    for camera in cameras:
        pose = gl_pose(camera)
        pose[:3, :3], pose[:3, 3] = turn @ pose[:3, :3], scale * (turn @ pose[:3, 3] + shift)
        fov = 2 * np.degrees(np.arctan(camera.height / 2 / camera.fy))
        frames.append({"camera_to_world": pose.flatten().tolist(), "fov": fov, "aspect": 4 / 3})
    size = {"render_width": cameras[0].width, "render_height": cameras[0].height}
    return {"camera_type": "perspective", **size, "camera_path": frames, "fps": 24, "seconds": 4, "keyframes": []}


def test_a_camera_path_of_nerfstudio_is_read_with_its_rate(tmp_path: Path, cameras: list[Camera]) -> None:
    found = read_camera_file(written(tmp_path / "p.json", nerfstudio(cameras, np.eye(3), HERE, 1.0)), HERE)
    assert_same(found.named, cameras)
    assert found.rate == 24 and "dataparser_transforms.json" in found.messages[0]
    assert [name for name, _ in found.named] == ["frame_00000", "frame_00001", "frame_00002"]
    assert all(camera.near == 0 for _, camera in found.named), "it states no near plane"


def test_the_world_of_nerfstudio_is_undone_by_the_file_beside_the_path(tmp_path: Path, cameras: list[Camera]) -> None:
    turn, shift, scale = turned(np.array([0.3, -1.0, 0.7])), np.array([1.0, 2.0, -3.0]), 0.125
    path = written(tmp_path / "p.json", nerfstudio(cameras, turn, shift, scale))
    transform = np.column_stack([turn, shift]).tolist()
    beside = written(tmp_path / "dataparser_transforms.json", {"transform": transform, "scale": scale})
    assert_same(read_camera_file(path, HERE).named, cameras)
    for damage in ({"scale": 0.0}, {"transform": [[1, 2]]}, {"transform": np.zeros((3, 4)).tolist()}):
        written(beside, {"transform": transform, "scale": scale, **damage})
        with pytest.raises(ClmError, match=r"dataparser_transforms\.json does not hold a transform"):
            read_camera_file(path, HERE)


def test_a_transforms_json_is_read_and_what_was_applied_to_it_undone(tmp_path: Path, cameras: list[Camera]) -> None:
    applied = np.array([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 2]])
    first = cameras[0]
    content: dict[str, Any] = {"w": 80, "h": 60, "fl_x": first.fx, "cx": first.cx, "cy": first.cy}
    poses = [np.vstack([applied, [0, 0, 0, 1]]) @ gl_pose(camera) for camera in cameras]
    content["frames"] = [{"file_path": f"a/{k}.png", "transform_matrix": p.tolist()} for k, p in enumerate(poses)]
    found = read_camera_file(written(tmp_path / "t.json", {**content, "applied_transform": applied.tolist()}), HERE)
    assert_same(found.named, cameras)
    assert found.named[2][0] == "a/2.png"
    angle = {"camera_angle_x": 2 * np.arctan(40 / first.fx), "w": 80, "h": 60, "frames": content["frames"][:1]}
    assert read_camera_file(written(tmp_path / "a.json", angle), HERE).named[0][1].fx == pytest.approx(first.fx)


def test_a_colmap_model_gives_undistorted_cameras_in_the_frame_of_the_model(tmp_path: Path) -> None:
    folder = write_scene(tmp_path / "scene", 3, camera=POSITIVE)
    expected = [view.camera for view in load_scene(folder).views]
    found = read_camera_file(folder, HERE)
    assert_same(found.named, expected)
    assert [name for name, _ in found.named] == ["000.png", "001.png", "002.png"]
    offset = np.array([10.0, -20.0, 5.0])
    for (_, moved), camera in zip(read_camera_file(folder, offset).named, expected, strict=True):
        np.testing.assert_allclose(moved.position, camera.position - offset, atol=1e-9)
    (folder / "sparse" / "0" / "points3D.bin").unlink()
    assert_same(read_camera_file(folder / "sparse" / "0", HERE).named, expected)  # points are not read


def test_our_own_file_is_in_the_frame_of_the_ply_beside_it(tmp_path: Path, scene_folder: Path) -> None:
    scene = load_scene(scene_folder)
    path = written(tmp_path / "cameras.json", cameras_json(scene))
    assert_same(read_camera_file(path, np.array([100.0, 0, 0])).named, [view.camera for view in scene.views])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "not a list of cameras"),
        ({"camera_path": {}}, "`camera_path` of the camera file is not a list"),
        ({"camera_path": []}, "holds no camera"),
        ({"camera_path": [{"fov": 50}]}, r"Camera 0 .*`render_width` is missing"),
        ({"camera_path": [{"fov": 50}], "render_width": 8, "render_height": 8}, r"Camera 0 .*`camera_to_world`"),
        ({"camera_path": [{"fov": 0, "camera_to_world": list(range(16))}], "render_width": 8, "render_height": 8}, "0"),
        ({"camera_path": [7], "render_width": 8, "render_height": 8}, "Camera 0"),
        ({"camera_path": [], "camera_type": "equirectangular"}, "of type `equirectangular`"),
        ({"frames": 3}, "`frames` of the camera file is not a list"),
        ({"frames": [{"transform_matrix": np.eye(4).tolist()}]}, r"Camera 0 .*`w` is missing"),
        ({"frames": [{"transform_matrix": np.eye(4).tolist()}], "w": 8, "h": 8}, r"`camera_angle_x` is missing"),
        ({"frames": [{"transform_matrix": [[2]]}], "w": 8, "h": 8, "fl_x": 9}, "Camera 0"),
        ({"frames": [{"transform_matrix": np.zeros((4, 4)).tolist()}], "w": 8, "h": 8, "fl_x": 9}, "rigid"),
        ({"frames": [], "applied_transform": np.zeros((3, 4)).tolist()}, "`applied_transform` .* is no transform"),
    ],
)
def test_a_file_of_another_tool_that_is_damaged_is_named(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(ClmError, match=said):
        read_camera_file(written(tmp_path / "p.json", content), HERE)
