"""cameras.json out and in, and cameras along a path."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from clm.errors import ClmError
from clm.scene import camera_from_json, cameras_json, ellipse_path, interp_path, load_scene
from clm.scene.cameras import slerp
from tests.conftest import scene_path
from tests.scene.synthetic import POSITIVE, write_scene


def _axis_turn(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def test_cameras_survive_json_with_their_principal_point(tmp_path: Path) -> None:
    scene = load_scene(write_scene(tmp_path, 3, camera=POSITIVE))
    entries = json.loads(json.dumps(cameras_json(scene)))
    assert [e["id"] for e in entries] == [0, 1, 2] and entries[1]["img_name"] == "001.png"
    for camera, view, entry in zip(camera_from_json(entries), scene.views, entries, strict=True):
        np.testing.assert_allclose(camera.packed, view.camera.packed, atol=1e-6)
        np.testing.assert_allclose(entry["position"], view.camera.position)
        np.testing.assert_allclose(np.array(entry["rotation"])[:, 2], view.camera.forward)


def test_a_file_without_principal_points_gets_the_image_centre(tmp_path: Path) -> None:
    entries = cameras_json(load_scene(write_scene(tmp_path, 1)))
    for entry in entries:
        del entry["cx"], entry["cy"]
    camera = camera_from_json(entries)[0]
    assert (camera.cx, camera.cy) == (40.0, 30.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fx": None}, "Camera 1"),
        ({"rotation": [[1, 0, 0]]}, "Camera 1"),
        ({"rotation": np.zeros((3, 3)).tolist()}, "rigid"),
    ],
)
def test_a_bad_entry_is_named(change: dict[str, object], said: str, tmp_path: Path) -> None:
    entries = cameras_json(load_scene(write_scene(tmp_path, 2)))
    entries[1] |= change
    with pytest.raises(ClmError, match=said):
        camera_from_json(entries)
    with pytest.raises(ClmError, match="not a list"):
        camera_from_json({"frames": []})


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    entries = cameras_json(load_scene(write_scene(tmp_path, 2)))
    del entries[1]["position"]
    with pytest.raises(ClmError, match=r"Camera 1 .*`position` is missing"):
        camera_from_json(entries)


@pytest.mark.parametrize("angle", [0.0, 1e-7, 0.3, 3.0, np.pi - 1e-9, np.pi])
def test_slerp_turns_at_constant_speed_about_one_axis(angle: float) -> None:
    start = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    start *= np.linalg.det(start)
    end = start @ _axis_turn(angle)
    np.testing.assert_allclose(slerp(start, end, 0.0), start, atol=1e-9)
    np.testing.assert_allclose(slerp(start, end, 1.0), end, atol=1e-6)
    half = slerp(start, end, 0.5)
    np.testing.assert_allclose(half @ half.T, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(half @ (start.T @ half), end, atol=1e-6)


def test_an_interpolated_path_passes_through_every_camera_with_one_size() -> None:
    cameras = [view.camera for view in load_scene(scene_path("sacre_coeur"), require_images=False).views]
    path = interp_path(cameras, 10 * (len(cameras) - 1) + 1)
    assert len(path) == 91 and {(c.width, c.height) for c in path} == {(cameras[0].width, cameras[0].height)}
    for camera, on_path in zip(cameras, path[::10], strict=True):
        np.testing.assert_allclose(on_path.world_to_camera, camera.world_to_camera, atol=1e-6)
    assert len(interp_path(cameras[:1], 5)) == 5


@pytest.mark.parametrize("name", ["fox", "caliterra", "models/street_1499cams"])
def test_an_ellipse_stays_among_the_cameras_and_looks_their_way(name: str) -> None:
    cameras = [view.camera for view in load_scene(scene_path(name), require_images=False).views]
    path = ellipse_path(cameras, 24)
    centres = np.array([c.position for c in cameras])
    positions = np.array([c.position for c in path])
    reach = np.linalg.norm(centres - centres.mean(axis=0), axis=1).max()
    assert len(path) == 24 and np.linalg.norm(positions - centres.mean(axis=0), axis=1).max() < 2 * reach
    for camera in path:
        rotation = camera.world_to_camera[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(rotation) > 0 and np.isfinite(camera.world_to_camera).all()
    if name != "models/street_1499cams":  # that rig looks in all directions
        mean_forward = np.mean([c.forward for c in cameras], axis=0)
        assert min(c.forward @ mean_forward for c in path) > 0
