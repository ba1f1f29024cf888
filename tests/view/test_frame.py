"""Cameras go to the browser's frame and come back the same, whatever the scene's unit, place and pictures are."""

from __future__ import annotations

import numpy as np
import pytest

from clm.camera import Camera
from clm.scene.cameras import pose_of
from clm.view.compare import BLINK, ERROR, MODEL, PHOTO, SLIDER, Photo, overlaid
from clm.view.frame import Frame, Gaze, inside, matrix_of, quaternion_of, rectangle


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    return matrix_of(rng.normal(size=4))


def cameras(rng: np.random.Generator, unit: float, origin: np.ndarray, count: int = 6) -> list[Camera]:
    """Around an origin, in a scene whose unit is `unit`; principal points off centre."""
    found = []
    for _ in range(count):
        pose = pose_of(random_rotation(rng), origin + unit * rng.normal(size=3))
        found.append(Camera(320, 240, 300.0, 310.0, 150.0, 130.0, pose, 0.01 * unit, 1e10 * unit))
    return found


def test_quaternions_are_those_of_their_matrices_at_every_angle() -> None:
    rng = np.random.default_rng(0)
    turns = [np.diag(signs) for signs in ([1.0, 1, 1], [1.0, -1, -1], [-1.0, 1, -1], [-1.0, -1, 1])]
    for rotation in [*turns, *(random_rotation(rng) for _ in range(50))]:
        wxyz = quaternion_of(rotation)
        assert np.allclose(matrix_of(wxyz), rotation, atol=1e-12) and np.linalg.norm(wxyz) == pytest.approx(1.0)


@pytest.mark.parametrize(("unit", "origin"), [(1.0, 0.0), (1e-3, 5.0), (500.0, -2e4)])
def test_what_a_browser_sees_is_the_camera_it_was_sent_to(unit: float, origin: float) -> None:
    rng = np.random.default_rng(1)
    scene = cameras(rng, unit, np.full(3, origin))
    frame = Frame.of(scene, origin + unit * rng.normal(size=(100, 3)))
    places = np.array([frame.to_browser(camera.position) for camera in scene])
    assert 0.5 < np.linalg.norm(places, axis=1).max() < 20, "a scene of ordinary size for the browser's controls"
    for camera in scene:
        square = Camera(400, 300, 250.0, 250.0, 200.0, 150.0, camera.world_to_camera, camera.near, camera.far)
        back = frame.camera(frame.gaze(square, 400, 300), 400, 300)
        assert np.allclose(back.world_to_camera, square.world_to_camera, atol=1e-9 * (unit + abs(origin)))
        assert (back.fx, back.fy, back.cx, back.cy) == pytest.approx((250.0, 250.0, 200.0, 150.0))
        assert (back.near, back.far) == (camera.near, camera.far)


@pytest.mark.parametrize("size", [(320, 240), (640, 480), (900, 300), (200, 701), (33, 500)])
def test_a_photo_lies_where_its_camera_says_in_a_canvas_of_any_shape(size: tuple[int, int]) -> None:
    camera = cameras(np.random.default_rng(2), 1.0, np.zeros(3))[0]
    whole, (left, top, right, bottom) = inside(camera, *size), rectangle(camera, *size)
    assert (whole.width, whole.height) == size and (right - left == size[0] or bottom - top == size[1])
    point = camera.world_to_camera[:3, :3].T @ (np.array([0.1, -0.2, 2.0]) - camera.world_to_camera[:3, 3])
    for c, (x0, y0, w, h) in ((camera, (0, 0, 320, 240)), (whole, (left, top, right - left, bottom - top))):
        x, y, z = c.world_to_camera[:3, :3] @ point + c.world_to_camera[:3, 3]
        place = (c.fx * x / z + c.cx - x0) / w, (c.fy * y / z + c.cy - y0) / h
        assert place == pytest.approx(((300 * 0.05 + 150) / 320, (310 * -0.1 + 130) / 240))


def test_a_model_without_cameras_is_seen_whole_from_outside() -> None:
    rng = np.random.default_rng(3)
    centres = np.array([1000.0, -50.0, 3.0]) + 40.0 * rng.normal(size=(500, 3))
    centres[7] = np.nan
    frame = Frame.of([], centres)
    x, y, z = frame.start.world_to_camera[:3, :3] @ centres.T + frame.start.world_to_camera[:3, 3:]
    inside_picture = (
        (np.abs(480 * 0 + frame.start.fx * x / z) < 480) & (np.abs(frame.start.fy * y / z) < 360) & (z > frame.near)
    )
    assert np.nanmean(inside_picture) > 0.6 and np.isfinite(frame.scale)
    for odd in (np.zeros((0, 3)), np.zeros((1, 3)), np.full((4, 3), 7.0)):
        assert np.isfinite(Frame.of([], odd).scale) and Frame.of([], odd).near > 0


def test_numbers_that_come_back_from_a_browser_are_the_same_place_and_others_are_not() -> None:
    gaze = Gaze(quaternion_of(random_rotation(np.random.default_rng(4))), np.array([1.0, 2.0, 3.0]), 0.9, 400, 300)
    near = Gaze(-gaze.wxyz, gaze.position + 2e-5, 0.9 + 1e-6, 400, 300)
    turned = Gaze(
        quaternion_of(matrix_of(gaze.wxyz) @ matrix_of(np.array([1.0, 0.002, 0, 0]))), gaze.position, 0.9, 400, 300
    )
    moved = Gaze(gaze.wxyz, gaze.position + np.array([0, 0, 0.01]), 0.9, 400, 300)
    assert gaze.same_place(near) and not gaze.same_place(turned) and not gaze.same_place(moved)


def test_each_way_of_comparing_shows_what_it_says_and_leaves_the_picture_around_the_photo() -> None:
    camera = Camera(40, 30, 40.0, 40.0, 20.0, 15.0, np.eye(4))
    picture = np.full((60, 120, 3), 100, np.uint8)  # the photo's place: 80 x 60 px in the middle
    mask = np.ones((30, 40), bool)
    mask[:10] = False
    photo = Photo(np.full((30, 40, 3), 200, np.uint8), mask)

    def shown(way: str, **options: object) -> np.ndarray:
        return overlaid(picture, camera, photo, way, **options)  # type: ignore[arg-type]

    assert (
        (shown(MODEL) == 100).all()
        and (shown(BLINK) == 100).all()
        and (overlaid(picture, camera, None, PHOTO) == 100).all()
    )
    for result in (shown(PHOTO), shown(BLINK, blinked=True), shown(SLIDER, split=1.0)):
        assert (result[:, 20:100] == 200).all() and (result[:, :20] == 100).all() and (result[:, 100:] == 100).all()
    slid = shown(SLIDER, split=0.25)
    assert (slid[:, 20:38] == 200).all() and (slid[:, 42:] == 100).all() and (slid[:, 40] == 255).all()
    assert (shown(SLIDER, split=0.0) == 100).all()
    error = shown(ERROR)
    assert (error[:18, 20:100] == 0).all(), "the mask leaves these out"
    assert error[40, 50].sum() > 500 and (error[:, :20] == 100).all(), "a large error is bright"
    assert (picture == 100).all(), "what was given stays as it is"
