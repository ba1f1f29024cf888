"""Rendering one view out of core: cull, fetch its rows into the arena, rasterise. Used by evaluation and `clm render`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from clm.camera import Camera
from clm.device.interface import Arena, Indices, packed_rows, row_floats
from clm.kernels import rows as row_kernels
from clm.kernels.rows import AdamStep, colour_columns
from clm.plan.batch import view_too_large
from clm.plan.residency import Turn
from clm.plan.visibility import visible_rows
from clm.render import Rasterizer, Render
from clm.store.layout import CHUNK_ROWS
from clm.stream.tiers import Tiers

T = TypeVar("T")


def render_turn(
    rasterizer: Any,
    arena: Arena,
    turn: Turn,
    slots: Indices,
    camera: Camera,
    sh_degree: int,
    draw: Callable[[], T],
) -> T | None:
    """What the device does in one turn of a view, whose splats stay in the rasteriser between its turns.

    draw: rasterises, and goes back down to the splats where the view trains; called once, when all splats are there, and
    its result is that of the turn. slots: where the turn's rows lie in `arena`."""
    if turn.begins:
        rasterizer.begin(camera, sh_degree)
    if turn.projects:
        rasterizer.project(arena.geometry, arena.colour, slots)
    drawn = draw() if turn.renders else None
    if turn.adds:
        gradients = arena.grad_geometry, arena.grad_colour
        rasterizer.project_backward(arena.geometry, arena.colour, slots, turn.first, *gradients)
    return drawn


def load_view(tiers: Tiers, adam: AdamStep | None, rows: np.ndarray, columns: int) -> Indices:
    """Rows [M] (ids, ascending), caught up to `adam.step - 1`, into arena slots 0..M-1; returns the slots.

    Rows of the host pass through one staging buffer of at most 64 Ki rows, piece by piece. adam None: a store without moments.
    """
    device, arena, stream = tiers.device, tiers.arena, tiers.device.stream("load")
    on_host, resident = tiers.split(rows)
    slots = np.arange(len(rows), dtype=np.int32)
    host_rows, host_slots = rows[on_host], slots[on_host]
    staging = device.staging(row_floats(min(len(host_rows), CHUNK_ROWS), columns))
    for first in range(0, len(host_rows), CHUNK_ROWS):
        piece = np.ascontiguousarray(host_rows[first : first + CHUNK_ROWS])
        count = len(piece)
        row_kernels.fetch(tiers.store, adam, piece, *packed_rows(staging.host, count, columns), columns)
        [target] = device.indices([host_slots[first : first + count]])
        stream.run(device.to_device, staging, row_floats(count, columns))
        stream.run(device.place, packed_rows(staging.device, count, columns), target, arena, columns)
        stream.record().synchronize("the next piece takes the same staging buffer")
    if tiers.residents is not None and len(slots[resident]):
        positions, target = device.indices([tiers.positions(rows[resident]), slots[resident]])
        stream.run(tiers.residents.fetch, adam, positions, target, arena, columns)
    stream.record().synchronize("the rasteriser works on another stream")
    return device.indices([slots])[0]


def render_view(
    tiers: Tiers,
    adam: AdamStep | None,
    rasterizer: Rasterizer,
    camera: Camera,
    sh_degree: int,
    background: tuple[float, float, float],
    *,
    depth: bool = False,
) -> Render:
    """Render `camera`; the images are on the host. Raises ResourceError when the view needs more rows than the arena has."""
    store = tiers.store
    rows = visible_rows(store.entries, store.bounds, camera, block_rows=store.block_rows)
    if len(rows) > tiers.arena.slots:
        raise view_too_large(len(rows), tiers.arena.slots, "This view")
    slots = load_view(tiers, adam, rows, colour_columns(sh_degree))

    def draw() -> Render:
        arena = tiers.arena
        render = rasterizer.forward(arena.geometry, arena.colour, slots, camera, sh_degree, background, depth=depth)
        images: dict[str, Any] = {
            name: None if (image := getattr(render, name)) is None else tiers.device.numpy(image)
            for name in ("rgb", "alpha", "depth")
        }
        return dataclasses.replace(render, **images)

    return tiers.device.stream("compute").run(draw)
