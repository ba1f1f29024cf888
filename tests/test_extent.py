"""The lengths that a scene defines: they follow its unit, equal the usual ones, and no stray camera changes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from clm.camera import Camera
from clm.errors import ClmError
from clm.extent import near_plane, scene_scale, usual_cameras, view_distance
from clm.plan.visibility import block_bounds, visible_rows
from clm.render import CpuRasterizer
from clm.scene import camera_from_json, cameras_json, load_scene
from clm.scene.colmap import read_model
from clm.scene.georef import find_offset
from clm.scene.scene import camera_centres
from clm.store.init import focus_of
from tests.conftest import scene_path
from tests.demo_run import DEMO
from tests.plan.slow_visibility import drawn_bound
from tests.scene.synthetic import write_scene


def ring(count: int = 24, radius: float = 3.0) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([radius * np.cos(angles), 0.2 * np.sin(5 * angles), radius * np.sin(angles)], 1)


POINTS = np.random.default_rng(1).normal(size=(500, 3))


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1e2, 1e4])
def test_every_length_is_scaled_with_the_scene(scale: float) -> None:
    centres = ring() + 1.5
    for length in (near_plane, scene_scale, view_distance):
        assert length(scale * centres, scale * POINTS) == pytest.approx(scale * length(centres, POINTS))
        assert length(centres, POINTS) > 0


@pytest.mark.parametrize("where", [(1e3, 0, 0), (0, -1e7, 3), (30, 30, 30)])
def test_a_stray_camera_neither_shifts_nor_scales_the_scene(where: tuple[float, float, float]) -> None:
    centres, forwards = ring(), -ring() / np.linalg.norm(ring(), axis=1, keepdims=True)
    with_stray = np.vstack([centres, where])
    assert (~usual_cameras(with_stray)).sum() == 1 and usual_cameras(centres).all()
    assert scene_scale(with_stray, POINTS) == scene_scale(centres, POINTS)
    assert near_plane(with_stray, POINTS) == pytest.approx(near_plane(centres, POINTS), rel=0.1)
    assert not find_offset(with_stray, POINTS, 1000.0).any()
    focus, scale = focus_of(centres, forwards)
    found, found_scale = focus_of(with_stray, np.vstack([forwards, (0, 0, 1)]))
    np.testing.assert_allclose(found, focus, atol=1e-9)
    assert found_scale == scale


@pytest.mark.parametrize("name", ["demo", "fox", "caliterra", "sceaux", "sacre_coeur"])
def test_ordinary_captures_have_gsplats_scene_scale(name: str) -> None:
    model = read_model(DEMO if name == "demo" else scene_path(name))
    centres = camera_centres(model)
    old = 1.1 * np.linalg.norm(centres - centres.mean(axis=0), axis=1).max()
    assert scene_scale(centres, model.points) == pytest.approx(old)


def test_far_offsets_of_tiny_units_are_round_numbers_of_that_unit() -> None:
    centres, points = 1e-4 * ring() + 7.3, 1e-4 * POINTS + 7.3
    offset = find_offset(centres, points, 1000.0)
    assert np.abs(offset - 7.3).max() < 1e-3 and np.abs(centres - offset).max() < 1e-2


def test_near_and_far_as_stated_reach_the_cameras_the_cull_and_the_rasteriser(tmp_path: Path) -> None:
    folder = write_scene(tmp_path, 4)
    own = load_scene(folder).views[0].camera
    stated = load_scene(folder, near=5.9, far=6.1).views[0].camera
    assert (stated.near, stated.far) == (5.9, 6.1) and 0.001 < own.near < 0.1 and own.far == 1e12 * own.near
    geometry, colour = np.zeros((300, 12), np.float32), np.zeros((300, 48), np.float32)
    geometry[:, :3], geometry[:, 3], geometry[:, 7:10] = np.random.default_rng(2).uniform(-1, 1, (300, 3)), 1, -9
    depth = geometry[:, :3] @ stated.world_to_camera[2, :3] + stated.world_to_camera[2, 3]
    inside = np.flatnonzero((depth > 5.9) & (depth < 6.1))
    entries = drawn_bound(geometry)
    seen = visible_rows(entries, block_bounds(entries), stated)
    assert 0 < len(inside) < 100 and set(inside) <= set(seen) and len(seen) < len(inside) + 5
    drawn = CpuRasterizer().forward(geometry, colour, np.arange(300, dtype=np.int32), stated, 0, (0, 0, 0)).drawn
    assert drawn == len(inside)
    with pytest.raises(ClmError, match="near plane 6 is not nearer"):
        load_scene(folder, near=6.0, far=5.0)


def test_cameras_json_keeps_near_and_far_and_other_tools_files_leave_them_open(tmp_path: Path) -> None:
    entries = cameras_json(load_scene(write_scene(tmp_path, 2), near=0.5, far=50.0))
    assert [(c.near, c.far) for c in camera_from_json(entries)] == [(0.5, 50.0)] * 2
    for entry in entries:
        del entry["near"], entry["far"]
    assert [camera.near for camera in camera_from_json(entries)] == [0.0, 0.0]


def test_resizing_a_camera_keeps_its_planes() -> None:
    camera = Camera(8, 8, 4, 4, 4, 4, np.eye(4), 0.5, 50.0)
    resized = camera.resized(4, 4)
    assert (resized.near, resized.far) == (0.5, 50.0) and dataclasses.replace(camera, near=0.1).near == 0.1
