"""`clm train --viewer`: the page of a run that trains, from its scene and its events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clm.extent import sampled
from clm.report.curves import read_curves
from clm.run.events import Emit, Message
from clm.run.stopping import StopRequest
from clm.scene import Scene
from clm.view.album import album_of_scene
from clm.view.easel import Easel
from clm.view.frame import Frame
from clm.view.page import Page
from clm.view.server import HOST, serving, where
from clm.view.visit import Visit


@contextmanager
def visited(scene: Scene, run: Path, stop: StopRequest, emit: Emit, port: int, resume: bool) -> Iterator[Visit]:
    """A visit to the run in `run`, whose events it is to hear, with a page at `port` of this machine. resume: its curves go on."""
    album = album_of_scene(scene)
    frame = Frame.of(album.cameras, sampled(scene.points))
    easel = Easel(frame, album.cameras)
    visit = Visit(easel, stop, emit, read_curves(run / "events.jsonl") if resume else None)
    with serving(HOST, port) as (server, port):
        page = Page(server, easel, album, run.resolve().name, visit=visit)
        page.open()
        emit(Message(f"viewer: {where(HOST, port)}"))
        try:
            yield visit
        finally:
            if easel.looked_at:
                time.sleep(0.3)  # the last words are on their way to the browsers
            page.close()
