"""Rendering one view out of core: cull, fetch its rows into the arena, rasterise. Used by evaluation and `clm render`."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from clm.camera import Camera
from clm.errors import ResourceError
from clm.gaussians.store import Store
from clm.kernels import rows as row_kernels
from clm.kernels.rows import AdamStep, colour_columns
from clm.plan.budget import SLOT_BYTES, format_bytes
from clm.plan.visibility import visible_rows
from clm.stream.arena import Arena


class Render(Protocol):
    """An image on the device: rgb [3, H, W] f32, alpha [H, W] f32, depth [H, W] f32 (expected, world units) or None."""

    rgb: np.ndarray
    alpha: np.ndarray
    depth: np.ndarray | None


class Rasterizer(Protocol):
    """What both backends offer; see `clm.render`."""

    def forward(
        self,
        geometry: np.ndarray,
        colour: np.ndarray,
        slots: np.ndarray,
        camera: Camera,
        sh_degree: int,
        background: tuple[float, float, float],
        depth: bool = False,
    ) -> Render: ...


def view_too_large(rows: int, slots: int, what: str) -> ResourceError:
    """The error for a visible set that exceeds the arena, with the numbers that help."""
    return ResourceError(
        f"{what} needs {rows:,} Gaussians on the device at once ({format_bytes(rows * SLOT_BYTES)}), "
        f"but the arena has {slots:,} slots ({format_bytes(slots * SLOT_BYTES)}).",
        f"Pass --gpu-memory {format_bytes(int(rows * SLOT_BYTES * 1.1))} or more, or train with fewer --max-gaussians.",
    )


def render_view(
    store: Store,
    adam: AdamStep | None,
    arena: Arena,
    rasterizer: Rasterizer,
    camera: Camera,
    sh_degree: int,
    background: tuple[float, float, float],
    *,
    depth: bool = False,
) -> Render:
    """Render `camera` from rows caught up to `adam.step - 1` (None: a store without moments). Uses arena slots 0..M-1."""
    rows = visible_rows(store.entries, store.bounds, camera)
    if len(rows) > arena.slots:
        raise view_too_large(len(rows), arena.slots, "This view")
    slots = np.arange(len(rows), dtype=np.int32)
    row_kernels.fetch(store, adam, rows, arena.geometry, arena.colour, colour_columns(sh_degree), slots)
    return rasterizer.forward(arena.geometry, arena.colour, slots, camera, sh_degree, background, depth=depth)
