"""A flat synthetic scene of any size: Gaussians over a square field, cameras that look down at a percent or two of it each.

Rows are made where they lie in the store: each chunk is one tile of the field, so that blocks are close in space without
sorting; colours repeat a random chunk. Moments are pages that nobody has touched until a row is updated.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from clm.camera import Camera
from clm.config import Config
from clm.run.open import Run
from clm.scene import Scene
from clm.scene.scene import View
from clm.store.identity import first_keys
from clm.store.layout import COLOUR_COLUMNS, GEOMETRY_COLUMNS, LOG_SCALES, LOGIT_OPACITIES, MEANS, PAGE_ROWS, QUATS
from clm.store.store import Store
from gpu_parts.check import Check

SIDE, HEIGHT = 100.0, 10.0  # of the field, and of the cameras above it, in scene units
_CHUNK = 1 << 16


class OnePhoto:
    """One photo for all views: what the image cache offers, without files."""

    def __init__(self, width: int, height: int):
        self._photo = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        self.bytes = self._photo.nbytes

    def get(self, view: int) -> np.ndarray:
        return self._photo

    def over(self, view: int, background: tuple[float, float, float]) -> tuple[np.ndarray, None]:
        return self._photo, None

    def mask(self, view: int) -> None:
        return None

    def prefetch(self, views: Any) -> None:
        """It is here."""

    def close(self) -> None:
        """Nothing to stop."""


def flat_scene(width: int, height: int, seen: float, cameras: int) -> Scene:
    """`cameras` views of width x height px, each over a square (or so) of the share `seen` of the field."""
    footprint, per_side = SIDE * math.sqrt(seen), math.isqrt(cameras)
    focal = math.sqrt(width * height) * HEIGHT / footprint
    centres = np.linspace(-0.5, 0.5, per_side) * (SIDE - footprint)
    views = []
    for k, (y, x) in enumerate((y, x) for y in centres for x in centres):
        pose = np.eye(4)
        pose[:3, 3] = -x, -y, HEIGHT
        camera = Camera(width, height, focal, focal, width / 2, height / 2, pose)
        views.append(View(f"{k:04d}", camera, None, None))  # type: ignore[arg-type]  # its photo is none of a file
    train, nothing = np.arange(len(views), dtype=np.int32), np.zeros(0, np.int32)
    points = np.zeros((0, 3), np.float32)
    where = Path("synthetic")
    colours = np.zeros((0, 3), np.uint8)
    return Scene(where, where, tuple(views), train, nothing, points, colours, np.zeros(3), SIDE / 2, ())


def flat_store(rows: int) -> Store:
    """`rows` Gaussians in the field, a little above and below it; neighbours overlap."""
    # All arrays are zero already; appending would write zeros, and so touch all memory of the moments.
    fill = np.minimum(PAGE_ROWS, rows - np.arange(0, rows, PAGE_ROWS)).astype(np.int32)
    rng, store = np.random.default_rng(0), Store.of_pages(fill, moments="f32", page_rows=PAGE_ROWS)
    store.keys[:] = first_keys(0, rows)
    tiles = math.isqrt(-(-rows // _CHUNK) - 1) + 1
    edge, scale = SIDE / tiles, 0.7 * SIDE / math.sqrt(rows)
    geometry = np.zeros((_CHUNK, GEOMETRY_COLUMNS), np.float32)
    geometry[:, QUATS] = rng.normal(size=(_CHUNK, 4))
    geometry[:, LOG_SCALES] = math.log(scale) + rng.normal(0, 0.3, (_CHUNK, 3))
    geometry[:, LOGIT_OPACITIES] = rng.normal(-0.4, 1, _CHUNK)
    colour = rng.normal(0, 0.1, (_CHUNK, COLOUR_COLUMNS)).astype(np.float32)
    per_tile = -(-rows // (tiles * tiles))
    for k in range(-(-rows // per_tile)):
        first = k * per_tile
        count = min(per_tile, rows - first)
        corner = (k % tiles) * edge - SIDE / 2, (k // tiles) * edge - SIDE / 2, -0.2
        # In strips of the tile, so that a block is a small patch of it.
        place = rng.random((count, 3), np.float32)
        place[:, 1] = (np.floor(np.arange(count) * 8 / count) + place[:, 1]) / 8
        place[:, 0] = (np.arange(count) * 8 / count % 1 * 4 // 1 + place[:, 0]) / 4
        geometry[:count, MEANS] = np.array(corner, np.float32) + place * np.array((edge, edge, 0.4), np.float32)
        store.geometry[first : first + count], store.colour[first : first + count] = geometry[:count], colour[:count]
    store.identify()
    store.refresh(None)
    return store


def open_flat(
    check: Check, scene: Scene, store: Store, config: Config, events: list[Any] | None = None
) -> AbstractContextManager[Run]:
    """A run that trains `store` on the one photo."""
    camera = scene.views[0].camera
    return check.open(scene, config, events, store=store, cache=OnePhoto(camera.width, camera.height))


def small_scene(check: Check) -> Scene:
    """Views that see a fifth of the field each: arena, staging and temporaries of some size."""
    return flat_scene(24, 18, 0.05, 16) if check.double else flat_scene(1200, 800, 0.2, 16)


def small_store(check: Check) -> Store:
    """A million rows."""
    return flat_store(check.size(1_000_000, 300_000, 2000))
