"""A mapping flight over a city: parallel strips of photos that overlap along the strip and with the next one.

Every second photo looks straight down; the others are tilted, each towards the next of four sides, so that walls are seen,
and never out over the border of what the upright ones cover.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scene_parts.capture import Lens, pose_of

_TILT = np.radians(25.0)


@dataclass(frozen=True)
class Flight:
    """Where the camera is and what it covers. Footprints are what an upright photo sees of the ground, w x h metres."""

    poses: list[np.ndarray]
    low: np.ndarray  # [2] f64, the corners of what is covered
    high: np.ndarray


def fly(lens: Lens, views: int, height: float, forward: float, side: float, seed: int) -> Flight:
    """`views` poses at `height` metres whose footprints overlap by the shares `forward` (along) and `side` (across)."""
    rng = np.random.default_rng([seed, 1])
    foot = np.array([lens.width, lens.height]) * height / lens.focal
    step = foot * (1 - np.array([side, forward]))  # strips run along y, the photo's long side lies across
    strips = min(views, max(1, round(np.sqrt(views * step[1] / step[0]))))
    counts = np.full(strips, views // strips)
    counts[: views % strips] += 1
    extent = np.array([strips - 1, counts.max() - 1]) * step
    low, high = -extent / 2 - foot / 2, extent / 2 + foot / 2
    poses: list[np.ndarray] = []
    for strip, count in enumerate(counts):
        for shot in range(count):
            along = (count - 1) / 2 - shot if strip % 2 else shot - (count - 1) / 2  # back and forth
            middle = np.array([strip - (strips - 1) / 2, along]) * step + rng.normal(0, 0.02, 2) * step
            centre = np.array([*middle, height + rng.normal(0, 0.01 * height)])
            poses.append(_pose(centre, len(poses), bool(strip % 2), foot, (low, high), rng))
    return Flight(poses, low, high)


def _pose(
    centre: np.ndarray,
    number: int,
    back: bool,
    foot: np.ndarray,
    border: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
) -> np.ndarray:
    """The number-th photo of the flight."""
    tilt, towards = rng.normal(0, np.radians(1.0)), number // 2 % 4
    if number % 2:
        tilt += _TILT
    aside = np.array([[0, 1], [1, 0], [0, -1], [-1, 0]][towards], np.float64)
    middle = centre[:2] + centre[2] * np.tan(tilt) * aside
    if (middle - foot / 2 < border[0]).any() or (middle + foot / 2 > border[1]).any():
        aside = -aside
    yaw = rng.normal(0, np.radians(2.0)) + (np.pi if back else 0.0)
    right = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    forward = np.array([*np.sin(tilt) * aside, -np.cos(tilt)])
    right -= forward * (right @ forward)
    return pose_of(centre, right / np.linalg.norm(right), forward)
