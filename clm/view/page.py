"""The page in the browser, by viser: what each viewer sees and may do. Everything that is decided, `easel`, `visit` and `compare`
decide; here are the words on the panel, the way to it and back."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clm.report.curves import Curves
from clm.view.album import Album
from clm.view.desk import Desk
from clm.view.easel import Easel, Shot
from clm.view.splats import BrowserModel
from clm.view.visit import Visit

_TICK, _BLINK = 0.25, 0.75  # seconds between looks at what changes by itself, and between the two pictures of a blink


class Page:
    """The desks of all viewers. Threads of its own send pictures and what changes by itself."""

    def __init__(
        self,
        server: Any,
        easel: Easel,
        album: Album,
        title: str,
        facts: Sequence[tuple[str, str]] = (),
        curves: Curves | None = None,
        visit: Visit | None = None,
        browser_model: Callable[[], BrowserModel] | None = None,
    ):
        """visit: of a run in training. facts, curves: of a model that is not. browser_model: for browsers that draw by
        themselves; None: none may."""
        self.server, self.easel, self.album, self.title = server, easel, album, title
        self.facts, self.visit, self.browser_model = facts, visit, browser_model
        self.curves = visit.curves if visit is not None else curves or Curves()
        self._desks: dict[int, Desk] = {}
        self._changed, self._dirty, self._closed = threading.Condition(), set[int](), threading.Event()
        self._model: BrowserModel | None = None
        self._model_lock = threading.Lock()
        easel.show, easel.tell = self._show, self.tell
        if visit is not None:
            visit.say = self.say

    def open(self) -> None:
        """Whoever comes from now on is served."""
        server = self.server
        server.gui.configure_theme(dark_mode=True, show_logo=False, show_share_button=False)
        server.gui.main_panel.dock_right()
        server.gui.set_panel_label(self.title)
        server.scene.set_up_direction(tuple(self.easel.frame.up))
        server.on_client_connect(self._arrive)
        server.on_client_disconnect(self._leave)
        for work in (self._send, self._tick):
            threading.Thread(target=work, name=f"viewer {work.__name__}", daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        with self._changed:
            self._changed.notify_all()

    # ---- viewers ----

    def _arrive(self, client: Any) -> None:
        desk = Desk(self, client)
        with self._changed:
            self._desks[client.client_id] = desk
        desk.open()
        if client.client_id not in self.server.get_clients():  # gone meanwhile
            self._leave(client)

    def _leave(self, client: Any) -> None:
        with self._changed:
            self._desks.pop(client.client_id, None)
        self.easel.leave(client.client_id)

    def desks(self) -> list[Desk]:
        with self._changed:
            return list(self._desks.values())

    def say(self, text: str) -> None:
        """To all viewers."""
        for desk in self.desks():
            desk.say(text)

    def tell(self, viewer: int, text: str) -> None:
        with self._changed:
            desk = self._desks.get(viewer)
        if desk is not None:
            desk.say(text)

    def model(self) -> BrowserModel:
        """What browsers draw; made when the first one wants it."""
        with self._model_lock:
            if self._model is None:
                assert self.browser_model is not None
                self._model = self.browser_model()
            return self._model

    # ---- what they are sent ----

    def _show(self, viewer: int, shot: Shot) -> None:
        with self._changed:
            desk = self._desks.get(viewer)
        if desk is not None:
            desk.shot = shot
            self.draw(viewer)

    def draw(self, viewer: int) -> None:
        """Have the newest picture of a viewer sent, with what is laid over it."""
        with self._changed:
            self._dirty.add(viewer)
            self._changed.notify_all()

    def _send(self) -> None:
        """Pictures are encoded here: neither the one who renders nor a button waits for that."""
        while not self._closed.is_set():
            with self._changed:
                while not self._dirty and not self._closed.is_set():
                    self._changed.wait()
                waiting = [self._desks[k] for k in self._dirty if k in self._desks]
                self._dirty.clear()
            for desk in waiting:
                with contextlib.suppress(Exception):  # a viewer who left
                    desk.draw()

    def _tick(self) -> None:
        blinked = time.monotonic()
        while not self._closed.wait(_TICK):
            now = time.monotonic()
            blink = now - blinked >= _BLINK
            blinked = now if blink else blinked
            for desk in self.desks():
                with contextlib.suppress(Exception):
                    desk.tick(blink)

    def series(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Curves (images, values) by name; those that have points."""
        lock: Any = self.visit.lock if self.visit is not None else contextlib.nullcontext()
        with lock:
            found: dict[str, list[tuple[float, float]]] = {
                "loss": self.curves.series("loss"),
                "PSNR": [(float(image), psnr) for image, psnr in self.curves.evaluations],
            }
        return {
            name: (np.array([x for x, _ in points], float), np.array([y for _, y in points], float))
            for name, points in found.items()
            if len(points) > 1
        }
