"""COLMAP models as plain values: where they are found, read, and checked. No image is touched here.

pycolmap reads cameras and poses (binary or text), without points, and in large models without observations, which may be
gigabytes; `binary.py` checks binary files first, `points.py` reads the points. Everything that leaves this module is numpy and
dataclasses in the input's world frame, float64, sorted (images by name, points by id), so that the text and the binary form of
one model give equal values. Poses are world to camera, OpenCV axes.
"""

from __future__ import annotations

import importlib
import signal
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from clm.camera import MAX_VALUE
from clm.errors import ClmError
from clm.progress import Report, pending, unseen
from clm.scene.binary import binary_names, check_binary_model, write_binary_images
from clm.scene.observed import Observed, sampled_observations, sought_points
from clm.scene.points import read_points
from clm.scene.undistort import SourceCamera, source_camera

_PLACES = ("sparse", "colmap/sparse", ".")
_LARGE_MODEL = 256 << 20  # bytes that take seconds to read
_LARGE_IMAGES = 16 << 20  # bytes, nearly all of observations, which are then left out


@dataclass(frozen=True, eq=False)
class ModelImage:
    """One registered image."""

    name: str  # as in COLMAP, with subfolders
    camera: SourceCamera  # as calibrated, distortion included
    world_to_camera: np.ndarray = field(repr=False)  # [4, 4] f64


@dataclass(frozen=True, eq=False)
class Model:
    """A COLMAP model in its own world frame."""

    folder: Path
    images: tuple[ModelImage, ...]  # sorted by name
    points: np.ndarray = field(repr=False)  # [P, 3] f64, sorted by point id
    point_colors: np.ndarray = field(repr=False)  # [P, 3] u8
    messages: tuple[str, ...]
    observed: tuple[Observed, ...] = field(default=(), repr=False)  # by some of the images


def read_model(path: Path | str, *, model: int | None = None, points: bool = True, report: Report = unseen) -> Model:
    """The COLMAP model of a scene folder; with several (sparse/0, sparse/1, ...) the one with most images, or `model`. points:
    False where only its cameras are wanted.

    Raises ClmError where there is none, or where a file of it is damaged (naming the file).
    """
    folder, messages = _find_model(Path(path), model)
    size = (folder / f"images{_suffix(folder)}").stat().st_size
    with pending(f"reading the COLMAP model in {folder}", report, long=size > _LARGE_MODEL):
        reconstruction, known = _reconstruct(folder)
    images, skipped = _images(reconstruction, known, folder)
    if not images:
        raise ClmError(
            f"The COLMAP model in {folder} has no registered image.", "Run COLMAP's mapper again, or choose --model N."
        )
    if skipped:
        messages.append(f"{len(skipped)} images have no usable pose (first: {skipped[0]}). Training without them.")
    kept = tuple(images.values())
    if not points:
        return Model(folder, kept, np.zeros((0, 3)), np.zeros((0, 3), np.uint8), tuple(messages))
    sizes = {number: (image.name, image.camera.width, image.camera.height) for number, image in images.items()}
    observations = sampled_observations(folder / f"images{_suffix(folder)}", sizes)
    sought = sought_points(observations)
    places, colors, dropped = read_points(folder / f"points3D{_suffix(folder)}", report, sought)
    observed = tuple(some.observed(sought) for some in observations)
    if dropped:
        messages.append(f"{dropped} of {len(places) + dropped} points are not finite and were dropped.")
    if len(places) == 0:
        messages.append(f"The COLMAP model in {folder} has no 3D points: Gaussians start at random places.")
    return Model(folder, kept, places, colors, tuple(messages), observed)


def _suffix(folder: Path) -> str | None:
    """Form of the model in this folder, or None where there is none; binary wins, as in COLMAP."""
    for suffix in (".bin", ".txt"):
        if all((folder / (stem + suffix)).is_file() for stem in ("cameras", "images")):
            return suffix
    return None


def registered_images(folder: Path) -> int:
    """How many images a model claims, from the first bytes (binary) or the number of lines (text)."""
    if _suffix(folder) == ".bin":
        with open(folder / "images.bin", "rb") as file:
            return int.from_bytes(file.read(8), "little")
    with open(folder / "images.txt", "rb") as file:
        return sum(not line.startswith(b"#") for line in file) // 2


def _find_model(path: Path, model: int | None) -> tuple[Path, list[str]]:
    if not path.exists():
        raise ClmError(f"No such directory: {path}")
    if not path.is_dir():
        raise ClmError(f"{path} is a file.", "Pass the folder that holds `images` and `sparse`.")
    for place in _PLACES:
        base = path / place
        if not base.is_dir():
            continue
        numbered = [f for f in base.iterdir() if f.is_dir() and f.name.isdigit() and _suffix(f)]
        numbered.sort(key=lambda folder: int(folder.name))
        if model is not None and numbered:
            chosen = [folder for folder in numbered if int(folder.name) == model]
            if not chosen:
                names = ", ".join(folder.name for folder in numbered)
                raise ClmError(f"No COLMAP model {base / str(model)}.", f"--model can be one of: {names}.")
            return chosen[0], []
        if len(numbered) == 1:
            return numbered[0], []
        if numbered:
            return _largest(numbered)
        if _suffix(base) and not model:
            return base, []
    raise _no_model(path)


def _largest(folders: list[Path]) -> tuple[Path, list[str]]:
    """The folder with most registered images; the first of equals."""
    counts = [registered_images(folder) for folder in folders]
    best = counts.index(max(counts))
    rest = ", ".join(f"{f.name}: {n}" for f, n in zip(folders, counts, strict=True))
    message = (
        f"{len(folders)} COLMAP models found (images per model: {rest}); using {folders[best]}. --model overrides."
    )
    return folders[best], [message]


def _no_model(path: Path) -> ClmError:
    looked = [f"{place}/cameras{suffix}" for place in ("sparse/0", "sparse") for suffix in (".bin", ".txt")]
    looked += ["cameras.bin", "cameras.txt", "colmap/sparse/0/cameras.bin"]
    fix = "Run COLMAP on the photos, or pass the folder that holds `sparse`."
    if (path / "transforms.json").exists():
        fix = "A transforms.json was found, which is not read: run COLMAP on its photos and pass that folder."
    return ClmError(f"No COLMAP model in {path}. Looked for (each with images.*): {', '.join(looked)}.", fix)


def _reconstruct(folder: Path) -> tuple[Any, dict[int, str]]:
    """pycolmap's model without points, and the names of its images by id."""
    pycolmap = _load_pycolmap()
    pycolmap.logging.minloglevel = 3  # its C++ logs to stderr; whatever matters arrives as an exception
    suffix = _suffix(folder)
    if suffix == ".bin":
        check_binary_model(folder)
    try:
        with tempfile.TemporaryDirectory() as lean:
            images = f"images{suffix}"
            large = (folder / images).stat().st_size > _LARGE_IMAGES
            for name in (f"{stem}{suffix}" for stem in ("cameras", "rigs", "frames", "images")):
                if (folder / name).is_file() and not (large and name == images):
                    Path(lean, name).symlink_to((folder / name).absolute())
            if large:
                (write_binary_images if suffix == ".bin" else _write_text_images)(folder / images, Path(lean, images))
            Path(lean, f"points3D{suffix}").write_bytes(bytes(8) if suffix == ".bin" else b"")
            reconstruction = pycolmap.Reconstruction()
            (reconstruction.read_binary if suffix == ".bin" else reconstruction.read_text)(lean)
            return reconstruction, _names(reconstruction, Path(lean, images))
    except (ClmError, OSError):
        raise
    except Exception as error:  # pycolmap maps every C++ exception to some Python one
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ClmError(
            f"Cannot read the COLMAP model in {folder}: {_suspect(folder, suffix)} is damaged or cut off ({reason}).",
            "Copy the files again, or export the model from COLMAP again.",
        ) from None


def _write_text_images(source: Path, target: Path) -> None:
    """images.txt without its observations. ValueError for a line of them that is cut off."""
    with open(source, "rb") as file, open(target, "wb") as out:
        for line in file:
            if line.strip() and not line.startswith(b"#"):
                out.write(line)
                observations = file.readline()
                numbers = observations.count(b" ") + 1
                if observations.strip() and numbers % 3 and len(observations.split()) % 3:
                    raise ValueError("a line of observations that are not three numbers each")
                out.write(b"\n" if observations else b"")


def _load_pycolmap() -> Any:
    """Import pycolmap, with signals as Python had set them.

    Importing it sets glog's handler, with which SIGTERM prints a stack trace. And Ctrl-C in the middle of the import would come
    out as an ImportError that advises to install it: it is heard when the import is done."""
    if threading.current_thread() is not threading.main_thread():
        return importlib.import_module("pycolmap")
    heard: list[tuple[int, FrameType | None]] = []
    interrupt = signal.signal(signal.SIGINT, lambda *call: heard.append(call))
    try:
        pycolmap = importlib.import_module("pycolmap")
    finally:
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
    if heard and callable(interrupt):
        interrupt(*heard[0])
    return pycolmap


def _suspect(folder: Path, suffix: str | None) -> str:
    """The text file that holds fewer lines than its own header announces; all of them where that does not tell."""
    stems = ("cameras", "images")
    for stem, lines_each in zip(stems, (1, 2), strict=True):
        path = folder / f"{stem}.txt"
        if suffix != ".txt" or not path.is_file():
            continue
        announced, lines = None, 0
        with open(path, errors="replace") as file:
            for line in file:
                if line.startswith("# Number of"):
                    digits = line.split(":", 1)[-1].split(",")[0].strip()
                    announced = int(digits) if digits.isdigit() else None
                lines += not line.startswith("#")
        if announced is None or lines < announced * lines_each:
            return path.name
    return f"one of {', '.join(stem + (suffix or '') for stem in stems)}"


def _images(reconstruction: Any, known: dict[int, str], folder: Path) -> tuple[dict[int, ModelImage], list[str]]:
    """By image id, in order of names; and the names of those without a usable pose."""
    cameras = {camera_id: source_camera(camera, f"{folder}") for camera_id, camera in reconstruction.cameras.items()}
    images: dict[int, ModelImage] = {}
    skipped, before = [], None
    for image_id, image in sorted(reconstruction.images.items(), key=lambda item: known[item[0]]):
        if not image.has_pose:
            continue
        name, pose = known[image_id], _pose(image.cam_from_world())
        if name == before:
            raise ClmError(f"The COLMAP model in {folder} has two images called {name}.", "Remove one of them.")
        if pose is not None:
            images[image_id], before = ModelImage(name, cameras[image.camera_id], pose), name
        else:
            skipped.append(name)
    return images, skipped


def _names(reconstruction: Any, images: Path) -> dict[int, str]:
    """Image id -> name. One that is not UTF-8 is read as Latin-1, so that it can be shown and encoded back."""
    try:
        return {image_id: image.name for image_id, image in reconstruction.images.items()}
    except UnicodeDecodeError:
        pass  # pycolmap hands out text only
    found = (binary_names if images.suffix == ".bin" else _text_names)(images)
    return {image_id: decode_name(found[image_id]) for image_id in reconstruction.images}


def decode_name(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name.decode("latin-1")


def _text_names(path: Path) -> dict[int, bytes]:
    lines = [line for line in path.read_bytes().splitlines() if not line.startswith(b"#")]
    fields = [line.split(None, 9) for line in lines]
    return {int(f[0]): f[9].strip() for f in fields if len(f) == 10 and f[0].isdigit()}


def _pose(cam_from_world: Any) -> np.ndarray | None:
    """World to camera [4, 4] f64 with the quaternion normalised; None where that or a number is impossible."""
    quat, pose = np.array(cam_from_world.rotation.quat, np.float64), np.eye(4)
    length = float(np.linalg.norm(quat))
    if not (1e-12 < length < 1e12):
        return None
    x, y, z, w = quat / length
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = cam_from_world.translation
    return pose if np.isfinite(pose).all() and np.abs(pose).max() <= MAX_VALUE else None
