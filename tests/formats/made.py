"""Models made up for tests of formats, and their rows as an export gets them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clm.formats.options import Filters
from clm.formats.ply_read import open_ply
from clm.formats.rows import Chunk
from clm.formats.select import Selection, select
from tests.formats.models import written


def made_rows(count: int, seed: int = 0) -> Chunk:
    """Rows in a box of 10 units, small ones; one in fifty is large."""
    rng = np.random.default_rng(seed)
    geometry, colour = np.zeros((count, 12), np.float32), np.zeros((count, 48), np.float32)
    geometry[:, :3] = rng.uniform(-5, 5, (count, 3))
    geometry[:, 3:7] = rng.normal(size=(count, 4))
    geometry[:, 7:10] = rng.normal(-3, 0.5, (count, 3)) + 4 * (rng.random((count, 1)) < 0.02)
    geometry[:, 10] = rng.normal(1, 2, count)
    colour[:, :3] = rng.normal(size=(count, 3))
    colour[:, 3:] = rng.normal(size=(count, 45)) * 0.1 * rng.random((count, 1)) ** 2
    return geometry, colour


def selection(folder: Path, rows: Chunk, order: str, **options: int) -> Selection:
    """Rows by way of a PLY in `folder`."""
    return select(
        open_ply(written(folder / "made.ply", *rows)), Filters(), order, **{"sh_degree": 3, **options}, scratch=folder
    )


def whole(chunks: object) -> Chunk:
    """All rows of chunks."""
    geometry, colour = zip(*((g.copy(), c.copy()) for g, c in chunks), strict=True)  # type: ignore[attr-defined]
    return np.concatenate(geometry), np.concatenate(colour)
