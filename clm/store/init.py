"""First rows of a training run: at points with colours, or from nothing but cameras.

Everything is a pure function of its arguments; the seed decides the rest. A row's key is its number in the input, and what is
random about it follows the key, so rows can be made in any order and a few at a time. World frame and units are those of the
input, never recentred or rescaled.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from clm.errors import ClmError
from clm.extent import scene_scale, usual_cameras
from clm.kernels.grow import normals
from clm.kernels.knn import nearest_squared
from clm.store.layout import (
    CHUNK_ROWS,
    COLOUR_COLUMNS,
    EXTENT_SIGMAS,
    GEOMETRY_COLUMNS,
    LOG_SCALES,
    LOGIT_OPACITIES,
    MEANS,
    QUATS,
    SH0,
    SH_C0,
)

NEIGHBOURS = 3
_FOCUS_CONDITION = 0.02  # smallest eigenvalue of the mean projector at which viewing rays still fix a common point
_BEFORE_TRAINING = (1 << 64) - 1  # in place of an image: none has this number


def neighbour_scales(points: np.ndarray) -> np.ndarray:
    """RMS distance [P] f32 from points [P, 3] f32 to their 3 nearest others (gsplat's `simple_trainer`), never zero.

    Fewer than 4 points: the others that exist. A point whose neighbours all lie on it, or one alone, has no scale of
    its own: it takes the median of those that do, or 1 where none does. Memory: 35 bytes per point for a moment.
    """
    squared = nearest_squared(points, NEIGHBOURS)[:, : max(1, min(NEIGHBOURS, len(points) - 1))]
    scales = np.empty(len(points), np.float32)
    for first in range(0, len(points), CHUNK_ROWS):
        piece = slice(first, first + CHUNK_ROWS)
        scales[piece] = np.sqrt(squared[piece].astype(np.float64).mean(axis=1))
    del squared
    known = (scales > 0) & np.isfinite(scales)
    if not known.all():
        scales[~known] = np.median(scales[known]) if known.any() else 1.0
    return scales


def random_rotations(keys: np.ndarray, seed: int) -> np.ndarray:
    """Unit quaternions [K, 4] f32, uniform over rotations, one for each of keys [K] u64."""
    # Four normal numbers, normalised, are uniform over rotations; gsplat's four uniform ones are not.
    quats = np.empty((len(keys), 4))
    quats[:, :3] = normals(keys, seed, _BEFORE_TRAINING)
    quats[:, 3] = normals(keys, seed, _BEFORE_TRAINING - 1)[:, 0]
    quats /= np.maximum(np.linalg.norm(quats, axis=1, keepdims=True), 1e-12)
    return quats.astype(np.float32)


class PointRows:
    """The rows at points [P, 3] f32 (world) with colors [P, 3] uint8 (RGB), made when they are asked for.

    Isotropic, sized by `neighbour_scales`, random rotation, given opacity in (0, 1), higher SH coefficients zero. Holds 4 bytes
    per point beside the points. ClmError when there is no point or one is not finite."""

    def __init__(self, points: np.ndarray, colors: np.ndarray, seed: int, opacity: float = 0.1):
        self._points, self._colors = np.ascontiguousarray(points, dtype=np.float32), colors
        self._seed, self._logit = seed, np.log(opacity / (1.0 - opacity))
        if len(points) == 0:
            raise ClmError("There are no points to start from.", "Start from random points instead.")
        bad = np.flatnonzero(~np.isfinite(self._points).all(axis=1))
        if len(bad):
            raise ClmError(
                f"{len(bad)} of {len(points)} points are not finite (first: point {bad[0]}).",
                "Remove them from the model.",
            )
        self._scales = neighbour_scales(self._points)

    def entries(self) -> np.ndarray:
        """Centre and bounding radius [P, 4] f32 of every row."""
        return np.column_stack([self._points, np.float32(EXTENT_SIGMAS) * self._scales])

    def chunks(self, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows `numbers` [n] (points, from 0) in that order, at most CHUNK_ROWS at a time: (geometry, colour)."""
        for first in range(0, len(numbers), CHUNK_ROWS):
            yield self.rows(numbers[first : first + CHUNK_ROWS])

    def rows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(geometry [n, 12], colour [n, 48], both f32) of rows `numbers` [n]."""
        geometry = np.zeros((len(numbers), GEOMETRY_COLUMNS), np.float32)
        colour = np.zeros((len(numbers), COLOUR_COLUMNS), np.float32)
        geometry[:, MEANS] = self._points[numbers]
        geometry[:, QUATS] = random_rotations(numbers.astype(np.uint64), self._seed)
        geometry[:, LOG_SCALES] = np.log(self._scales[numbers].astype(np.float64))[:, None]
        geometry[:, LOGIT_OPACITIES] = self._logit
        colour[:, SH0] = (np.asarray(self._colors[numbers], np.float32) / 255.0 - 0.5) / SH_C0
        return geometry, colour


def focus_of(camera_positions: np.ndarray, camera_forwards: np.ndarray) -> tuple[np.ndarray, float]:
    """What the cameras look at: (centre [3] f64, scene scale), from positions and unit forwards [V, 3], world frame.

    The scene scale is `clm.extent.scene_scale`, 1 for a single place; stray cameras count for nothing. The centre is the
    point nearest to all viewing rays in least squares; where rays are too parallel to fix it, or it lies behind the cameras,
    it is one scene scale ahead of the mean camera.
    """
    positions, forwards = np.asarray(camera_positions, np.float64), np.asarray(camera_forwards, np.float64)
    usual = usual_cameras(positions)
    positions, forwards = positions[usual], forwards[usual]
    middle, scale = positions.mean(axis=0), scene_scale(positions, np.empty((0, 3)))
    projectors = np.eye(3) - forwards[:, :, None] * forwards[:, None, :]  # [V, 3, 3], onto each ray's normal plane
    system = projectors.mean(axis=0)
    if np.linalg.eigvalsh(system)[0] > _FOCUS_CONDITION:
        centre = np.linalg.solve(system, np.einsum("vij,vj->i", projectors, positions) / len(positions))
        if np.mean(((centre - positions) * forwards).sum(axis=1) > 0) > 0.5:
            return centre, scale
    return middle + scale * forwards.mean(axis=0), scale


def random_points(
    camera_positions: np.ndarray, camera_forwards: np.ndarray, count: int, seed: int, extent: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    """`count` points of random place and colour, for a model without points: ([count, 3] f32, [count, 3] u8).

    Uniform in the cube around `focus_of` whose half side is `extent` scene scales (gsplat's `init_extent`).
    """
    rng = np.random.default_rng([seed, 1])
    centre, scale = focus_of(camera_positions, camera_forwards)
    points = (centre + extent * scale * rng.uniform(-1.0, 1.0, (count, 3))).astype(np.float32)
    return points, rng.integers(0, 256, (count, 3), dtype=np.uint8)
