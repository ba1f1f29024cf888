"""The lengths that a scene's own cameras and points define. COLMAP's unit is arbitrary, so no other length means anything.

Every function is equivariant: for a scene scaled by s it gives s times the length. A camera far away from all others (one
that COLMAP registered wrongly) changes nothing: `usual_cameras` leaves it out wherever places of cameras are summed up.
"""

from __future__ import annotations

import numpy as np

NEAR_SHARE = 0.01  # of the scene's unit; gsplat's near plane in a scene whose cameras are 1 from their centre
FAR_PER_NEAR = 1e12  # gsplat's far plane, 1e10, over its near plane
STRAY = 3.0  # a camera is stray beyond so many median distances from the median centre (real captures: up to 2.8)
_SAMPLES = 1000


def usual_cameras(centres: np.ndarray) -> np.ndarray:
    """[V] bool: which of the camera centres [V, 3] are not stray; all where half of them share one place."""
    distances = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
    limit = STRAY * float(np.median(distances))
    return distances <= limit if limit > 0 else np.ones(len(centres), bool)


def camera_spread(centres: np.ndarray) -> tuple[np.ndarray, float]:
    """(mean [3] f64, largest distance from it) of the usual ones among the camera centres [V, 3]; 0 for a single place."""
    usual = centres[usual_cameras(centres)]
    middle = usual.mean(axis=0)
    radius = float(np.linalg.norm(usual - middle, axis=1).max())
    rounding = 1e-12 * float(np.abs(usual).max())  # equal centres, recovered from different rotations
    return middle, radius if radius > rounding else 0.0


def sampled(points: np.ndarray) -> np.ndarray:
    """About a thousand of points [P, 3], a view of them: those from which `view_distance` is."""
    return points[:: max(1, len(points) // _SAMPLES)]


def view_distance(centres: np.ndarray, points: np.ndarray) -> float:
    """Usual distance from a camera to what it sees: the median over points [P, 3] of that to the nearest of the centres
    [V, 3] (both f64; samples of a thousand). 0 without points."""
    if len(points) == 0:
        return 0.0
    sample = sampled(points)
    nearest = np.full(len(sample), np.inf)
    for centre in centres[:: max(1, len(centres) // _SAMPLES)]:
        np.minimum(nearest, ((sample - centre) ** 2).sum(axis=1), out=nearest)
    return float(np.sqrt(np.median(nearest)))


def scene_scale(centres: np.ndarray, points: np.ndarray) -> float:
    """1.1 x the largest distance of a camera from the mean centre (gsplat's scene_scale), stray cameras left out.

    Cameras in one place have no such distance: the usual distance to the points [P, 3], or 1 without any."""
    return 1.1 * camera_spread(centres)[1] or view_distance(centres, points) or 1.0


def near_plane(centres: np.ndarray, points: np.ndarray) -> float:
    """A hundredth of the scene's unit: the smaller of the usual distance to the points [P, 3] and the median distance of the
    camera centres [V, 3] from their median. 0.01 where that is 0 (one camera and no point)."""
    distances = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
    lengths = [length for length in (float(np.median(distances)), view_distance(centres, points)) if length > 0]
    return NEAR_SHARE * min(lengths, default=1.0)
