"""The float64 offset of far-away scenes and its file."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from clm.errors import ClmError
from clm.scene import load_scene, read_georef, read_model, write_georef
from tests.conftest import scene_path
from tests.scene.synthetic import POINTS, write_scene

UTM = (579_000.0, 1_453_600.0, 10.0)


def _project(points: np.ndarray, pose: np.ndarray, fx: float, fy: float) -> np.ndarray:
    """[P, 2] px relative to the principal point, in the dtype of the arguments."""
    local = points @ pose[:3, :3].T + pose[:3, 3]
    return local[:, :2] / local[:, 2:] * np.array([fx, fy], dtype=points.dtype)


def test_utm_coordinates_are_shifted_by_whole_numbers_and_it_is_said(tmp_path: Path) -> None:
    scene = load_scene(write_scene(tmp_path, 3, shift=UTM))
    assert scene.offset.any() and (scene.offset == np.round(scene.offset)).all()
    np.testing.assert_allclose(scene.points + scene.offset, POINTS + UTM, atol=1e-5)
    assert any(re.search(r"far from its origin.*georef\.json", message) for message in scene.messages)
    near = load_scene(write_scene(tmp_path / "near", 3))
    for far_view, near_view in zip(scene.views, near.views, strict=True):
        distance = far_view.camera.position + scene.offset - UTM
        np.testing.assert_allclose(distance, near_view.camera.position, atol=1e-6)
        np.testing.assert_allclose(far_view.camera.forward, near_view.camera.forward, atol=1e-12)


@pytest.mark.parametrize("name", ["fox", "sceaux", "sacre_coeur", "caliterra", "models/street_1499cams"])
def test_an_ordinary_scene_is_never_shifted(name: str) -> None:
    assert not load_scene(scene_path(name), require_images=False).offset.any()


def test_a_stray_point_far_away_does_not_shift_the_scene(tmp_path: Path) -> None:
    from clm.scene.georef import find_offset

    centres = np.random.default_rng(0).normal(size=(20, 3))
    points = np.vstack([np.random.default_rng(1).normal(size=(500, 3)) * 3, [[1e7, 0, 0]]])
    assert not find_offset(centres, points, 1000.0).any()
    assert find_offset(centres + 1e6, points + 1e6, 1000.0).any()


def test_float32_reprojection_after_the_offset_agrees_with_float64_within_a_twentieth_of_a_pixel() -> None:
    path = scene_path("models/utm_35cams")
    model, scene = read_model(path), load_scene(path, require_images=False)
    assert np.abs(scene.offset[:2] - [579_000, 1_453_600]).max() < 1000
    worst_without = 0.0
    for image, view in zip(model.images[:8], scene.views[:8], strict=True):
        fx, fy = view.camera.fx, view.camera.fy
        exact = _project(model.points, image.world_to_camera, fx, fy)
        inside = (np.abs(exact) < [view.camera.width / 2, view.camera.height / 2]).all(axis=1)
        ours = _project(scene.points, view.camera.world_to_camera.astype(np.float32), fx, fy)
        assert inside.sum() > 100
        assert np.abs(ours - exact)[inside].max() < 0.05
        raw = _project(model.points.astype(np.float32), image.world_to_camera.astype(np.float32), fx, fy)
        worst_without = max(worst_without, np.abs(raw - exact)[inside].max())
    assert worst_without > 1.0  # what the offset is for


def test_georef_json_reads_back_and_its_absence_means_no_offset(tmp_path: Path) -> None:
    write_georef(tmp_path / "georef.json", np.array(UTM))
    assert read_georef(tmp_path / "georef.json").tolist() == list(UTM)
    assert [p.name for p in tmp_path.iterdir()] == ["georef.json"]
    assert not read_georef(tmp_path / "none.json").any()
    (tmp_path / "bad.json").write_text('{"offset": [1, 2]}')
    with pytest.raises(ClmError, match=r"bad\.json does not hold an offset"):
        read_georef(tmp_path / "bad.json")
