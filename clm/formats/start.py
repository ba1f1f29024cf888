"""The rows that a run starts from: those of a model in a file, of the COLMAP points, or random ones inside the cameras' bounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from clm.config import Config
from clm.errors import ClmError
from clm.formats.ordered import BUCKET_ROWS
from clm.formats.registry import open_rows
from clm.formats.source import FileSource, Make, Source, in_ram, store_of
from clm.kernels.sort import sorted_rows
from clm.progress import Report, pending, unseen
from clm.scene import Scene
from clm.store.init import PointRows, random_points
from clm.store.order import space_keys_of
from clm.store.store import Store

Share = tuple[int, int]  # which of how many near-equal parts, from 0

RANDOM_ROWS = 100_000  # initial Gaussians when the model has no points (INRIA, gsplat)


def initial_store(
    scene: Scene,
    config: Config,
    warn: Callable[[str], None],
    report: Report = unseen,
    *,
    scratch: Path,
    make: Make = in_ram,
    bucket_rows: int = BUCKET_ROWS,
    share: Share = (0, 1),
) -> Store:
    """Rows from a model in a file, from the COLMAP points, or random inside the cameras' bounds; sorted into pages.

    Their order is decided first, from places and sizes alone; then rows are made, a chunk at a time, where they stay. Memory
    beside the store: 50 bytes per point, the points included, and for a model 24, and a bucket (`clm.formats.ordered`). A row's
    key is its number in the input. make: an empty store for so many rows. scratch, bucket_rows: of `in_order`. share: k of n
    makes the k-th of n near-equal parts of the order alone."""
    source, order = ordered_source(scene, config, warn, report, scratch=scratch, bucket_rows=bucket_rows)
    part, parts = share
    if len(order) < parts:
        raise ClmError(
            f"There are {len(order):,} Gaussians to start from, fewer than the {parts} ranks that are to share them.",
            f"Start {len(order)} ranks at most.",
        )
    order = order[len(order) * part // parts : len(order) * (part + 1) // parts]
    return store_of(source, order, config.moments, make, report)


def ordered_source(
    scene: Scene,
    config: Config,
    warn: Callable[[str], None],
    report: Report = unseen,
    *,
    scratch: Path,
    bucket_rows: int = BUCKET_ROWS,
) -> tuple[Source, np.ndarray]:
    """Where the rows come from, and the numbers [n] i32 of those that stay, in store order. See `initial_store`."""
    source = _source(scene, config, warn, report, scratch, bucket_rows)
    return source, _order(source, config, warn, report)


def _source(
    scene: Scene, config: Config, warn: Callable[[str], None], report: Report, scratch: Path, bucket_rows: int
) -> Source:
    if config.init_ply:
        return FileSource(open_rows(Path(config.init_ply)), scene.offset, scratch, bucket_rows, warn, report)
    points, colors = scene.points, scene.point_colors
    if not len(points):
        warn("The model has no points: starting from random Gaussians inside the cameras' bounds.")
        positions = np.array([view.camera.position for view in scene.views])
        forwards = np.array([view.camera.forward for view in scene.views])
        count = min(RANDOM_ROWS, config.max_gaussians or RANDOM_ROWS)
        points, colors = random_points(positions, forwards, count, config.seed)
    with pending(f"nearest neighbours of {len(points):,} points", report):
        return PointRows(points, colors, config.seed, config.init_opacity)


def _order(source: Source, config: Config, warn: Callable[[str], None], report: Report) -> np.ndarray:
    """Numbers [n] i32 of the rows that stay under `--max-gaussians`, in store order."""
    entries = source.entries()
    count, keep = len(entries), None
    if config.max_gaussians is not None and count > config.max_gaussians:
        warn(f"Keeping {config.max_gaussians:,} of {count:,} initial points (--max-gaussians).")
        keep = np.random.default_rng([config.seed, 2]).permutation(np.arange(count, dtype=np.int32))
        keep = np.sort(keep[: config.max_gaussians])
        entries = entries[keep]
    with pending(f"sorting {len(entries):,} Gaussians into pages", report):
        keys = space_keys_of(entries)
        del entries  # before sorting takes as much
        order = sorted_rows(keys)
    return order if keep is None else keep[order]
