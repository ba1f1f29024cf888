"""Walks COLMAP's binary files by their record lengths before anything trusts them.

COLMAP's own reader takes a cut-off cameras.bin as complete and asks for memory by counts that it read past the end of a
file, so a damaged model is found here, cheaply (no coordinates are decoded), and named in one sentence.
Layout of the records: COLMAP's format description, and `reconstruction_io_binary.cc` for rigs and frames (little endian).
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

from clm.errors import ClmError

_COUNT = struct.Struct("<Q")


@cache
def parameter_counts() -> dict[int, tuple[str, int]]:
    """Camera model id -> (name, number of parameters), for every model of the installed COLMAP."""
    import pycolmap

    known = {}
    for name, model in pycolmap.CameraModelId.__members__.items():
        if name != "INVALID":
            camera = pycolmap.Camera.create_from_model_id(1, model, 1.0, 2, 2)
            known[int(model)] = (name, len(camera.params))
    return known


def check_binary_model(folder: Path) -> None:
    """Raise ClmError naming the first of cameras.bin, images.bin, rigs.bin, frames.bin in `folder` that is not whole."""
    _walk(folder / "cameras.bin", "camera", _after_camera)
    _walk(folder / "images.bin", "image", after_image)
    for name, what, after in (("rigs.bin", "rig", _after_rig), ("frames.bin", "frame", _after_frame)):
        if (folder / name).exists():
            _walk(folder / name, what, after)


def write_binary_images(source: Path, target: Path) -> None:
    """images.bin without its observations, which may be gigabytes; `source` is whole."""
    with (
        open(source, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        open(target, "wb") as out,
    ):
        out.write(data[:8])
        at = 8
        for _ in range(_COUNT.unpack_from(data, 0)[0]):
            end = data.find(b"\0", at + 64) + 1
            out.write(data[at:end] + _COUNT.pack(0))
            at = after_image(data, at)


def _after_camera(data: mmap.mmap, at: int) -> int:
    model = struct.unpack_from("<i", data, at + 4)[0]
    if model not in parameter_counts():
        raise _UnknownModel(model)
    return at + 24 + 8 * parameter_counts()[model][1]  # id, model, width, height; parameters


def after_image(data: mmap.mmap, at: int) -> int:
    """Where the record of images.bin ends that begins at `at`."""
    length = math.hypot(*struct.unpack_from("<4d", data, at + 4))
    if not 1e-12 < length < 1e12:
        raise _NoRotation(length)
    end = data.find(b"\0", at + 64)  # id, quaternion, translation, camera id; then the name
    if end < 0:
        raise struct.error
    return end + 9 + 24 * _COUNT.unpack_from(data, end + 1)[0]  # observations: x, y, point id


def _after_rig(data: mmap.mmap, at: int) -> int:
    sensors = struct.unpack_from("<I", data, at + 4)[0]  # behind the id
    at += 8 + (8 if sensors else 0)  # type and id of the reference sensor
    for _ in range(sensors - 1):
        at += 9 + (56 if data[at + 8] else 0)  # type, id, whether it has a pose; quaternion, translation
    return at


def _after_frame(data: mmap.mmap, at: int) -> int:
    return (
        at + 68 + 16 * struct.unpack_from("<I", data, at + 64)[0]
    )  # id, rig id, pose, count; type, sensor id, image id


def binary_names(path: Path) -> dict[int, bytes]:
    """Image id -> name as stored, of a whole images.bin."""
    data, at, names = path.read_bytes(), 8, {}
    for _ in range(_COUNT.unpack_from(data, 0)[0]):
        end = data.index(b"\0", at + 64)
        names[struct.unpack_from("<I", data, at)[0]] = data[at + 64 : end]
        at = end + 9 + 24 * _COUNT.unpack_from(data, end + 1)[0]
    return names


class _UnknownModel(Exception):
    pass


class _NoRotation(Exception):
    pass


def _walk(path: Path, what: str, after: Callable[[mmap.mmap, int], int]) -> None:
    size = path.stat().st_size
    fix = "Copy the file again, or export the model from COLMAP again."
    if size < 8:
        raise ClmError(f"{path} is cut off: it holds {size} bytes, less than a count.", fix)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        count, at, done = _COUNT.unpack_from(data, 0)[0], 8, 0
        try:
            for done in range(count):  # noqa: B007 (reported below)
                at = after(data, at)
                if at > size:
                    break
            else:
                return
        except (struct.error, IndexError):
            pass
        except _NoRotation as error:
            raise ClmError(
                f"{path} is damaged: {what} {done + 1} of {count} has a quaternion of length {error}.", fix
            ) from None
        except _UnknownModel as error:
            names = ", ".join(name for name, _ in parameter_counts().values())
            raise ClmError(
                f"{path} uses camera model number {error}, which is unknown here. Supported: {names}.",
                f"Undistort first: colmap image_undistorter --image_path IMAGES --input_path {path.parent} "
                "--output_path UNDISTORTED --output_type COLMAP",
            ) from None
        raise ClmError(f"{path} is cut off or damaged: it ends inside {what} {done + 1} of {count}.", fix)
