"""Small random scenes for the tests of the renderers."""

from __future__ import annotations

import numpy as np

from clm.camera import Camera


def look_at_origin(
    width: int = 72, height: int = 50, distance: float = 4.0, focal: float = 60.0, off_centre: float = 0.0
) -> Camera:
    """A camera at `distance` from the origin, a little turned; `off_centre` moves the principal point, px."""
    angle = 0.3
    c, s = np.cos(angle), np.sin(angle)
    w2c = np.eye(4)
    w2c[:3, :3] = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    w2c[2, 3] = distance
    return Camera(width, height, focal, focal * 1.1, width / 2 + off_centre, height / 2 - 0.7 * off_centre, w2c)


def random_rows(count: int, seed: int = 0, scale: float = 0.12, spread: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Raw rows: geometry [count, 12], colour [count, 48] f32, around the origin."""
    rng = np.random.default_rng(seed)
    geometry = np.zeros((count, 12), np.float32)
    geometry[:, 0:3] = rng.normal(0, spread, (count, 3))
    geometry[:, 3:7] = rng.normal(0, 1, (count, 4))
    geometry[:, 7:10] = np.log(scale) + rng.normal(0, 0.5, (count, 3))
    geometry[:, 10] = rng.normal(0, 2, count)
    colour = np.zeros((count, 48), np.float32)
    colour[:, 0:3] = rng.normal(0.3, 1, (count, 3))
    colour[:, 3:] = rng.normal(0, 0.15, (count, 45))
    return geometry, colour


def all_slots(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int32)
