"""A scene: training views with their photos, the points to start from, and what the user should know about both.

`load_scene` reads the COLMAP model, matches it with the photos on disk (headers only; `ImageCache` decodes the pixels),
fixes each view's training size and camera, and splits train and test.
Invariants: views are sorted by name; every camera is a pinhole at training resolution that agrees with the decoded
pixels; the world is the input's, minus `offset` (zeros unless float32 could not hold it).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clm.camera import Camera
from clm.errors import ClmError
from clm.extent import FAR_PER_NEAR, near_plane, scene_scale, usual_cameras
from clm.progress import Report, counted, unseen
from clm.scene.colmap import Model, ModelImage, read_model
from clm.scene.decode import CorruptImage, Header, image_header
from clm.scene.georef import find_offset, shifted_pose
from clm.scene.observed import Observed
from clm.scene.split import split_by_list, split_views
from clm.scene.undistort import SourceCamera, Training, plan_training

_POINTS_AT_ONCE = 1 << 16


@dataclass(frozen=True, eq=False)
class View:
    """One photo and its camera."""

    name: str  # as in COLMAP, with subfolders
    camera: Camera  # pinhole, at training resolution, in the scene's frame
    training: Training = field(repr=False)  # how the file becomes the training image
    image_path: Path | None  # None: loaded without photos
    mask_path: Path | None = None  # what of the photo counts; the photo itself: its alpha channel says so
    transparent: bool = False  # whether nothing is there where the mask is black, or only nothing known

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded photo."""
        return self.camera.width * self.camera.height * 3


@dataclass(frozen=True, eq=False)
class Scene:
    """What training needs to know about the input."""

    path: Path
    model_path: Path
    views: tuple[View, ...] = field(repr=False)  # sorted by name
    train: np.ndarray = field(repr=False)  # i32 indices into views
    test: np.ndarray = field(repr=False)  # i32 indices into views
    points: np.ndarray = field(repr=False)  # [P, 3] f32, offset subtracted
    point_colors: np.ndarray = field(repr=False)  # [P, 3] u8
    offset: np.ndarray  # [3] f64: world = local + offset
    scale: float  # scene_scale, see clm.extent
    messages: tuple[str, ...]  # plain sentences for the user
    observed: tuple[Observed, ...] = field(default=(), repr=False)  # points, by some of the images

    @property
    def point_bytes(self) -> int:
        return self.points.nbytes + self.point_colors.nbytes

    def forget_points(self) -> None:
        """Rows were made of the points, and nobody else needs them: 15 bytes of each go back to the system."""
        object.__setattr__(self, "points", np.zeros((0, 3), np.float32))
        object.__setattr__(self, "point_colors", np.zeros((0, 3), np.uint8))


def load_scene(
    path: Path | str,
    *,
    images: Path | str | None = None,
    model: int | None = None,
    downscale: int | str = "auto",
    max_size: int = 1600,
    test_every: int = 8,
    test_list: Path | str | None = None,
    masks: Path | str | None = None,
    mask_mode: str = "ignore",
    near: float | None = None,
    far: float | None = None,
    strict: bool = False,
    require_images: bool = True,
    colmap: Model | None = None,
    report: Report = unseen,
) -> Scene:
    """Load a folder with a COLMAP model and its photos.

    images, masks: folders, relative to `path` or to the working directory. downscale: "auto" (only the cap applies), 1,
    2, 4, 8. max_size: px, cap of the longer side. test_every: every Nth view by name is held out, 0: none; test_list: the views
    that a file names instead. mask_mode: "ignore" or "transparent", what masks and alpha channels mean. near, far: scene units;
    None: from the scene (`clm.extent`). strict: fail on an unreadable photo
    instead of leaving the view out. require_images=False: the model alone, at the sizes it states. colmap: the model, where it was
    read before.
    Raises ClmError for anything missing, damaged or contradictory.
    """
    path = Path(path)
    if str(downscale) not in ("auto", "1", "2", "4", "8"):
        raise ClmError(f"downscale is {downscale}.", "Use auto, 1, 2, 4 or 8.")
    if colmap is None:
        colmap = read_model(path, model=model, report=report)
    messages = list(colmap.messages)
    files: list[_File] = [_File(image, image.camera, None) for image in colmap.images]
    if require_images:
        files = _match_photos(colmap, _image_folder(path, images), strict, messages, report)
    trainings = _plan(files, downscale, max_size, messages)
    mask_paths = _masks(files, _folder(path, masks) if masks is not None else None, mask_mode, messages)

    # Lengths come from the whole model, so that a photo that is missing changes none of them.
    centres = camera_centres(colmap)
    offset = _offset(colmap, centres, trainings, messages)
    limits = _clip_range(centres, colmap.points, near, far, messages)
    views = tuple(
        View(
            f.image.name, t.camera(shifted_pose(f.image.world_to_camera, offset), *limits), t, f.path, m,
            mask_mode == "transparent",
        )
        for f, t, m in zip(files, trainings, mask_paths, strict=True)
    )  # fmt: skip
    if test_list is None:
        train, test = split_views(len(views), test_every, messages)
    else:
        registered = [image.name for image in colmap.images]
        train, test = split_by_list([view.name for view in views], registered, _file(path, test_list), messages)
    points = np.empty((len(colmap.points), 3), np.float32)
    for first in range(0, len(points), _POINTS_AT_ONCE):
        piece = slice(first, first + _POINTS_AT_ONCE)
        points[piece] = colmap.points[piece] - offset
    scale = scene_scale(centres, colmap.points)
    said = tuple(messages)
    return Scene(
        path, colmap.folder, views, train, test, points, colmap.point_colors, offset, scale, said, colmap.observed
    )


@dataclass(frozen=True, eq=False)
class _File:
    image: ModelImage
    source: SourceCamera  # for the size on disk
    path: Path | None
    alpha: bool = False  # whether the photo has an alpha channel


def _folder(path: Path, given: Path | str) -> Path:
    """A folder the user named: inside the scene, or relative to the working directory."""
    return _named(path, given, "folder", Path.is_dir)


def _file(path: Path, given: Path | str) -> Path:
    """A file the user named: inside the scene, or relative to the working directory."""
    return _named(path, given, "file", Path.is_file)


def _named(path: Path, given: Path | str, kind: str, fits: Callable[[Path], bool]) -> Path:
    for found in (path / given, Path(given)):
        if fits(found):
            return found
    looked = path / given if Path(given).is_absolute() else f"{path / given} and {Path(given).absolute()}"
    raise ClmError(f"No such {kind}: {given} (looked for {looked}).")


def _image_folder(path: Path, images: Path | str | None) -> Path:
    if images is not None:
        return _folder(path, images)
    if not (path / "images").is_dir():
        raise ClmError(f"No image folder: looked for {path / 'images'}.", "Name it with --images FOLDER.")
    return path / "images"


def _match_photos(colmap: Model, folder: Path, strict: bool, messages: list[str], report: Report) -> list[_File]:
    """The registered images that exist and whose header can be read, with cameras for the sizes on disk."""
    with ThreadPoolExecutor(8) as pool:  # headers: latency of the file system, not work
        read = pool.map(_header_or_error, [_photo(folder, image.name) for image in colmap.images])
        headers = list(counted(read, "checking photos", len(colmap.images), "photos", report))
    total, files = len(headers), []
    missing = [image.name for image, header in zip(colmap.images, headers, strict=True) if header is None]
    if len(missing) * 2 > total:
        raise ClmError(
            f"{len(missing)} of {total} images are missing in {folder} (first: {missing[0]}).",
            "Name the right folder with --images FOLDER.",
        )
    if missing:
        messages.append(f"{len(missing)} of {total} images are missing (first: {missing[0]}). Training without them.")
    corrupt, other_size, turned = [], [], list[str]()
    for image, header in zip(colmap.images, headers, strict=True):
        if header is None:
            continue
        if isinstance(header, CorruptImage):
            if strict:
                raise header
            corrupt.append(header)
            continue
        source, size = image.camera, header.size
        turned += [image.name] if header.turned else []
        if size != (source.width, source.height):
            _check_aspect(_photo(folder, image.name), source, size)
            other_size.append(f"{image.name}, {size[0]}x{size[1]} instead of {source.width}x{source.height}")
            source = source.resized(*size)
        files.append(_File(image, source, _photo(folder, image.name), header.alpha))
    if corrupt:
        messages.append(f"{len(corrupt)} of {total} images cannot be read. Training without them. {corrupt[0].message}")
    if other_size:
        count = f"{len(other_size)} of {total}"
        messages.append(
            f"{count} images differ in size from their COLMAP camera (first: {other_size[0]}). Intrinsics are scaled."
        )
    if turned:
        messages.append(
            f"{len(turned)} of {total} photos have an EXIF orientation (first: {turned[0]}). They are used as they are "
            "stored, as COLMAP does."
        )
    if not files:
        raise ClmError(f"None of the {total} images in {folder} can be read. {corrupt[0].message}", corrupt[0].fix)
    return files


def _photo(folder: Path, name: str) -> Path:
    """Where the photo of a model's image is; a name that was not UTF-8 may lie on disk with the bytes the model has."""
    path = folder / name
    if not name.isascii() and not path.is_file():
        try:
            return folder / os.fsdecode(name.encode("latin-1"))
        except UnicodeEncodeError:
            pass
    return path


def _header_or_error(path: Path) -> Header | CorruptImage | None:
    if not path.is_file():
        return None
    try:
        return image_header(path)
    except CorruptImage as error:
        return error


def _check_aspect(path: Path, source: SourceCamera, size: tuple[int, int]) -> None:
    """Both sides may be off by one pixel of rounding; more means that this is another picture."""
    width, height = size
    slope = source.height / source.width
    if abs(height - width * slope) <= 1.0 + slope:
        return
    turned = abs(width - height * slope) <= 1.0 + slope
    hint = "It looks rotated by 90 degrees: save it as COLMAP saw it." if turned else "Use the photos COLMAP ran on."
    raise ClmError(
        f"{path} is {width}x{height}, but its COLMAP camera is {source.width}x{source.height}: another aspect ratio.",
        hint,
    )


def _plan(files: list[_File], downscale: int | str, max_size: int, messages: list[str]) -> list[Training]:
    known: dict[SourceCamera, Training] = {}  # undistorting a camera costs milliseconds; scenes share cameras
    for file in files:
        if file.source not in known:
            known[file.source] = plan_training(file.source, downscale, max_size)
    trainings = [known[file.source] for file in files]
    distorted = [f.source.colmap_model for f in files if not f.source.is_pinhole]
    if distorted:
        models = ", ".join(sorted(set(distorted)))
        messages.append(f"{len(distorted)} of {len(files)} images are undistorted while loading ({models}).")
    shrunk = sum(t.width < t.full_width for t in trainings)
    if shrunk:
        longest = max(max(t.width, t.height) for t in trainings)
        messages.append(f"{shrunk} of {len(files)} images are shrunk; the longest side trained on is {longest} px.")
    return trainings


def _masks(files: list[_File], folder: Path | None, mode: str, messages: list[str]) -> list[Path | None]:
    """For each view the file that says what of its photo counts: a mask, or else the photo itself where it has an alpha channel."""
    found = _match_masks(files, folder, messages) if folder is not None else [None] * len(files)
    alpha = [file.image.name for file, mask in zip(files, found, strict=True) if mask is None and file.alpha]
    if alpha:
        means = {
            "ignore": "What is more than half transparent does not count (--mask-mode transparent: nothing is there)",
            "transparent": "Where they are transparent, nothing is there (--mask-mode ignore: it does not count)",
        }[mode]
        messages.append(f"{len(alpha)} of {len(files)} photos have an alpha channel (first: {alpha[0]}). {means}.")
    elif mode == "transparent" and not any(found):
        messages.append("No photo has a mask or an alpha channel: --mask-mode transparent has nothing to cut out.")
    return [mask or (file.path if file.alpha else None) for file, mask in zip(files, found, strict=True)]


def _match_masks(files: list[_File], folder: Path, messages: list[str]) -> list[Path | None]:
    """For each view NAME.png (COLMAP's way: a.jpg.png), STEM.png, or the same name; subfolders are kept."""
    found: list[Path | None] = []
    for file in files:
        name = file.image.name
        candidates = (folder / f"{name}.png", (folder / name).with_suffix(".png"), folder / name)
        found.append(next((c for c in candidates if c.is_file()), None))
        header = None if found[-1] is None else _header_or_error(found[-1])
        if found[-1] is not None and isinstance(header, Header):
            _check_aspect(found[-1], file.source, header.size)
    lacking = [f.image.name for f, m in zip(files, found, strict=True) if m is None]
    if len(lacking) == len(files):
        raise ClmError(
            f"No mask in {folder} matches an image (looked for {lacking[0]}.png, among others).",
            "Name masks like the images.",
        )
    lacking = [f.image.name for f, m in zip(files, found, strict=True) if m is None and not f.alpha]
    if lacking:
        messages.append(f"{len(lacking)} of {len(files)} images have no mask (first: {lacking[0]}) and count entirely.")
    return found


def camera_centres(colmap: Model) -> np.ndarray:
    """Centres [V, 3] f64 of all registered images, in the model's frame."""
    poses = np.array([image.world_to_camera for image in colmap.images])
    return -np.einsum("vij,vi->vj", poses[:, :3, :3], poses[:, :3, 3])


def _clip_range(
    centres: np.ndarray, points: np.ndarray, near: float | None, far: float | None, messages: list[str]
) -> tuple[float, float]:
    """Near and far plane (scene units), as stated or from the scene."""
    stray = int((~usual_cameras(centres)).sum())
    if stray:
        messages.append(
            f"{stray} of {len(centres)} cameras are far away from the others: they do not count for the scene's size."
        )
    near = near_plane(centres, points) if near is None else near
    far = FAR_PER_NEAR * near if far is None else far
    if not 0 < near < far:
        raise ClmError(
            f"The near plane {near:g} is not nearer than the far plane {far:g}.", "Leave out --far or --near."
        )
    return near, far


def _offset(colmap: Model, centres: np.ndarray, trainings: list[Training], messages: list[str]) -> np.ndarray:
    focal = max(t.pinhole[2] * t.width / t.pinhole[0] for t in trainings)
    offset = find_offset(centres, colmap.points, focal)
    if offset.any():
        x, y, z = (f"{v:.10g}" for v in offset)
        messages.append(f"The scene is far from its origin: ({x}, {y}, {z}) is subtracted and kept in georef.json.")
    return offset
