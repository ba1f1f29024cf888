"""Who looks at a model, and which picture each of them is due: a small one while the camera moves, the whole one when it rests.

Knows neither browser nor model: cameras come from anywhere, whoever has the rows calls `paint` with a function that renders, and
pictures go to `show`. A whole picture is abandoned when its viewer moves on. A viewer who only looks on gets the model as it is
now and then, so rarely that it takes a tenth of the time.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from clm.camera import MAX_SIDE, Camera
from clm.errors import ResourceError
from clm.pictures import to_uint8
from clm.render import Abandoned, Render, Wish
from clm.view.frame import Frame, Gaze, inside

REST = 0.2  # seconds without a move after which a camera rests
MOST_PIXELS = 1 << 22  # of a picture
_FIRST_PIXELS, _LEAST_PIXELS = 100_000, 5_000  # of a small one
_SMALL_SECONDS = 0.06  # that a small one may take
_REFRESH, _REFRESH_SHARE = (
    1.0,
    0.1,
)  # seconds between pictures of one camera at least, and their share of the time at most
_ON_THE_WAY, _ASTRAY = (
    10.0,
    1.0,
)  # seconds that a browser may take to get where it was sent; after which it is sent again


class Shot(NamedTuple):
    """A picture for a viewer. place: the number of the camera that it is `inside` of; whole: else a small one."""

    pixels: np.ndarray  # [H, W, 3] u8
    whole: bool
    place: int | None
    seconds: float


class _Job(NamedTuple):
    viewer: int
    camera: Camera
    whole: bool
    resting: bool  # whether its viewer's camera rested when it was taken
    version: int
    place: int | None
    wish: Wish


@dataclass
class _Viewer:
    gaze: Gaze
    moved: float  # when
    served: float = 0.0  # when
    version: int = 0  # of what it is to see; counts moves
    small: int = -1  # newest version that was shown small,
    whole: int = -1  # or whole,
    model: int = -1  # of which model,
    again: float = 0.0  # and when it may be shown again
    place: int | None = None
    target: Gaze | None = None  # of its place
    arrived: bool = True
    sent: float = 0.0  # when
    away: bool = False  # its browser draws by itself
    wish: Wish | None = None  # of a picture that is painted for it at rest


class Easel:
    """The viewers of one model. All but `paint` may be called from any thread."""

    def __init__(
        self,
        frame: Frame,
        places: Sequence[Camera] = (),
        *,
        most_pixels: int = MOST_PIXELS,
        clock: Callable[[], float] = time.monotonic,
    ):
        """places: the scene's cameras, by the numbers that viewers are sent to. most_pixels: of a picture."""
        self.frame, self.places, self.most_pixels = frame, places, most_pixels
        self.show: Callable[[int, Shot], None] = lambda viewer, shot: None
        self.tell: Callable[[int, str], None] = lambda viewer, text: None
        self.model = 0  # which one `paint` renders: whoever calls it counts
        self._clock, self._viewers, self._changed = clock, dict[int, _Viewer](), threading.Condition()
        self._small_pixels = float(_FIRST_PIXELS)

    # ---- viewers ----

    def look(self, viewer: int, gaze: Gaze) -> None:
        """A viewer, new or known, looks from there."""
        if not (1 <= gaze.width <= MAX_SIDE and 1 <= gaze.height <= MAX_SIDE and _sound(gaze)):
            return
        with self._changed:
            known, now = self._viewers.get(viewer), self._clock()
            if known is None:
                self._viewers[viewer] = _Viewer(gaze, now)
            else:
                self._follow(known, gaze, now)
            self._changed.notify_all()

    def stand(self, viewer: int, place: int) -> Gaze | None:
        """Send a viewer to a camera of the scene; returns where its browser is to look from."""
        with self._changed:
            known = self._viewers.get(viewer)
            if known is None or not 0 <= place < len(self.places):
                return None
            target = self.frame.gaze(self.places[place], known.gaze.width, known.gaze.height)
            known.place, known.target, known.arrived, known.sent = place, target, False, self._clock()
            self._move(known, target)
            self._changed.notify_all()
            return target

    def astray(self, viewer: int) -> Gaze | None:
        """Where a browser is to be sent again, which should have been there by now."""
        with self._changed:
            known = self._viewers.get(viewer)
            if known is None or known.arrived or not _ASTRAY < self._clock() - known.sent < _ON_THE_WAY:
                return None
            return known.target

    def leave(self, viewer: int) -> None:
        with self._changed:
            known = self._viewers.pop(viewer, None)
            if known is not None and known.wish is not None:
                known.wish.give_up()
            self._changed.notify_all()

    def send_away(self, viewer: int, away: bool) -> None:
        """away: no pictures until it is back."""
        with self._changed:
            if (known := self._viewers.get(viewer)) is not None:
                known.away = away
                self._move(known, known.gaze)
                self._changed.notify_all()

    def _follow(self, known: _Viewer, gaze: Gaze, now: float) -> None:
        resized = (gaze.width, gaze.height) != (known.gaze.width, known.gaze.height)
        if known.target is not None:
            if gaze.same_place(known.target):
                known.arrived = True
                if not resized:
                    return  # it is there already
            elif known.arrived or now - known.sent > _ON_THE_WAY:
                known.place = known.target = None
            elif not resized:
                return  # still on the way
        if resized or not gaze.same_place(known.gaze):
            self._move(known, gaze)

    def _move(self, known: _Viewer, gaze: Gaze) -> None:
        known.gaze, known.moved, known.version = gaze, self._clock(), known.version + 1
        if known.wish is not None:
            known.wish.give_up()

    # ---- what is due ----

    @property
    def looked_at(self) -> bool:
        return bool(self._viewers)

    @property
    def due(self) -> bool:
        """Whether anybody is due a picture now."""
        if not self._viewers:
            return False
        with self._changed:
            now = self._clock()
            return any(self._due(viewer, now) is not None for viewer in self._viewers.values())

    @property
    def moving(self) -> bool:
        """Whether anybody's camera moves."""
        with self._changed:
            now = self._clock()
            return any(now - viewer.moved < REST for viewer in self._viewers.values())

    def wait(self, seconds: float) -> None:
        """Until a viewer does something, or so long."""
        with self._changed:
            self._changed.wait(seconds)

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _due(self, viewer: _Viewer, now: float) -> bool | None:
        """Whether a whole picture (True), a small one (False) or none (None) is due."""
        resting = now - viewer.moved >= REST
        if viewer.away:
            return None
        if viewer.whole == viewer.version:
            return True if resting and viewer.model != self.model and now >= viewer.again else None
        if resting or self._small_pixels >= self._pixels(viewer.gaze):
            return True
        return False if viewer.small != viewer.version else None

    def _pixels(self, gaze: Gaze) -> int:
        return min(gaze.width * gaze.height, self.most_pixels)

    def _take(self) -> _Job | None:
        """What is painted next: of those who are due something, for whom that has waited longest."""
        with self._changed:
            now = self._clock()
            due = [(v.served, key) for key, v in self._viewers.items() if self._due(v, now) is not None]
            if not due:
                return None
            key = min(due)[1]
            viewer = self._viewers[key]
            viewer.served, whole, resting = now, bool(self._due(viewer, now)), now - viewer.moved >= REST
            gaze = viewer.gaze
            size = _size(gaze, self.most_pixels if whole else self._small_pixels)
            if viewer.place is None:
                camera = self.frame.camera(gaze, *size)
            else:
                camera = inside(self.places[viewer.place], gaze.width, gaze.height).resized(*size)
            # What is painted for a camera that moves is shown however far it moved on: else one who never stops would see nothing.
            wish = Wish()
            viewer.wish = wish if resting else None
            return _Job(key, camera, whole, resting, viewer.version, viewer.place, wish)

    def paint(self, render: Callable[..., Render]) -> bool:
        """Render what is due to one viewer, and show it; whether there was anything. render: as `clm.stream.view.render_view` does
        a camera, given its `wish`."""
        job = self._take()
        if job is None:
            return False
        began = self._clock()
        try:
            pixels = to_uint8(render(job.camera, wish=job.wish).rgb)
        except Abandoned:
            return True
        except ResourceError as error:
            self._done(job, self._clock() - began, painted=False)
            self.tell(job.viewer, str(error))
            return True
        seconds = self._clock() - began
        if self._done(job, seconds, painted=True):
            self.show(job.viewer, Shot(pixels, job.whole, job.place, seconds))
        return True

    def _done(self, job: _Job, seconds: float, *, painted: bool) -> bool:
        """Note what was painted, or cannot be; whether its viewer is still there."""
        with self._changed:
            if not job.resting and painted:
                change = min(max(_SMALL_SECONDS / max(seconds, 1e-6), 0.5), 2.0)
                self._small_pixels = min(max(self._small_pixels * change, _LEAST_PIXELS), 4.0 * self.most_pixels)
            viewer = self._viewers.get(job.viewer)
            if viewer is None:
                return False
            viewer.small, viewer.wish = job.version, None
            if job.whole or not painted:  # what cannot be painted is not tried again
                viewer.whole, viewer.model = job.version, self.model
                viewer.again = self._clock() + max(_REFRESH, seconds * (1 / _REFRESH_SHARE - 1))
            return True


def _sound(gaze: Gaze) -> bool:
    values = [*gaze.wxyz, *gaze.position, gaze.fov]
    return bool(np.isfinite(values).all()) and 1e-3 < gaze.fov < math.pi - 1e-3 and bool(np.any(gaze.wxyz))


def _size(gaze: Gaze, pixels: float) -> tuple[int, int]:
    """Width and height of a picture of the canvas's shape, of at most about so many pixels."""
    scale = min(1.0, math.sqrt(pixels / (gaze.width * gaze.height)))
    return max(1, round(scale * gaze.width)), max(1, round(scale * gaze.height))
