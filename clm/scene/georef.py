"""Far-away origins: a whole-number float64 offset that keeps float32 exact enough, and its file `georef.json`.

The world frame of a run is the input's frame, never rotated or scaled. Only where float32 cannot hold the coordinates
is an offset subtracted, and then written beside the results: world = local + offset.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from clm.errors import ClmError
from clm.extent import camera_spread, sampled, usual_cameras, view_distance
from clm.files import write_json

_PIXELS = 0.05  # one float32 step of a coordinate may move a projection by this much


def find_offset(centres: np.ndarray, points: np.ndarray, focal: float) -> np.ndarray:
    """Offset [3] f64 (integers, or round numbers of the scene's own unit where that is below 1) to subtract, or zeros.

    centres [V, 3] f64 camera centres, points [P, 3] f64, focal in px. COLMAP's unit is arbitrary, so a bound in
    millimetres means nothing: what is bounded is the image. One float32 step at the largest camera coordinate, seen
    from the usual distance (median over a sample of points of the distance to the nearest camera), must stay below
    0.05 px.
    UTM coordinates (1e6 m, photos from 50 m) miss it by two orders of magnitude; a scene near its origin meets it
    by two or more. Neither points nor stray cameras enter the largest coordinate: reconstructions contain both far away.
    """
    if len(centres) == 0:
        return np.zeros(3)
    middle, spread = camera_spread(centres)
    largest = np.abs(centres[usual_cameras(centres)]).max()
    distance = view_distance(centres - middle, sampled(points) - middle) or spread or 1.0
    if float(np.spacing(np.float32(largest))) * focal / distance <= _PIXELS:
        return np.zeros(3)
    grid = min(1.0, 10.0 ** np.floor(np.log10(distance)))
    return np.round(middle / grid) * grid


def shifted_pose(world_to_camera: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The pose [4, 4] f64 for a world whose coordinates have `offset` subtracted."""
    pose = world_to_camera.copy()
    pose[:3, 3] += pose[:3, :3] @ offset
    return pose


def write_georef(path: Path | str, offset: np.ndarray) -> None:
    """Write {"offset": [x, y, z], "world": "local + offset"} whole or not at all."""
    write_json(path, {"offset": [float(v) for v in offset], "world": "local + offset"})


def read_georef(path: Path | str) -> np.ndarray:
    """Offset [3] f64; zeros where the file does not exist (a run near its origin writes none)."""
    path = Path(path)
    if not path.exists():
        return np.zeros(3)
    try:
        offset = np.array(json.loads(path.read_text())["offset"], dtype=np.float64)
    except (ValueError, KeyError, TypeError):
        offset = np.empty(0)
    if offset.shape != (3,) or not np.isfinite(offset).all():
        raise ClmError(f"{path} does not hold an offset of three numbers.", 'It must read {"offset": [x, y, z]}.')
    return offset
