"""`clm render`: images, depth and camera paths of a model, each view fetched through an arena of bounded size."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from clm.camera import Camera
from clm.config import parse_background
from clm.device.budget import find_device_budget
from clm.device.choose import open_device
from clm.errors import ClmError
from clm.extent import FAR_PER_NEAR, near_plane
from clm.formats.model import ModelFile
from clm.pictures import file_stems, save_depth, save_png, to_uint8, write_video
from clm.plan.budget import SLOT_BYTES
from clm.progress import counted, pending
from clm.render import Render
from clm.run.begun import read_run_config, read_split
from clm.run.events import Emit, Message, reporter
from clm.run.results import open_result
from clm.run.session import available_memory
from clm.scene import camera_from_json, ellipse_path, interp_path
from clm.store.layout import MEANS
from clm.store.store import Store
from clm.stream.tiers import Tiers
from clm.stream.view import render_view

Named = list[tuple[str, Camera]]


def loaded_store(model: ModelFile, emit: Emit) -> Store:
    """The rows of a model on the host; what reading had to change is said."""
    store = model.store(reporter(emit))
    for text in model.rows.messages:
        emit(Message(text, "warning"))
    return store


def model_renderer(
    model: ModelFile, store: Store, background: tuple[float, float, float], gpu_memory: str, emit: Emit
) -> Callable[..., Render]:
    """Renders any camera from the rows of a model on the host; the device holds only the rows of one view."""
    device, rasterizer = open_device("auto", antialiased=model.rows.antialiased, say=lambda text: emit(Message(text)))
    budget = find_device_budget(gpu_memory, device, lambda text: emit(Message(text, "warning")))
    if budget.reason:
        emit(Message(budget.reason))
    # What the rasteriser needs grows with the view, as the arena does.
    beside = (rasterizer.temporary_bytes(1 << 20, 0) - rasterizer.temporary_bytes(0, 0)) >> 20
    slots = budget.at_most(available_memory()) // (SLOT_BYTES + beside)
    tiers = Tiers(device, store, np.zeros(store.blocks, bool), min(store.rows, slots))
    degree = model.rows.sh_degree
    return partial(render_view, tiers, None, rasterizer, sh_degree=degree, background=background)


def read_cameras(path: Path) -> Named:
    """(name, camera) of a cameras.json of ours or of another tool."""
    try:
        entries = json.loads(path.read_text())
    except OSError:
        raise ClmError(f"No such file: {path}.", "Pass test, train, all, or a cameras.json.") from None
    except ValueError as error:  # not JSON, or not even text
        raise ClmError(f"{path} is not JSON: {error}.", "Pass a cameras.json as written by `clm train`.") from None
    cameras = camera_from_json(entries)
    if not cameras:
        raise ClmError(f"{path} holds no camera.", "Pass a cameras.json as written by `clm train`.")
    names = [str(entry.get("img_name", f"camera_{k:05d}")) for k, entry in enumerate(entries)]
    return list(zip(names, cameras, strict=True))


def with_limits(named: Named, store: Store) -> Named:
    """The cameras, those that state no near plane (other tools' files) with the one that fits the model and all of them."""
    if all(camera.near > 0 for _, camera in named):
        return named
    centres = np.array([camera.position for _, camera in named])
    near = near_plane(centres, store.geometry[:: max(1, store.rows // 1000), MEANS].astype(np.float64))
    stated = [dataclasses.replace(c, near=near, far=FAR_PER_NEAR * near) if c.near <= 0 else c for _, c in named]
    return [(name, camera) for (name, _), camera in zip(named, stated, strict=True)]


def choose_cameras(model: ModelFile, which: str) -> Named:
    """Cameras of a split of the run, or of a file."""
    if which not in ("test", "train", "all"):
        return read_cameras(Path(which))
    if model.run is None:
        raise ClmError(f"{model.ply} belongs to no run, so there are no cameras.", "Pass --cameras FILE.json.")
    named = read_cameras(model.run / "cameras.json")
    if which == "all":
        return named
    split = read_split(model.run, read_run_config(model.run)[1])
    held_out = split.test if split is not None else frozenset()
    chosen = [(name, camera) for name, camera in named if (name in held_out) == (which == "test")]
    if not chosen:
        raise ClmError(f"The run has no {which} views.", "Use --cameras all.")
    return chosen


def path_cameras(named: Named, path: str, frames: int) -> Named:
    """A camera path through (interp) or around (ellipse) the given cameras."""
    makers = {"interp": interp_path, "ellipse": ellipse_path}
    if path not in makers:
        raise ClmError(f"--path is `{path}`.", "Use interp or ellipse.")
    if frames < 1:
        raise ClmError(f"--frames is {frames}.", "A path needs one frame at least.")
    cameras = makers[path]([camera for _, camera in named], frames)
    return [(f"frame_{k:05d}", camera) for k, camera in enumerate(cameras)]


def render_model(
    model: Path,
    output: Path,
    cameras: str,
    *,
    path: str | None,
    frames: int,
    video: bool,
    depth: bool,
    background: str,
    gpu_memory: str,
    emit: Emit = lambda event: None,
) -> int:
    """Write one PNG per camera to `output`; returns how many."""
    opened = open_result(model, emit)
    named = choose_cameras(opened, "all" if path and cameras == "test" else cameras)
    if path:
        named = path_cameras(named, path, frames)
    if video and len({(camera.width, camera.height) for _, camera in named}) > 1:
        raise ClmError(
            "A video needs pictures of one size, these cameras have several.", "Use --path interp or ellipse."
        )
    store = loaded_store(opened, emit)
    named, colour = with_limits(named, store), parse_background(background) or (0.0, 0.0, 0.0)
    render = model_renderer(opened, store, colour, gpu_memory, emit)
    stems, report = file_stems([name for name, _ in named]), reporter(emit)
    for k, (_, camera) in enumerate(counted(named, "rendering", len(named), "images", report)):
        image = render(camera, depth=depth)
        save_png(output / f"{stems[k]}.png", to_uint8(image.rgb))
        if image.depth is not None:
            save_depth(output, stems[k], image.depth)
    if video:
        with pending("encoding the video", report):
            write_video(output, stems)
    return len(stems)
