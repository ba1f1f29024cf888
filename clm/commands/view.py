"""`clm view`: a finished model in the browser, or the newest state of a run; what is shown is rendered here."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

from clm.config import parse_background
from clm.errors import ClmError
from clm.formats.model import ModelFile
from clm.report.curves import read_curves
from clm.run.begun import read_run_config
from clm.run.events import Emit, Message
from clm.run.stopping import StopRequest
from clm.run.viewing import Budgets, loaded_store, model_renderer, with_limits
from clm.store.store import Store
from clm.view.album import Album, Place, album_of_run, find_photos
from clm.view.easel import Easel
from clm.view.frame import Frame
from clm.view.page import Page
from clm.view.server import free_port, load_viser, serving, where
from clm.view.splats import MOST_SPLATS, BrowserModel

_SAMPLED_ROWS = 2000


def view_model(
    model: Path,
    budgets: Budgets,
    emit: Emit = lambda event: None,
    *,
    host: str,
    port: int | None = None,
    background: str | None = None,
    data: Path | None = None,
    stop: StopRequest | None = None,
    ready: Callable[[int], None] = lambda port: None,
) -> None:
    """Serve a page that shows the model until a signal ends it. data: where the run's scene is now. ready: hears the port."""
    stop = stop or StopRequest("closing the viewer", "closing the viewer at once")
    load_viser()  # before anything is read
    port = free_port(host, port)
    if background is not None:
        parse_background(background)
    opened = budgets.open(model, emit)
    if data is not None:
        _check_data(data, opened)
    memory = budgets.host(emit)
    with serving(host, port) as (server, port):
        server.gui.set_panel_label("reading the model")  # while the browser fetches the page
        emit(Message(f"{where(host, port)}; Ctrl-C ends it"))
        with loaded_store(opened, memory, budgets.folder(model), emit) as store:
            album = _album(opened, store)
            frame = Frame.of(album.cameras, store.entries[:: max(1, store.rows // _SAMPLED_ROWS), :3])
            colour = parse_background(background or _background(opened)) or (0.0, 0.0, 0.0)
            render = model_renderer(opened, store, memory, colour, budgets.gpu_memory, emit)
            easel = Easel(frame, album.cameras)
            # Rows on disk are for the eye of one reader; a browser that draws wants them all.
            fits = store.disk is None and 0 < store.rows <= MOST_SPLATS
            curves = read_curves(opened.run / "events.jsonl") if opened.run is not None else None
            browser_model = (lambda: BrowserModel.of(store, opened.rows.sh_degree, frame)) if fits else None
            name = (opened.run or opened.ply).resolve().name
            page = Page(server, easel, album, name, _facts(opened, store), curves, browser_model=browser_model)
            page.open()
            if opened.run is not None:
                threading.Thread(target=find_photos, args=(album, opened.run, data, page.say), daemon=True).start()
            else:
                album.find({})
            ready(port)
            with stop.listening():
                while not stop():
                    if not easel.paint(render):
                        easel.wait(0.05 if easel.looked_at else 0.5)
            page.close()


def _check_data(data: Path, model: ModelFile) -> None:
    """ClmError where photos are asked for that the page could not show."""
    if model.run is None:
        raise ClmError(f"--data is of a run, and {model.ply} belongs to none.", "Leave it out.")
    if not data.is_dir():
        raise ClmError(f"--data {data} is no folder.", "Pass the folder that holds `images` and `sparse`.")


def _album(model: ModelFile, store: Store) -> Album:
    """The cameras of the run that the model belongs to; none where it belongs to none."""
    if model.run is None:
        return Album([])
    try:
        metrics = json.loads((model.run / "metrics.json").read_text())
    except (OSError, ValueError, RecursionError):
        metrics = None
    album = album_of_run(model.run, metrics)
    named = with_limits([(place.name, place.camera) for place in album.places], store)
    places = zip(album.places, named, strict=True)
    return Album([Place(place.name, camera, place.held_out, place.psnr) for place, (_, camera) in places])


def _background(model: ModelFile) -> str:
    """The one that the run's pictures have."""
    if model.run is None:
        return "black"
    try:
        return read_run_config(model.run)[1].background
    except ClmError:
        return "black"


def _facts(model: ModelFile, store: Store) -> list[tuple[str, str]]:
    facts = [("model", model.ply.name), ("Gaussians", f"{store.rows:,}"), ("SH degree", str(model.rows.sh_degree))]
    if model.rows.antialiased:
        facts.append(("filter", "antialiased"))
    if store.disk is not None:
        facts.append(("in host memory", f"{store.disk.frames:,} of {store.pages:,} pages"))
    return facts
