"""One viewer's place in front of the page: the panel of a browser, its camera, and the picture behind it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from clm.view import words
from clm.view.album import Album
from clm.view.compare import BLINK, MODEL, SLIDER, WAYS, overlaid
from clm.view.easel import REST, Easel, Shot
from clm.view.frame import Gaze, matrix_of
from clm.view.splats import BrowserModel
from clm.view.visit import Visit

_BY_CLM, _BY_BROWSER = "clm: exact", "browser: splats"
_QUALITY = {False: 80, True: 95}  # of JPEG: of small pictures, and of whole ones where they are not sent as they are
_MOST_FRUSTUMS, _THUMBNAIL = 300, 96  # cameras that are drawn; px
_FRUSTUM = 0.12  # length in the browser's units


class Page(Protocol):
    """What all desks share (`clm.view.page`)."""

    server: Any
    easel: Easel
    album: Album
    facts: Sequence[tuple[str, str]]
    visit: Visit | None
    browser_model: Callable[[], BrowserModel] | None

    def draw(self, viewer: int) -> None: ...
    def model(self) -> BrowserModel: ...
    def series(self) -> dict[str, tuple[np.ndarray, np.ndarray]]: ...


class Desk:
    """Handles of viser live here. Its methods may be called from any thread."""

    def __init__(self, page: Page, client: Any):
        self.page, self.client, self.key = page, client, client.client_id
        self.shot: Shot | None = None
        self._way, self._split, self._blinked, self._exact = MODEL, 0.5, False, True
        self._frustums: list[Any] = []
        self._splats: Any = None
        self._coloured: np.ndarray | None = None  # for which position splats have colours
        self._moved = 0.0
        self._said: dict[str, Any] = {}  # what the panel shows now
        self._plots: dict[str, Any] = {}

    def open(self) -> None:
        easel, client = self.page.easel, self.client
        easel.look(self.key, self._gaze())
        client.camera.on_update(self._look)
        self._build()
        if self.page.album.places:
            held_out = [k for k, place in enumerate(self.page.album.places) if place.held_out]
            self.jump(held_out[0] if held_out else 0)
        else:
            gaze = self._gaze()
            self._send_to(easel.frame.gaze(easel.frame.start, gaze.width, gaze.height))

    def say(self, text: str) -> None:
        self.client.add_notification("clm", text, auto_close_seconds=8.0)

    # ---- the camera ----

    def _gaze(self) -> Gaze:
        camera = self.client.camera
        return Gaze(
            np.asarray(camera.wxyz, np.float64),
            np.asarray(camera.position, np.float64),
            float(camera.fov),
            int(camera.image_width),
            int(camera.image_height),
        )

    async def _look(self, _camera: Any) -> None:
        """On the server's own loop, where messages of a browser come one after the other: none overtakes another."""
        self._moved = time.monotonic()
        self.page.easel.look(self.key, self._gaze())

    def jump(self, place: int) -> None:
        """To a camera of the scene."""
        target = self.page.easel.stand(self.key, place)
        if target is None:
            return
        self._photos.value = self._names[place]
        self._send_to(target)
        self._describe(place)

    def _step(self, by: int) -> None:
        places = self.page.album.places
        self.jump((self._names.index(self._photos.value) + by) % len(places))

    def _send_to(self, target: Gaze) -> None:
        """Turn the browser's camera. On the server's loop: no message of the browser comes between two of its steps."""
        self.page.server.get_event_loop().call_soon_threadsafe(self._turn, target)

    def _turn(self, target: Gaze) -> None:
        """What the camera turns around is as far as the middle of the scene."""
        camera, forward = self.client.camera, matrix_of(target.wxyz)[:, 2]
        distance = max(0.5, float(-target.position @ forward))
        with self.client.atomic():
            camera.fov = target.fov
            camera.position = target.position
            camera.look_at = target.position + distance * forward
            camera.wxyz = target.wxyz

    # ---- the panel ----

    def _build(self) -> None:
        gui, page = self.client.gui, self.page
        if page.visit is not None:
            self._build_run(gui)
        elif page.facts:
            gui.add_html(words.model_html(page.facts))
        if page.album.places:
            self._build_photos(gui)
        with gui.add_folder("Picture", expand_by_default=page.visit is None):
            self._build_picture(gui)
        self._curves = gui.add_folder("Curves", visible=False)
        self._update_curves()

    def _build_run(self, gui: Any) -> None:
        visit = self.page.visit
        assert visit is not None
        self._status = gui.add_html(words.status_html(visit.status, visit.paused))
        self._pause = gui.add_button("Pause", icon="player-pause", hint="After this batch")
        self._resume = gui.add_button("Resume", icon="player-play", visible=visit.paused, color="green")
        save = gui.add_button("Save a checkpoint", icon="device-floppy")
        stop = gui.add_button("Stop and save", icon="player-stop", color="red", hint="As Ctrl-C does; --resume goes on")
        self._pause.on_click(lambda _event: visit.pause(True))
        self._resume.on_click(lambda _event: visit.pause(False))
        save.on_click(lambda _event: visit.save())
        stop.on_click(lambda _event: visit.stop())

    def _build_photos(self, gui: Any) -> None:
        places = self.page.album.places
        self._names = [f"{place.name}{' (held out)' if place.held_out else ''}" for place in places]
        with gui.add_folder("Photos"):
            self._photos = gui.add_dropdown("Camera", tuple(self._names), initial_value=self._names[0])
            self._where = gui.add_html("")
            steps = gui.add_button_group("Go to", ("previous", "next"))
            ways = gui.add_dropdown(
                "Show", WAYS, initial_value=MODEL, hint="While the camera stands where the photo was taken"
            )
            self._slider = gui.add_slider("Photo | model", 0.0, 1.0, 0.01, 0.5, visible=False)

        def picked(event: Any) -> None:
            if event.client_id is not None:  # somebody did, not `jump`
                self.jump(self._names.index(self._photos.value))

        self._photos.on_update(picked)
        steps.on_click(lambda _event: self._step(-1 if steps.value == "previous" else 1))

        def chosen(_event: Any) -> None:
            self._way, self._slider.visible = ways.value, ways.value == SLIDER
            self.page.draw(self.key)

        def slid(_event: Any) -> None:
            self._split = float(self._slider.value)
            self.page.draw(self.key)

        ways.on_update(chosen)
        self._slider.on_update(slid)

    def _build_picture(self, gui: Any) -> None:
        if self.page.browser_model is not None:
            drawn = gui.add_dropdown("Drawn by", (_BY_CLM, _BY_BROWSER), initial_value=_BY_CLM)
            drawn.on_update(lambda _event: self._draw_by(drawn.value))
        exact = gui.add_checkbox("Exact when at rest", True, hint="PNG; else JPEG, for slow connections")
        if self.page.album.places:
            frustums = gui.add_checkbox("Cameras in the scene", False, hint="Click one to go there")
            frustums.on_update(lambda _event: self._show_frustums(frustums.value))

        def encoded(_event: Any) -> None:
            self._exact = exact.value
            self.page.draw(self.key)

        exact.on_update(encoded)

    def _describe(self, place: int) -> None:
        found = self.page.album.places[place]
        facts = [f"{found.camera.width} x {found.camera.height} px", "held out" if found.held_out else "trained on"]
        if found.psnr is not None:
            facts.append(f"PSNR {found.psnr:.2f} dB when measured last")
        self._where.content = words.model_html([(", ".join(facts), "")])

    # ---- what is shown ----

    def draw(self) -> None:
        """Send the newest picture."""
        shot = self.shot
        if shot is None or self._splats is not None:
            return
        picture = shot.pixels
        if shot.place is not None and self._way != MODEL:
            album = self.page.album
            photo = album.photo(shot.place)
            picture = overlaid(picture, album.places[shot.place].camera, photo, self._way, self._split, self._blinked)
            if photo is None and album.found:
                self._once("photo", f"There is no photo of {album.places[shot.place].name}.")
        if shot.whole and self._exact:
            self.client.scene.set_background_image(picture, format="png")
        else:
            self.client.scene.set_background_image(picture, format="jpeg", jpeg_quality=_QUALITY[shot.whole])

    def tick(self, blink: bool) -> None:
        """What changes by itself."""
        visit = self.page.visit
        if blink and self._way == BLINK:
            self._blinked = not self._blinked
            self.page.draw(self.key)
        if visit is not None and self._new("status", (visit.status, visit.paused)):
            self._status.content = words.status_html(visit.status, visit.paused)
            self._pause.visible, self._resume.visible = not visit.paused, visit.paused
        if blink:
            self._update_curves()
            if (target := self.page.easel.astray(self.key)) is not None:
                self._send_to(target)
        if self._splats is not None and time.monotonic() - self._moved >= REST:
            self._recolour()

    def _update_curves(self) -> None:
        for name, data in self.page.series().items():
            if not self._new(f"curve {name}", (len(data[0]), float(data[0][-1]), float(data[1][-1]))):
                continue
            if name in self._plots:
                self._plots[name].data = data
                continue
            from viser import uplot

            self._curves.visible = True
            with self._curves:
                self._plots[name] = self.client.gui.add_uplot(
                    data,
                    (uplot.Series(label="image"), uplot.Series(label=name, stroke="#3d8bfd", width=2)),
                    title=name,
                    scales={"x": uplot.Scale(time=False)},
                    aspect=1.8,
                )

    def _new(self, what: str, value: Any) -> bool:
        """Whether the panel shows something else than this."""
        if what in self._said and self._said[what] == value:
            return False
        self._said[what] = value
        return True

    def _once(self, what: str, text: str) -> None:
        if self._new(what, text):
            self.say(text)

    def _show_frustums(self, shown: bool) -> None:
        for handle in self._frustums:
            handle.remove()
        self._frustums = []
        if not shown:
            return
        easel, album = self.page.easel, self.page.album
        step = 1 + (len(album.places) - 1) // _MOST_FRUSTUMS
        for k in range(0, len(album.places), step):
            place = album.places[k]
            gaze = easel.frame.gaze(place.camera, place.camera.width, place.camera.height)
            handle = self.client.scene.add_camera_frustum(
                f"/cameras/{k:05d}",
                fov=gaze.fov,
                aspect=place.camera.width / place.camera.height,
                scale=_FRUSTUM,
                color=(253, 126, 20) if place.held_out else (61, 139, 253),
                image=album.thumbnail(k, _THUMBNAIL),
                wxyz=gaze.wxyz,
                position=gaze.position,
            )
            handle.on_click(lambda _event, k=k: self.jump(k))
            self._frustums.append(handle)

    def _draw_by(self, who: str) -> None:
        easel, scene = self.page.easel, self.client.scene
        if who == _BY_BROWSER and self._splats is None:
            model = self.page.model()
            position = self._position()
            easel.send_away(self.key, True)
            self._splats = scene.add_gaussian_splats(
                "/splats", *model.splats[:2], model.colours(position), model.splats.opacities
            )
            self._coloured = position
            scene.set_background_image(np.zeros((2, 2, 3), np.uint8), format="png")
        elif who == _BY_CLM and self._splats is not None:
            self._splats.remove()
            self._splats = None
            easel.send_away(self.key, False)

    def _position(self) -> np.ndarray:
        frame = self.page.easel.frame
        return self._gaze().position / frame.scale + frame.middle

    def _recolour(self) -> None:
        """Colours for where the camera rests now."""
        position = self._position()
        if self._coloured is None or np.abs(position - self._coloured).max() * self.page.easel.frame.scale > 0.01:
            self._coloured = position
            self._splats.rgbs = self.page.model().colours(position)
