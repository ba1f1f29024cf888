"""cameras.json out and in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from clm.errors import ClmError
from clm.scene import camera_from_json, cameras_json, load_scene
from tests.scene.synthetic import POSITIVE, write_scene


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
