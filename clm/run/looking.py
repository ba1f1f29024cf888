"""A run that trains, opened to be looked at between two batches: any camera, from wherever its rows are.

Looking changes nothing that training depends on. Rows are only read; the rasteriser's memory is used, but by a copy of it, so that
what views of a visitor need is never taken for what training needs; and a view that the run's budgets have no room for is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

from clm.camera import Camera
from clm.errors import ResourceError
from clm.render import Render
from clm.render.temporaries import HOST_ROW_BYTES, HOST_SUM_BYTES
from clm.run.host_memory import resident_bytes
from clm.run.open import Run
from clm.stream.view import render_view
from clm.units import format_bytes


def look_at(run: Run) -> Callable[..., Render]:
    """Renders any camera from the rows as they are now; of use until the next batch. Raises ResourceError for a view that is too
    large for what the budgets leave."""
    residence, schedule = run.residence, run.schedule
    residence.lanes.publish_entries()
    rasterizer = copy.copy(residence.rasterizer)
    device, host = residence.budgets()
    held = residence.tiers.device_bytes + residence.lanes.device_staging_bytes
    slots, left = residence.arena.slots, max(0, host - resident_bytes()) + rasterizer.host_bytes

    def admit(rows: int, camera: Camera) -> None:
        pixels = camera.width * camera.height
        on_host = rasterizer.least_workspace_bytes(rows, pixels)
        on_device = rasterizer.least_bytes(rows, pixels, min(slots, rows))
        if on_host > left or on_device > device - held:
            raise ResourceError(
                f"This view sees {rows:,} Gaussians and would need {format_bytes(on_host + on_device)} beside the training.",
                "Look from nearer, or with --host-memory and --gpu-memory larger.",
            )
        if on_host:
            rasterizer.band_bytes = max(0, left - rows * (HOST_ROW_BYTES + HOST_SUM_BYTES))

    return partial(
        render_view,
        residence.lanes.fetch,
        schedule.next_step(),
        rasterizer,
        sh_degree=schedule.sh_degree,
        background=schedule.still_background,
        admit=admit,
    )
