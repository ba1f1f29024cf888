"""The rows that a run starts from: those of a PLY, of the COLMAP points, or random ones inside the cameras' bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from clm.config import Config
from clm.errors import ClmError
from clm.formats.ordered import in_order
from clm.formats.ply_read import PlyRows, open_ply
from clm.kernels.sort import sorted_rows
from clm.progress import Report, counted, pending, rows_of, unseen
from clm.scene import Scene
from clm.store.init import PointRows, random_points
from clm.store.layout import MEANS
from clm.store.order import plain_entries, space_keys_of
from clm.store.store import Store

RANDOM_ROWS = 100_000  # initial Gaussians when the model has no points (INRIA, gsplat)
FAR = 1e5  # coordinates beyond are taken for georeferenced


class Source(Protocol):
    """Rows that a run can start from, by their numbers in the input."""

    def entries(self) -> np.ndarray:
        """Centre and bounding radius [N, 4] f32 of every row, a fresh array."""
        ...

    def chunks(self, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows `numbers` [n] i32, each named once, in that order, some at a time: geometry [k, 12] and colour [k, 48] f32."""
        ...


def in_ram(rows: int, moments: str | None) -> Store:
    """An empty store with room for so many rows in RAM."""
    return Store(rows, moments=moments)


def initial_store(
    scene: Scene,
    config: Config,
    warn: Callable[[str], None],
    report: Report = unseen,
    *,
    scratch: Path,
    make: Callable[[int, str | None], Store] = in_ram,
) -> Store:
    """Rows from a PLY, from the COLMAP points, or random inside the cameras' bounds; sorted into pages.

    Their order is decided first, from places and sizes alone; then rows are made, a chunk at a time, where they stay. Memory
    beside the store: 50 bytes per point, the points included, and for a PLY 24, and a bucket (`clm.formats.ordered`). A row's
    key is its number in the input. scratch: folder for a temporary file. make: an empty store for so many rows."""
    source = _source(scene, config, warn, report, scratch)
    order = _order(source, config, warn, report)
    store, done = make(len(order), config.moments), 0
    what = f"making {len(order):,} Gaussians"
    for geometry, colour in counted(source.chunks(order), what, len(order), "Gaussians", report, rows_of):
        last = done + len(geometry)
        store.append(geometry, colour, order[done:last].astype(np.uint64))
        done = last
    store.refresh_bounds(np.arange(store.pages, dtype=np.int32))
    return store


def _source(scene: Scene, config: Config, warn: Callable[[str], None], report: Report, scratch: Path) -> Source:
    if config.init_ply:
        return _PlyRows(open_ply(config.init_ply), scene.offset, scratch, warn, report)
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


class _PlyRows:
    """The usable rows of a PLY, which stay in the file until they are asked for."""

    def __init__(self, ply: PlyRows, offset: np.ndarray, scratch: Path, warn: Callable[[str], None], report: Report):
        """offset [3] f64: subtracted from places that are far away. scratch: folder of a temporary file."""
        self._ply, self._offset, self._scratch = ply, offset.astype(np.float32), scratch
        self._warn, self._report = warn, report
        self._numbers: np.ndarray | None = None  # in the file, where some of its rows cannot be used
        self._far = False

    def entries(self) -> np.ndarray:
        ply, rows = self._ply, 0
        entries, numbers = np.empty((ply.count, 4), np.float32), np.empty(ply.count, np.int32)
        pieces = ply.numbered()
        what = f"reading places in {ply.path.name}"
        for piece in counted(pieces, what, ply.count, "Gaussians", self._report, lambda piece: len(piece.numbers)):
            last = rows + len(piece.numbers)
            entries[rows:last], numbers[rows:last] = plain_entries(piece.geometry), piece.numbers
            rows = last
        for message in ply.messages:
            self._warn(message)
        if rows == 0:
            raise ClmError(f"{ply.path} holds no usable Gaussian.", "Start from another file, or without one.")
        # Georeferenced coordinates: float32 has metres of rounding there already.
        self._far = bool(np.abs(entries[:rows, :3]).max() > FAR)
        if self._far:
            entries[:rows, :3] -= self._offset
        if rows < ply.count:
            self._numbers = numbers[:rows].copy()
        return entries[:rows]

    def chunks(self, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        numbers = numbers if self._numbers is None else self._numbers[numbers]
        for geometry, colour in in_order(self._ply, numbers, self._scratch, self._report):
            if self._far:
                geometry[:, MEANS] -= self._offset
            yield geometry, colour
