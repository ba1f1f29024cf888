"""A view's turns on the device, and rendering single views out of core: evaluation and `clm render`.

A view that is only rendered is a batch of one without an optimizer step, carried out by the load lane's own code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from clm.camera import Camera
from clm.device.interface import Arena, Device, Indices
from clm.kernels.rows import AdamStep, colour_columns
from clm.plan.residency import Turn, make_plan
from clm.plan.visibility import visible_rows, visible_sets
from clm.render import Colour, Rasterizer, Render, Wish
from clm.store.pages import pages_of
from clm.stream.batch import Batch
from clm.stream.fetch import Fetch
from clm.stream.ticks import Ticks

T = TypeVar("T")


def render_turn(
    rasterizer: Rasterizer,
    arena: Arena,
    turn: Turn,
    camera: Camera,
    sh_degree: int,
    draw: Callable[[], T],
    slots: Indices,
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


def through_arena(
    fetch: Fetch,
    adam: AdamStep | None,
    rasterizer: Rasterizer,
    camera: Camera,
    sh_degree: int,
    draw: Callable[[], T],
    *,
    coming: Sequence[Camera] = (),
    admit: Callable[[int, Camera], None] = lambda rows, camera: None,
    wish: Wish | None = None,
) -> T:
    """Project what `camera` sees, in pieces if need be, and `draw` it once all splats are there. See `render_view`."""
    wish = wish or Wish()
    wish.check()
    tiers, compute = fetch.tiers, fetch.tiers.device.stream("compute")
    store = tiers.store
    size, fill = store.page_rows, store.fill
    rows = visible_rows(store.entries, store.bounds, camera, page_rows=size, fill=fill)
    admit(len(rows), camera)
    plan = make_plan([0], [rows], tiers.arena.slots, size, trains=False)
    batch = Batch(plan, adam, colour_columns(sh_degree), plan.traffic, plan.union_rows)
    fetch.reserve(batch)
    if store.disk is not None:
        next_sets = visible_sets(store.entries, store.bounds, coming, page_rows=size, fill=fill) if coming else []
        batch.ticks = Ticks(plan, tiers, [pages_of(seen, size) for seen in next_sets])

    def draw_if_wanted() -> T:
        wish.check()
        return draw()

    drawn: T | None = None
    try:
        for i, (turn, state) in enumerate(zip(plan.turns, batch.turns, strict=True)):
            wish.check()
            fetch.run(batch, i)
            compute.wait(state.loaded.result(), "the rows of this turn are in their slots")
            slots = state.route.view_slots
            drawn = compute.run(render_turn, rasterizer, tiers.arena, turn, camera, sh_degree, draw_if_wanted, slots)
            state.released.succeed(compute.record())
            state.end()
    finally:
        compute.record().synchronize("the image is there or given up, and no stream works with the arena any more")
    assert drawn is not None, "a view's last turn renders"
    return drawn


def drawn_on_host(rasterizer: Rasterizer, device: Device, background: Colour, depth: bool = False) -> Render:
    """The image of the splats that the rasteriser has, on the host."""
    render = rasterizer.rasterize(background, depth, counted=False)
    images: dict[str, Any] = {
        name: None if (image := getattr(render, name)) is None else device.numpy(image)
        for name in ("rgb", "alpha", "depth")
    }
    return dataclasses.replace(render, **images)


def render_view(
    fetch: Fetch,
    adam: AdamStep | None,
    rasterizer: Rasterizer,
    camera: Camera,
    sh_degree: int,
    background: Colour,
    *,
    depth: bool = False,
    coming: Sequence[Camera] = (),
    admit: Callable[[int, Camera], None] = lambda rows, camera: None,
    wish: Wish | None = None,
) -> Render:
    """Render `camera`; the images are on the host. fetch: of lanes that are idle, or of none; adam: rows are caught up to
    `adam.step - 1` (None: a store without moments). A view larger than the arena is rendered in pieces. coming: the cameras
    after it, as far as they are known: where rows are on disk, their pages are read while this one is rasterised. admit:
    hears how many rows the view has before any of them is there, and may raise. wish: where it is given up, the view ends with
    Abandoned before its next turn or its pixels, and nothing of it is under way."""
    draw = partial(drawn_on_host, rasterizer, fetch.tiers.device, background, depth)
    return through_arena(fetch, adam, rasterizer, camera, sh_degree, draw, coming=coming, admit=admit, wish=wish)
