"""`clm render`: images, depth and camera paths of a model, each view fetched through an arena of bounded size."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from clm.camera import Camera
from clm.config import parse_background
from clm.errors import ClmError
from clm.extent import FAR_PER_NEAR, near_plane
from clm.formats.model import ModelFile
from clm.pictures import file_stems, refuse_foreign_pictures, save_depth, save_png, to_uint8, write_video
from clm.progress import counted, pending
from clm.run.begun import read_run_config, read_split
from clm.run.events import Emit, reporter
from clm.run.viewing import Budgets, loaded_store, model_renderer
from clm.scene import camera_from_json, ellipse_path, interp_path
from clm.store.store import Store

Named = list[tuple[str, Camera]]


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
    near = near_plane(centres, store.entries[:: max(1, store.rows // 1000), :3].astype(np.float64))
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
    budgets: Budgets,
    emit: Emit = lambda event: None,
) -> int:
    """Write one PNG per camera to `output`; returns how many."""
    opened = budgets.open(model, emit)
    named = choose_cameras(opened, "all" if path and cameras == "test" else cameras)
    if path:
        named = path_cameras(named, path, frames)
    if video and len({(camera.width, camera.height) for _, camera in named}) > 1:
        raise ClmError(
            "A video needs pictures of one size, these cameras have several.", "Use --path interp or ellipse."
        )
    stems = file_stems([name for name, _ in named])
    refuse_foreign_pictures(output / f"{stem}.png" for stem in stems)
    memory, report = budgets.host(emit), reporter(emit)
    with loaded_store(opened, memory, budgets.folder(model), emit) as store:
        named, colour = with_limits(named, store), parse_background(background) or (0.0, 0.0, 0.0)
        render = model_renderer(opened, store, memory, colour, budgets.gpu_memory, emit)
        for k, (_, camera) in enumerate(counted(named, "rendering", len(named), "images", report)):
            image = render(camera, depth=depth)
            save_png(output / f"{stems[k]}.png", to_uint8(image.rgb))
            if image.depth is not None:
                save_depth(output, stems[k], image.depth)
    if video:
        with pending("encoding the video", report):
            write_video(output, stems)
    return len(stems)
