"""First rows of a training run: from points with colours, or from nothing but cameras.

Everything is a pure function of its arguments; the seed decides the rest. Rows come in the order of the points. World
frame and units are those of the input, never recentred or rescaled.
"""

from __future__ import annotations

import numpy as np

from clm.errors import ClmError
from clm.extent import scene_scale, usual_cameras
from clm.kernels.knn import nearest_squared
from clm.store.layout import (
    COLOUR_COLUMNS,
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


def neighbour_scales(points: np.ndarray) -> np.ndarray:
    """RMS distance [P] f64 from points [P, 3] f32 to their 3 nearest others (gsplat's `simple_trainer`), never zero.

    Fewer than 4 points: the others that exist. A point whose neighbours all lie on it, or one alone, has no scale of
    its own: it takes the median of those that do, or 1 where none does.
    """
    squared = nearest_squared(points, NEIGHBOURS).astype(np.float64)
    squared = squared[:, : max(1, min(NEIGHBOURS, len(points) - 1))]
    scales = np.sqrt(squared.mean(axis=1))
    known = (scales > 0) & np.isfinite(scales)
    scales[~known] = np.median(scales[known]) if known.any() else 1.0
    return scales


def rows_from_points(
    points: np.ndarray, colors: np.ndarray, seed: int, opacity: float = 0.1
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (geometry [P, 12], colour [P, 48], both f32) at points [P, 3] f32 (world) with colors [P, 3] uint8 (RGB).

    Isotropic, sized by `neighbour_scales`, random rotation, given opacity in (0, 1), higher SH coefficients zero.
    ClmError when there is no point or one is not finite.
    """
    points = np.ascontiguousarray(points, dtype=np.float32)
    if len(points) == 0:
        raise ClmError("There are no points to start from.", "Start from random points instead.")
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise ClmError(
            f"{len(bad)} of {len(points)} points are not finite (first: point {bad[0]}).", "Remove them from the model."
        )
    geometry = np.zeros((len(points), GEOMETRY_COLUMNS), np.float32)
    colour = np.zeros((len(points), COLOUR_COLUMNS), np.float32)
    geometry[:, MEANS] = points
    # Four normal numbers, normalised, are uniform over rotations; gsplat's four uniform ones are not.
    quats = np.random.default_rng(seed).standard_normal((len(points), 4), dtype=np.float32)
    geometry[:, QUATS] = quats / np.maximum(np.linalg.norm(quats, axis=1, keepdims=True), 1e-12)
    geometry[:, LOG_SCALES] = np.log(neighbour_scales(points))[:, None]
    geometry[:, LOGIT_OPACITIES] = np.log(opacity / (1.0 - opacity))
    colour[:, SH0] = (np.asarray(colors, np.float32) / 255.0 - 0.5) / SH_C0
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


def rows_random(
    camera_positions: np.ndarray,
    camera_forwards: np.ndarray,
    count: int,
    seed: int,
    opacity: float = 0.1,
    extent: float = 3.0,
) -> tuple[np.ndarray, np.ndarray]:
    """`count` rows of random place and colour, for a model without points; returned as by `rows_from_points`.

    Uniform in the cube around `focus_of` whose half side is `extent` scene scales (gsplat's `init_extent`).
    """
    rng = np.random.default_rng([seed, 1])
    centre, scale = focus_of(camera_positions, camera_forwards)
    points = (centre + extent * scale * rng.uniform(-1.0, 1.0, (count, 3))).astype(np.float32)
    colors = rng.integers(0, 256, (count, 3), dtype=np.uint8)
    return rows_from_points(points, colors, seed, opacity)
