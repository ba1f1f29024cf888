"""Small models like trained ones, for tests of formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clm.formats.ply_write import write_ply


def model_rows(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Geometry [count, 12] and colour [count, 48] f32 whose values every format has a place for."""
    rng = np.random.default_rng(seed)
    geometry, colour = np.zeros((count, 12), np.float32), np.zeros((count, 48), np.float32)
    geometry[:, :3] = rng.normal(0, 3, (count, 3)).clip(-10, 10)
    geometry[:, 3:7] = rng.normal(size=(count, 4))
    geometry[:, 7:10] = rng.uniform(-8, 1, (count, 3))
    geometry[:, 10] = rng.normal(0, 2, count)
    colour[:, :3] = rng.uniform(-1.7, 1.7, (count, 3))
    colour[:, 3:] = rng.normal(0, 0.1, (count, 45)).clip(-0.9, 0.9)
    return geometry, colour


def written(path: Path, geometry: np.ndarray, colour: np.ndarray, *, antialiased: bool = False) -> Path:
    """The rows as a PLY."""
    write_ply(path, [(geometry, colour)], antialiased=antialiased)
    return path
