"""A trained model, opened to be looked at: rows on the host, and on the device those of one view."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from clm.device.budget import available_memory, find_device_budget
from clm.device.choose import open_device
from clm.formats.model import ModelFile
from clm.plan.budget import SLOT_BYTES
from clm.plan.placement import fewest_slots
from clm.plan.refusals import device_too_small
from clm.render import Render
from clm.run.events import Emit, Message, reporter
from clm.store.store import Store
from clm.stream.fetch import Fetch
from clm.stream.tiers import Tiers
from clm.stream.view import render_view


def loaded_store(model: ModelFile, emit: Emit) -> Store:
    """The rows of a model on the host; what reading had to change is said."""
    store = model.store(reporter(emit))
    for text in model.rows.messages:
        emit(Message(text, "warning"))
    return store


def model_renderer(
    model: ModelFile, store: Store, background: tuple[float, float, float], gpu_memory: str, emit: Emit
) -> Callable[..., Render]:
    """Renders any camera from the rows of a model on the host; the device holds only the rows of one view, or of a piece of it.
    Raises ResourceError when the budget is too small for even that."""
    device, rasterizer = open_device("auto", antialiased=model.rows.antialiased, say=lambda text: emit(Message(text)))
    budget = find_device_budget(gpu_memory, device, lambda text: emit(Message(text, "warning")))
    if budget.reason:
        emit(Message(budget.reason))
    # What the rasteriser needs grows with the view, as the arena does.
    beside = (rasterizer.temporary_bytes(1 << 20, 0) - rasterizer.temporary_bytes(0, 0)) >> 20
    fewest, available = fewest_slots(store.rows), budget.at_most(available_memory())
    slots = min(store.rows, available // (SLOT_BYTES + beside))
    if slots < fewest:
        raise device_too_small(store.rows, fewest * (SLOT_BYTES + beside), available)
    fetch = Fetch(Tiers(device, store, np.zeros(store.pages, bool), slots))
    degree = model.rows.sh_degree
    return partial(render_view, fetch, None, rasterizer, sh_degree=degree, background=background)
