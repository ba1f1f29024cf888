"""`clm render`: pictures, depth, camera paths and videos of a model, each view fetched through an arena of bounded size.

Frames are rendered, encoded and written one by one, in the order of the path: memory does not grow with their number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path

import numpy as np

from clm.camera import MAX_PIXELS, MAX_SIDE, Camera
from clm.config import parse_background
from clm.errors import ClmError
from clm.files import refuse_unwritable, remove_leftovers
from clm.formats.model import ModelFile
from clm.image.normals import normal_colours, normals_of_depth
from clm.pictures import (
    DepthScale,
    file_stems,
    refuse_foreign_depth_scale,
    refuse_foreign_pictures,
    save_depth,
    save_depth_scale,
    save_png,
    to_uint8,
)
from clm.progress import counted
from clm.render import Render
from clm.run.begun import read_run_config, read_split
from clm.run.events import Emit, Message, reporter
from clm.run.stopping import StopRequest
from clm.run.viewing import Budgets, loaded_store, model_renderer, with_limits
from clm.scene.camera_files import CameraFile, read_camera_file
from clm.scene.georef import read_georef
from clm.scene.paths import ellipse_path, interp_path, short_order, stand_all_round
from clm.store.store import Store
from clm.usage import nearest
from clm.video import load_av, open_video, refuse_foreign_video

Named = list[tuple[str, Camera]]
FRAMES, RATE = 120, 30.0  # of a path, unless something else is said
_MOST_FRAMES = 1_000_000  # nine hours
_OTHER_VIDEOS = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mpg", ".webm")
_SAMPLED_CAMERAS, _SAMPLED_ROWS = 64, 2000


@dataclass(frozen=True)
class Wanted:
    """What is to be rendered, and as what."""

    cameras: str = "test"  # a split, or a file
    views: str | None = None  # names of cameras, or patterns, with commas between
    path: str | None = None
    frames: int | None = None
    width: int | None = None
    height: int | None = None
    scale: float | None = None
    video: bool = False
    rate: float | None = None  # frames a second
    depth: bool = False
    normals: bool = False
    background: str = "black"

    def check(self) -> None:
        """Raise ClmError for values that contradict each other or mean nothing."""
        if self.path not in (None, "interp", "ellipse"):
            raise ClmError(f"--path is `{self.path}`.", "Use interp or ellipse.")
        if self.frames is not None and self.path is None:
            raise ClmError("--frames is of a camera path, and there is none.", "Add --path interp or ellipse.")
        if self.frames is not None and not 1 <= self.frames <= _MOST_FRAMES:
            raise ClmError(f"--frames is {self.frames}.", f"A path has 1 to {_MOST_FRAMES:,} frames.")
        if self.scale is not None and (self.width or self.height):
            raise ClmError("--scale and --width or --height contradict each other.", "Pass one of them.")
        if self.scale is not None and not 0 < self.scale <= MAX_SIDE:
            raise ClmError(f"--scale is {self.scale:g}.", "Use a factor such as 0.5 or 2.")
        for name, side in (("--width", self.width), ("--height", self.height)):
            if side is not None and not 1 <= side <= MAX_SIDE:
                raise ClmError(f"{name} is {side}.", f"Use 1 to {MAX_SIDE} pixels.")
        if self.rate is not None and not self.video:
            raise ClmError("--fps is of a video, and none is asked for.", "Add --video, or name the output OUT.mp4.")
        if self.rate is not None and not 0.1 <= self.rate <= 1000:
            raise ClmError(f"--fps is {self.rate:g}.", "Use 0.1 to 1000 frames a second.")
        parse_background(self.background)

    def sized(self, camera: Camera) -> Camera:
        """The camera at the size that is asked for."""
        width, height = self.width, self.height
        if self.scale is not None:
            width, height = (max(1, round(side * self.scale)) for side in (camera.width, camera.height))
        elif width is None and height is None:
            return camera
        width = width or max(1, round(camera.width * (height or 1) / camera.height))
        height = height or max(1, round(camera.height * width / camera.width))
        if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
            raise ClmError(
                f"Pictures of {width}x{height} px are too large: at most {MAX_PIXELS:,} pixels are rendered at once.",
                "Pass a smaller --scale, --width or --height.",
            )
        return camera.fitted(width, height)


@dataclass(frozen=True)
class Rendered:
    """What became of it. stopped: by a signal, before the last one."""

    pictures: int
    of: int
    video: Path | None
    stopped: bool

    def __str__(self) -> str:
        words = "1 image" if self.pictures == 1 else f"{self.pictures} images"
        return words + (f" of {self.of}, stopped before the others," if self.stopped else "")


def choose_cameras(model: ModelFile, which: str, emit: Emit) -> CameraFile:
    """Cameras of a split of the run, or of a file."""
    if which not in ("test", "train", "all"):
        return read_camera_file(Path(which), read_georef(model.ply.parent / "georef.json"), reporter(emit))
    if model.run is None:
        raise ClmError(f"{model.ply} belongs to no run, so there are no cameras.", "Pass --cameras FILE.json.")
    found = read_camera_file(model.run / "cameras.json", np.zeros(3))
    if which == "all":
        return found
    split = read_split(model.run, read_run_config(model.run)[1])
    held_out = split.test if split is not None else frozenset()
    chosen = [(name, camera) for name, camera in found.named if (name in held_out) == (which == "test")]
    if not chosen:
        raise ClmError(f"The run has no {which} views.", "Use --cameras all.")
    return CameraFile(chosen)


def pick(named: Named, views: str) -> Named:
    """The cameras of these names or patterns (commas between), in the order of the names. An extension may be left out."""
    chosen: Named = []
    for word in filter(None, (word.strip() for word in views.split(","))):
        found = [(n, c) for n, c in named if n == word or fnmatchcase(n, word) or n.rpartition(".")[0] == word]
        if not found:
            close = nearest(word, [name for name, _ in named])
            fix = f"Did you mean {close}?" if close else f"The first one is called {named[0][0]}."
            raise ClmError(f"No camera is called `{word}`.", fix)
        chosen += found
    if not chosen:
        raise ClmError("--views names no camera.", f"The first one is called {named[0][0]}.")
    return chosen


def path_cameras(named: Named, wanted: Wanted, emit: Emit) -> Named:
    """A camera path through (interp) or around (ellipse) the given cameras."""
    cameras, frames = [camera for _, camera in named], wanted.frames or FRAMES
    if wanted.path == "ellipse":
        around = "around what the cameras look at" if stand_all_round(cameras) else "among the cameras, from their side"
        emit(Message(f"ellipse: {around}"))
        path = ellipse_path(cameras, frames)
    else:
        order = None if wanted.views else short_order(cameras)
        if order is not None:
            emit(
                Message(
                    "the path goes from camera to near camera: in the order of their names it would be twice as long"
                )
            )
            cameras = [cameras[k] for k in order]
        path = interp_path(cameras, frames)
    return [(f"frame_{k:05d}", camera) for k, camera in enumerate(path)]


def depth_scale(named: Named, store: Store) -> DepthScale:
    """From a sample of the rows that a sample of the cameras sees."""
    rows = store.entries[:: max(1, store.rows // _SAMPLED_ROWS), :3].astype(np.float64)
    depths = []
    for _, camera in named[:: max(1, len(named) // _SAMPLED_CAMERAS)]:
        x, y, z = camera.world_to_camera[:3, :3] @ rows.T + camera.world_to_camera[:3, 3:]
        front = z > camera.near
        x, y, z = x[front], y[front], z[front]
        inside = (np.abs(x / z) < camera.width / camera.fx) & (np.abs(y / z) < camera.height / camera.fy)
        depths.append(z[inside])
    return DepthScale.of(np.concatenate(depths))


def render_model(
    model: Path, output: Path, wanted: Wanted, budgets: Budgets, emit: Emit = lambda event: None
) -> Rendered:
    """Write a PNG per camera to the folder `output`, and a video beside them if it is wanted; where `output` is an .mp4, the
    video alone. A signal ends it after the frame under way: what is there by then is kept, the video shorter."""
    if output.suffix.lower() in _OTHER_VIDEOS and not output.is_dir():
        raise ClmError(f"{output.name} cannot be written: videos are .mp4.", "Name OUT.mp4, or a folder.")
    alone = output.suffix.lower() == ".mp4"
    wanted = dataclasses.replace(wanted, video=wanted.video or alone)
    wanted.check()
    if alone and wanted.normals:
        raise ClmError(
            "--normals are pictures, and a video alone is asked for.", "Name a folder with -o, and add --video."
        )
    if wanted.video:
        load_av()  # before anything is read
    opened = budgets.open(model, emit)
    by_path = "all" if wanted.path and wanted.cameras == "test" else wanted.cameras
    named, rate, messages = choose_cameras(opened, by_path, emit)
    for text in messages:
        emit(Message(text))
    if wanted.views is not None:
        named = pick(named, wanted.views)
    if wanted.path:
        named = path_cameras(named, wanted, emit)
    named = [(name, wanted.sized(camera)) for name, camera in named]
    rate = wanted.rate or rate or RATE
    files = _Files(output, alone, file_stems([name for name, _ in named]), named[0][1], wanted, rate)
    if wanted.video and len({(camera.width, camera.height) for _, camera in named}) > 1:
        raise ClmError(
            "A video needs pictures of one size, these cameras have several.",
            "Use --path interp or ellipse, or --width and --height.",
        )
    files.refuse_foreign()
    memory, report, stop, done = budgets.host(emit), reporter(emit), StopRequest(_STOPPING, _ABANDONING), 0
    with loaded_store(opened, memory, budgets.folder(model), emit) as store, ExitStack() as stack:
        named, colour = with_limits(named, store), parse_background(wanted.background) or (0.0, 0.0, 0.0)
        render = model_renderer(opened, store, memory, colour, budgets.gpu_memory, emit)
        stack.enter_context(stop.listening())  # until videos are closed, too
        write = files.begin(stack, depth_scale(named, store) if wanted.depth else None)
        for k, (_, camera) in enumerate(counted(named, "rendering", len(named), "images", report)):
            coming = [camera for _, camera in named[k + 1 : k + 2]]
            write(k, render(camera, depth=wanted.depth or wanted.normals, coming=coming), camera)
            done = k + 1
            if stop.requested:
                break
    return Rendered(done, len(named), files.video if wanted.video else None, done < len(named))


_STOPPING = "stopping after this frame; what is done is kept, a video is shorter. Once more abandons the video"
_ABANDONING = "abandoning the video"


@dataclass(frozen=True)
class _Files:
    """What a call writes: a video alone, or a folder of pictures that may have one."""

    output: Path
    alone: bool
    stems: Sequence[str]
    like: Camera  # the size of a video
    wanted: Wanted
    rate: float

    @property
    def video(self) -> Path:
        return self.output if self.alone else self.output / "video.mp4"

    @property
    def videos(self) -> list[Path]:
        """Of colours, and of depth where that is wanted."""
        return [self.video, self.video.with_suffix(".depth.mp4")][: self.wanted.video * (1 + self.wanted.depth)]

    @property
    def scale(self) -> Path:
        return self.output / "depth.json"

    def refuse_foreign(self) -> None:
        """Raise ClmError before anything is rendered where nothing can be written, or something would be written over that clm did
        not write."""
        refuse_unwritable(self.output if self.alone else self.output / f"{self.stems[0]}.png")
        if not self.alone:
            kinds = [".png"] + [".normals.png"] * self.wanted.normals
            refuse_foreign_pictures(self.output / f"{stem}{kind}" for stem in self.stems for kind in kinds)
            if self.wanted.depth:
                refuse_foreign_depth_scale(self.scale)
        for path in self.videos:
            refuse_foreign_video(path)

    def begin(self, stack: ExitStack, scale: DepthScale | None) -> Callable[[int, Render, Camera], None]:
        """A function that writes picture k. Videos appear when `stack` is closed without an error."""
        remove_leftovers(self.video.parent)  # of a call that was killed
        size, rate = (self.like.width, self.like.height), Fraction(self.rate).limit_denominator(1001)
        adders = [stack.enter_context(open_video(path, *size, rate)) for path in self.videos]
        if scale is not None and not self.alone:
            save_depth_scale(self.scale, scale)

        def write(k: int, image: Render, camera: Camera) -> None:
            frames = [to_uint8(image.rgb)]
            if not self.alone:
                save_png(self.output / f"{self.stems[k]}.png", frames[0])
            if self.wanted.normals and image.depth is not None:
                save_png(
                    self.output / f"{self.stems[k]}.normals.png", normal_colours(normals_of_depth(image.depth, camera))
                )
            if scale is not None and image.depth is not None:
                frames += [scale.colours(image.depth)] * bool(adders)
                if not self.alone:
                    save_depth(self.output, self.stems[k], image.depth, scale)
            for add, frame in zip(adders, frames, strict=False):
                add(frame)

        return write
