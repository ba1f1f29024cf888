"""Camera paths: smooth, evenly paced, through every camera; an ellipse that stays where something was seen."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from clm.camera import Camera
from clm.scene import load_scene
from clm.scene.cameras import pose_of
from clm.scene.paths import (
    ellipse_path,
    interp_path,
    rotation_vector,
    separations,
    short_order,
    stand_all_round,
    turned,
)
from tests.conftest import scene_path


def camera(position: np.ndarray | list[float], axes: np.ndarray | None = None, focal: float = 50.0) -> Camera:
    pose = pose_of(np.eye(3) if axes is None else axes, np.array(position, float))
    return Camera(64, 48, focal, focal, 30.0, 25.0, pose)


def ring(count: int, of: float = 1.0, axes: tuple[float, float] = (2.0, 1.0)) -> list[Camera]:
    """Cameras on a part `of` an ellipse in the plane y = -1, all looking at (0, 0, 5)."""
    cameras = []
    for angle in np.linspace(0, 2 * np.pi * of, count, endpoint=False):
        position = np.array([axes[0] * np.cos(angle), -1.0, 5 + axes[1] * np.sin(angle)])
        forward = (np.array([0, 0, 5.0]) - position) / np.linalg.norm(np.array([0, 0, 5.0]) - position)
        right = np.cross(forward, [0.0, -1.0, 0.0])
        right /= np.linalg.norm(right)
        cameras.append(camera(position, np.stack([right, np.cross(forward, right), forward], axis=1)))
    return cameras


def wild(count: int, seed: int = 0) -> list[Camera]:
    """Cameras anywhere, turned anyhow, of several focal lengths."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, 3))
    return [camera(rng.normal(size=3) * 3, turned(2 * v), 50 * np.exp(rng.normal() / 3)) for v in vectors]


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.3, 2.99, 3.01, np.pi - 1e-9, np.pi])
def test_a_rotation_vector_and_its_rotation_are_inverse(angle: float) -> None:
    axis = np.random.default_rng(3).normal(size=3)
    vector = angle * axis / np.linalg.norm(axis)
    rotation = turned(vector)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(turned(rotation_vector(rotation)), rotation, atol=1e-7)
    if angle < np.pi - 1e-6:
        np.testing.assert_allclose(rotation_vector(rotation), vector, atol=1e-7)


def test_an_interpolated_path_begins_with_the_first_camera_ends_with_the_last_and_passes_through_all() -> None:
    cameras = wild(7)
    path = interp_path(cameras, 2001)
    for end, on_path in ((cameras[0], path[0]), (cameras[-1], path[-1])):
        np.testing.assert_allclose(on_path.world_to_camera, end.world_to_camera, atol=1e-9)
        assert on_path.fx == pytest.approx(end.fx)
    poses = np.array([c.world_to_camera for c in path])
    for each in cameras:
        nearest = int(np.abs(poses - each.world_to_camera).max(axis=(1, 2)).argmin())
        np.testing.assert_allclose(poses[nearest], each.world_to_camera, atol=5e-2)
        assert path[nearest].fx == pytest.approx(each.fx, rel=5e-2)
    assert {(c.width, c.height, c.cx, c.cy) for c in path} == {(64, 48, 30.0, 25.0)}


def test_an_interpolated_path_has_no_jolt() -> None:
    """Velocity, angular velocity and zoom change little from frame to frame, also where it passes a camera."""
    path = interp_path(wild(6), 1601)
    values = np.array([[*c.position, np.log(c.fx)] for c in path])
    axes = [c.world_to_camera[:3, :3].T for c in path]
    spins = np.array([rotation_vector(a.T @ b) for a, b in pairwise(axes)])
    for steps in (np.diff(values, axis=0), spins):
        jolt = np.abs(np.diff(steps, axis=0)).max() / np.abs(steps).max()
        assert jolt < 0.06, "a corner would change the velocity at once"


def test_the_pace_is_even_wherever_the_cameras_are() -> None:
    cameras = [camera([x, 0, 0]) for x in (0, 0.1, 0.2, 5, 5.1, 9)]
    steps = np.diff([c.position[0] for c in interp_path(cameras, 500)])
    assert steps.min() > 0 and steps.max() < 1.7 * steps.mean()


def test_the_same_camera_twice_stops_nothing_and_one_camera_stays() -> None:
    cameras = wild(4)
    doubled = [cameras[k] for k in (0, 0, 1, 2, 2, 2, 3, 3)]
    for one, other in zip(interp_path(cameras, 50), interp_path(doubled, 50), strict=True):
        np.testing.assert_allclose(one.world_to_camera, other.world_to_camera, atol=0.3)
        assert np.isfinite(other.world_to_camera).all()
    for path in (interp_path(cameras[:1], 5), interp_path([cameras[0]] * 3, 5), ellipse_path(cameras[:1], 5)):
        assert len(path) == 5 and all(np.isfinite(c.world_to_camera).all() for c in path)
    assert len(interp_path(cameras, 1)) == 1


def test_cameras_whose_names_jump_about_are_put_into_a_short_order() -> None:
    cameras = ring(40)
    shuffled = [cameras[k] for k in np.random.default_rng(1).permutation(40)]
    order = short_order(shuffled)
    assert order is not None and sorted(order) == list(range(40)) and order[0] == 0
    length = separations([shuffled[k] for k in order]).sum()
    assert length < 1.1 * separations(cameras).sum()
    assert short_order(cameras) is None, "they are in a good order"
    assert short_order(cameras[:3]) is None


def test_an_ellipse_is_around_what_cameras_on_all_sides_look_at() -> None:
    cameras = ring(36)
    assert stand_all_round(cameras)
    path = ellipse_path(cameras, 40)
    positions = np.array([c.position for c in path])
    np.testing.assert_allclose(positions.mean(axis=0), [0, -1, 5], atol=0.02)
    np.testing.assert_allclose(np.abs(positions - [0, -1, 5]).max(axis=0), [2, 0, 1], atol=0.1)
    for each in path:
        towards = np.array([0, 0, 5.0]) - each.position
        assert each.forward @ towards / np.linalg.norm(towards) > 0.99
        assert -each.world_to_camera[1, 1] < 0, "up is up"
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    assert steps.max() < 1.03 * steps.min(), "evenly paced"


def test_an_ellipse_stays_on_the_side_that_was_seen() -> None:
    cameras = ring(20, of=0.3)
    assert not stand_all_round(cameras)
    middle = np.mean([c.position for c in cameras], axis=0)
    seen_from = np.array([0, 0, 5]) - middle
    for each in ellipse_path(cameras, 24):
        assert each.forward @ seen_from > 0


@pytest.mark.parametrize("name", ["fox", "caliterra", "models/street_1499cams"])
def test_an_ellipse_stays_among_the_cameras_and_looks_their_way(name: str) -> None:
    cameras = [view.camera for view in load_scene(scene_path(name), require_images=False).views]
    path = ellipse_path(cameras, 24)
    centres = np.array([c.position for c in cameras])
    positions = np.array([c.position for c in path])
    reach = np.linalg.norm(centres - centres.mean(axis=0), axis=1).max()
    assert len(path) == 24 and np.linalg.norm(positions - centres.mean(axis=0), axis=1).max() < 2 * reach
    for each in path:
        rotation = each.world_to_camera[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(rotation) > 0 and np.isfinite(each.world_to_camera).all()
    if name != "models/street_1499cams":  # that rig looks in all directions
        mean_forward = np.mean([c.forward for c in cameras], axis=0)
        assert min(c.forward @ mean_forward for c in path) > 0
