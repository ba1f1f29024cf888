"""Which picture is due to whom, how large, and when it is abandoned: by a clock that only moves when it is told to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from clm.camera import Camera
from clm.errors import ResourceError
from clm.render import Render, Wish
from clm.view.easel import REST, Easel, Shot
from clm.view.frame import Frame, Gaze

PLACES = [
    Camera(80, 60, 70.0, 70.0, 38.0, 31.0, np.eye(4), 0.01, 1e8),
    Camera(60, 80, 70.0, 70.0, 30.0, 40.0, np.diag([1.0, -1, -1, 1]), 0.01, 1e8),
]


@dataclass
class Studio:
    """An easel, its clock, and a model that is rendered at so many seconds a pixel."""

    now: float = 100.0
    per_pixel: float = 1e-6
    shots: list[tuple[int, Shot]] = field(default_factory=list)
    told: list[tuple[int, str]] = field(default_factory=list)
    cameras: list[Camera] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None  # what happens while a picture is rendered

    def __post_init__(self) -> None:
        frame = Frame.of(PLACES, np.random.default_rng(0).normal(size=(50, 3)))
        self.easel = Easel(frame, PLACES, clock=lambda: self.now)
        self.easel.show = lambda viewer, shot: self.shots.append((viewer, shot))
        self.easel.tell = lambda viewer, text: self.told.append((viewer, text))
        self.gaze = frame.gaze(PLACES[0], 800, 600)

    def render(self, camera: Camera, wish: Wish) -> Render:
        self.cameras.append(camera)
        self.now += 0.5 * camera.width * camera.height * self.per_pixel
        self.meanwhile()
        wish.check()
        self.now += 0.5 * camera.width * camera.height * self.per_pixel
        return Render(np.zeros((3, camera.height, camera.width), np.float32), np.zeros(0), None, 0)

    def paint(self) -> list[Shot]:
        """All that is due now."""
        before = len(self.shots)
        while self.easel.paint(self.render):
            pass
        return [shot for _, shot in self.shots[before:]]

    def look(self, viewer: int, x: float) -> None:
        self.easel.look(viewer, replace(self.gaze, position=np.array([x, 0.0, 0.0])))


def test_nobody_is_due_anything_where_nobody_looks() -> None:
    studio = Studio()
    assert not studio.easel.due and not studio.easel.looked_at and studio.paint() == [] and studio.cameras == []


def test_a_moving_camera_gets_small_pictures_and_a_resting_one_the_whole_of_the_same_view() -> None:
    studio = Studio()
    studio.look(1, 0.0)
    (small,) = studio.paint()
    assert not small.whole and small.pixels.shape[0] * small.pixels.shape[1] <= 101_000
    assert not studio.easel.due, "once"
    studio.now += REST
    (whole,) = studio.paint()
    assert whole.whole and whole.pixels.shape == (600, 800, 3)
    low, high = studio.cameras
    assert np.array_equal(low.world_to_camera, high.world_to_camera) and high.fy / low.fy == pytest.approx(
        600 / low.height
    )
    studio.now += 100
    assert not studio.easel.due, "a finished model does not change"


def test_small_pictures_become_as_large_as_the_machine_is_fast() -> None:
    sizes = {}
    for per_pixel in (1e-8, 1e-6, 2e-5):
        studio = Studio(per_pixel=per_pixel)
        for k in range(30):
            studio.look(1, 0.01 * k)
            studio.paint()
        sizes[per_pixel] = studio.shots[-1][1].pixels.size / 3
    assert sizes[1e-8] == 800 * 600 and 30_000 < sizes[1e-6] < 90_000 and sizes[2e-5] < 8_000


def test_a_whole_picture_is_abandoned_when_its_viewer_moves_on_and_a_small_one_is_not() -> None:
    studio = Studio()
    studio.look(1, 0.0)
    studio.meanwhile = lambda: studio.look(1, studio.now)  # never stops
    for _ in range(5):
        studio.easel.paint(studio.render)
    assert len(studio.shots) == 5, "else who never stops would see nothing"
    studio.now += REST
    studio.easel.paint(studio.render)
    assert len(studio.shots) == 5 and studio.cameras[-1].width == 800
    studio.meanwhile = lambda: None
    studio.now += REST
    assert [shot.whole for shot in studio.paint()] == [True]


def test_a_viewer_who_only_looks_on_gets_the_newest_model_for_a_tenth_of_the_time() -> None:
    studio = Studio(per_pixel=1e-6)  # 0.48 s for a whole picture
    studio.look(1, 0.0)
    studio.now += REST
    began, painted = studio.now, 0.0
    while studio.now - began < 100:
        studio.easel.model += 1
        before = studio.now
        studio.easel.paint(studio.render)
        painted += studio.now - before
        studio.now += 0.05  # a batch
    assert 15 <= len(studio.shots) <= 25 and painted < 0.11 * (studio.now - began)


def test_viewers_take_turns_and_those_who_left_are_forgotten() -> None:
    studio = Studio()
    for k in range(6):
        for viewer in (1, 2, 3):
            studio.look(viewer, 0.1 * k + viewer)
        studio.easel.paint(studio.render)
    assert [viewer for viewer, _ in studio.shots] == [1, 2, 3, 1, 2, 3]
    studio.meanwhile = lambda: studio.easel.leave(1)
    studio.look(1, 9.0)
    studio.easel.leave(2)
    studio.easel.leave(3)
    assert studio.paint() == [] and not studio.easel.looked_at, "it left while its picture was rendered"
    studio.easel.leave(1)
    studio.easel.leave(77)


def test_a_viewer_who_is_sent_to_a_photo_stands_there_until_it_moves() -> None:
    studio = Studio()
    studio.look(1, 0.0)
    target = studio.easel.stand(1, 1)
    assert target is not None and studio.easel.stand(1, 2) is None and studio.easel.stand(5, 0) is None
    studio.look(1, 0.0)  # said before it heard of it
    studio.now += REST
    (shot,) = studio.paint()
    camera = studio.cameras[-1]
    assert shot.place == 1 and shot.whole and (camera.fx, camera.cx) == (70.0 * 7.5, 175 + 30 * 7.5)
    studio.easel.look(1, replace(target, position=target.position + 1e-6))  # it is there
    assert not studio.easel.due
    studio.easel.look(1, replace(target, position=target.position + 0.05))
    assert [shot.place for shot in studio.paint()] == [None], "it went away"


def test_a_browser_that_does_not_get_there_is_sent_again_and_then_left_where_it_is() -> None:
    studio = Studio()
    studio.look(1, 0.0)
    target = studio.easel.stand(1, 0)
    assert studio.easel.astray(1) is None and studio.easel.astray(7) is None
    studio.now += 2.0
    assert studio.easel.astray(1) is target
    studio.now += 20.0
    assert studio.easel.astray(1) is None
    studio.look(1, 0.5)
    studio.paint()
    assert studio.shots[-1][1].place is None


def test_a_canvas_that_changes_its_size_is_filled_anew() -> None:
    studio = Studio()
    studio.look(1, 0.0)
    target = studio.easel.stand(1, 0)
    assert target is not None
    studio.easel.look(1, target)
    studio.now += REST
    studio.paint()
    studio.easel.look(1, replace(target, width=500, height=500))
    studio.now += REST
    assert [shot.pixels.shape for shot in studio.paint()] == [(500, 500, 3)]


def test_pictures_have_a_largest_size_and_canvases_without_one_are_passed_over() -> None:
    studio = Studio()
    studio.easel.most_pixels = 10_000
    studio.look(1, 0.0)
    studio.easel.look(2, replace(studio.gaze, width=0))
    studio.easel.look(2, replace(studio.gaze, position=np.array([np.nan, 0, 0])))
    studio.easel.look(2, replace(studio.gaze, fov=0.0))
    studio.now += REST
    (shot,) = studio.paint()
    assert shot.whole and shot.pixels.shape[0] * shot.pixels.shape[1] <= 10_100


def test_a_view_that_is_too_large_is_said_once_and_not_tried_again() -> None:
    studio = Studio()

    def refuse() -> None:
        raise ResourceError("Too large.", "Look from nearer.")

    studio.meanwhile = refuse
    studio.look(1, 0.0)
    studio.paint()
    studio.now += REST
    studio.paint()
    assert studio.told == [(1, "Too large. Look from nearer.")] and studio.shots == []
    studio.meanwhile = lambda: None
    studio.look(1, 1.0)
    assert len(studio.paint()) == 1


def test_a_browser_that_draws_by_itself_is_due_nothing_until_it_is_back() -> None:
    studio = Studio()
    studio.look(1, 0.0)
    studio.easel.send_away(1, True)
    studio.now += REST
    assert studio.paint() == []
    studio.easel.send_away(1, False)
    assert len(studio.paint()) == 1


def test_gaze_of_the_same_place_is_no_move() -> None:
    studio = Studio()
    studio.look(1, 0.0)
    studio.now += REST
    studio.paint()
    studio.easel.look(1, Gaze(-studio.gaze.wxyz, np.array([1e-9, 0.0, 0.0]), studio.gaze.fov, 800, 600))
    assert not studio.easel.due
