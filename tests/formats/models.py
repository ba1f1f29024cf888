"""Small models like trained ones, for tests of formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clm.formats.options import Filters, Options
from clm.formats.ply_write import write_ply
from clm.formats.registry import format_of, open_rows
from clm.formats.select import select
from clm.store.layout import MEANS


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


def export(
    source: Path, out: Path, options: Options | None = None, filters: Filters | None = None, **more
) -> list[str]:
    """Writes `out` as the command does; returns what it warned of."""
    said: list[str] = []
    form, filters = format_of(out), filters or Filters()
    degree = min(form.most_sh, 3 if filters.sh is None else filters.sh)
    selection = select(
        open_rows(source), filters, form.order, sh_degree=degree, scratch=out.parent, warn=said.append, **more
    )
    form.write(out, selection, options or Options())
    return said


def in_order_of(theirs: np.ndarray, source: Path, within: float) -> tuple[np.ndarray, np.ndarray]:
    """Geometry and colour of the source's rows, each beside the row of `theirs` [n, 3] whose centre is within so many units."""
    geometry, colour = (np.concatenate(arrays) for arrays in zip(*open_rows(source).chunks(), strict=True))
    ours = geometry[:, MEANS].astype(np.float64)
    nearest = ((theirs[:, None].astype(np.float64) - ours[None]) ** 2).sum(axis=2).argmin(axis=1)
    assert len(set(nearest.tolist())) == len(ours) == len(theirs), "every row is there once"
    assert np.abs(theirs - ours[nearest]).max() <= within
    return geometry[nearest], colour[nearest]


def angle(one: np.ndarray, other: np.ndarray) -> float:
    """The largest angle in radians between rotations given as quaternions [n, 4] of any norm and sign."""
    one, other = (q / np.linalg.norm(q.astype(np.float64), axis=1, keepdims=True) for q in (one, other))
    return float(2 * np.arccos(np.minimum(1, np.abs((one * other).sum(axis=1)))).max())


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(np.float64)))
