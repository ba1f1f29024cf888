"""The rows that a run starts from: those of a PLY, of the COLMAP points, or random ones inside the cameras' bounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from clm.config import Config
from clm.errors import ClmError
from clm.formats.ply_read import open_ply
from clm.progress import Report, counted, pending, rows_of, unseen
from clm.scene import Scene
from clm.store.init import rows_from_points, rows_random
from clm.store.layout import COLOUR_COLUMNS, GEOMETRY_COLUMNS
from clm.store.order import block_order
from clm.store.store import Store

RANDOM_ROWS = 100_000  # initial Gaussians when the model has no points (INRIA, gsplat)
_READ_ROWS = 1 << 16


def initial_store(scene: Scene, config: Config, warn: Callable[[str], None], report: Report = unseen) -> Store:
    """Rows from a PLY, from the COLMAP points, or random inside the cameras' bounds; sorted into blocks."""
    if config.init_ply:
        geometry, colour = rows_from_ply(config.init_ply, report=report)
        geometry[:, :3] -= scene.offset.astype(np.float32) if len(geometry) and _far(geometry) else np.float32(0)
    elif len(scene.points):
        with pending(f"nearest neighbours of {len(scene.points):,} points", report):
            geometry, colour = rows_from_points(scene.points, scene.point_colors, config.seed, config.init_opacity)
    else:
        warn("The model has no points: starting from random Gaussians inside the cameras' bounds.")
        positions = np.array([view.camera.position for view in scene.views])
        forwards = np.array([view.camera.forward for view in scene.views])
        count = min(RANDOM_ROWS, config.max_gaussians or RANDOM_ROWS)
        geometry, colour = rows_random(positions, forwards, count, config.seed)
    if config.max_gaussians is not None and len(geometry) > config.max_gaussians:
        warn(f"Keeping {config.max_gaussians:,} of {len(geometry):,} initial points (--max-gaussians).")
        keep = np.random.default_rng([config.seed, 2]).permutation(len(geometry))[: config.max_gaussians]
        geometry, colour = geometry[np.sort(keep)], colour[np.sort(keep)]
    with pending(f"sorting {len(geometry):,} Gaussians into blocks", report):
        store = Store.from_rows(geometry, colour, moments=config.moments)
        store.refresh(None)
        store.reorder(block_order(store.entries))
    return store


def _far(geometry: np.ndarray) -> bool:
    """Whether a PLY is still in far-away (georeferenced) coordinates; float32 has metres of rounding there already."""
    return bool(np.abs(geometry[:, :3]).max() > 1e5)


def rows_from_ply(
    path: Path | str, say: Callable[[str], None] | None = None, report: Report = unseen
) -> tuple[np.ndarray, np.ndarray]:
    """All rows of a Gaussian PLY: (geometry [N, 12], colour [N, 48]); `say` receives what reading had to change.

    Memory: the rows and one chunk. Rows that are not finite are left out, so N may be less than the file's count.
    """
    source = open_ply(path)
    geometry = np.empty((source.count, GEOMETRY_COLUMNS), np.float32)
    colour = np.empty((source.count, COLOUR_COLUMNS), np.float32)
    rows = 0
    chunks = counted(
        source.chunks(_READ_ROWS), f"loading {source.path.name}", source.count, "Gaussians", report, rows_of
    )
    for chunk_geometry, chunk_colour in chunks:
        end = rows + len(chunk_geometry)
        geometry[rows:end], colour[rows:end] = chunk_geometry, chunk_colour
        rows = end
    for message in source.messages if say else ():
        say(message)  # type: ignore[misc]
    if rows == 0:
        raise ClmError(f"{path} holds no usable Gaussian.", "Start from another file, or without one.")
    return geometry[:rows], colour[:rows]
