"""A trained model, opened to be looked at: rows in host memory or on disk, and on the device those of one view.

Beside rows in RAM, or 16 bytes of each and frames, nothing grows with the model: the arena has its share of the budget, on the CPU
splats and the rasteriser's lists have the rest, and a view whose splats exceed that is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from clm.camera import Camera
from clm.device.budget import find_device_budget
from clm.device.choose import open_device
from clm.errors import ClmError
from clm.extent import FAR_PER_NEAR, near_plane
from clm.formats.model import ModelFile
from clm.plan.budget import AUTO, CULL_BYTES, PARAMETER_BYTES, SLOT_BYTES
from clm.plan.placement import fewest_slots
from clm.plan.refusals import device_too_small, view_too_large
from clm.render import Render
from clm.render.temporaries import HOST_ROW_BYTES, HOST_SUM_BYTES
from clm.run.events import Emit, Message, reporter
from clm.run.host_memory import HostMemory, resident_bytes
from clm.run.results import open_result
from clm.run.room import Room
from clm.store.frames import LEAST_FRAMES
from clm.store.layout import PAGE_ROWS
from clm.store.store import Store
from clm.stream.fetch import Fetch
from clm.stream.tiers import Tiers
from clm.stream.view import render_view
from clm.units import parse_bytes

_BESIDE_ROWS = 0.25  # of host memory, at least, for arena and tile lists
_FRAMES = 0.5  # of what entries leave, where rows are on disk


@dataclass(frozen=True)
class Budgets:
    """What the flags of a command that looks at a model say."""

    gpu_memory: str = AUTO
    host_memory: str = AUTO
    scratch: Path | None = None  # for files without a name; None: the model's own folder

    def __post_init__(self) -> None:
        """ClmError for what means nothing, before anything is read."""
        for text in (self.gpu_memory, self.host_memory):
            if text != AUTO:
                parse_bytes(text)
        if self.scratch is not None and self.scratch.exists() and not self.scratch.is_dir():
            raise ClmError(f"--scratch {self.scratch} is no folder.", "Name a folder on a fast local disk.")

    def host(self, emit: Emit, image_cache: int = 0, all_photos: int = 0) -> HostMemory:
        """Bytes of the host, of which photos get their share; to be asked before the first row."""
        photos = image_cache, all_photos
        return HostMemory.find(self.host_memory, resident_bytes(), *photos, lambda text: emit(Message(text, "warning")))

    def folder(self, model: Path) -> Path:
        if self.scratch is not None:
            return self.scratch
        return model if model.is_dir() else model.parent

    def open(self, path: Path, emit: Emit) -> ModelFile:
        """As `open_result`; a checkpoint that memory does not hold passes over the disk."""
        return open_result(path, emit, self.host(emit).room(AUTO, self.folder(path)))


@contextmanager
def loaded_store(model: ModelFile, memory: HostMemory, scratch: Path, emit: Emit) -> Iterator[Store]:
    """The rows of a model, without moments; what reading had to change is said."""
    rows, left = model.rows.count, memory.total() - memory.beside_rows
    room = Room(int((1 - _BESIDE_ROWS) * left), scratch)
    store = model.store(room.empty, scratch, room.bucket_rows, reporter(emit))
    try:
        for text in model.rows.messages:
            emit(Message(text, "warning"))
        if store.disk is not None:
            frames = int(_FRAMES * (left - rows * CULL_BYTES)) // (PAGE_ROWS * PARAMETER_BYTES)
            store.keep_on_disk(min(max(frames, LEAST_FRAMES), store.pages), scratch)
            emit(Message(f"{store.disk.frames:,} of {store.pages:,} pages of the model fit into host memory at a time"))
        yield store
    finally:
        store.close()


def model_renderer(
    model: ModelFile,
    store: Store,
    memory: HostMemory,
    background: tuple[float, float, float],
    gpu_memory: str,
    emit: Emit,
) -> Callable[..., Render]:
    """Renders any camera from the rows of a model; the device holds only the rows of one view, or of a piece of it. Raises
    ResourceError when the budget is too small for even that."""
    device, rasterizer = open_device("auto", antialiased=model.rows.antialiased, say=lambda text: emit(Message(text)))
    budget = find_device_budget(gpu_memory, device, lambda text: emit(Message(text, "warning")))
    if budget.reason:
        emit(Message(budget.reason))
    # What the rasteriser needs grows with the view, as the arena does.
    beside = (rasterizer.temporary_bytes(1 << 20, 0) - rasterizer.temporary_bytes(0, 0)) >> 20
    fewest, host = fewest_slots(store.rows), max(0, memory.total() - memory.beside_rows - store.bytes)
    available = host // 2 if budget.bytes is None else budget.bytes
    if device.shares_host_memory:
        available = min(available, host // 2)
    slots = min(store.rows, available // (SLOT_BYTES + beside))
    if slots < fewest:
        raise device_too_small(store.rows, fewest * (SLOT_BYTES + beside), available)
    fetch = Fetch(Tiers(device, store, np.zeros(store.pages, bool), slots))
    render = partial(render_view, fetch, None, rasterizer, sh_degree=model.rows.sh_degree, background=background)
    if not device.shares_host_memory:
        return render
    left = host - slots * SLOT_BYTES

    def admit(rows: int, camera: Camera) -> None:
        """Tile lists get what the splats of a view leave of the host's memory."""
        least = rasterizer.least_workspace_bytes(rows, camera.width * camera.height)
        if least > left:
            raise view_too_large(rows, least, left, memory.beside_rows + _enough_to_view(store.rows, least))
        rasterizer.band_bytes = left - rows * (HOST_ROW_BYTES + HOST_SUM_BYTES)

    return partial(render, admit=admit)


def with_limits(named: Sequence[tuple[str, Camera]], store: Store) -> list[tuple[str, Camera]]:
    """The cameras, those that state no near plane (other tools' files) with the one that fits the model and all of them."""
    if all(camera.near > 0 for _, camera in named):
        return list(named)
    centres = np.array([camera.position for _, camera in named])
    near = near_plane(centres, store.entries[:: max(1, store.rows // 1000), :3].astype(np.float64))
    stated = [dataclasses.replace(c, near=near, far=FAR_PER_NEAR * near) if c.near <= 0 else c for _, c in named]
    return [(name, camera) for (name, _), camera in zip(named, stated, strict=True)]


def _enough_to_view(rows: int, workspace: int) -> int:
    """Bytes of the host for a model of so many rows and a workspace, as they are shared out above."""
    entries, in_ram = rows * CULL_BYTES, rows * (CULL_BYTES + PARAMETER_BYTES)
    needed = 2 * workspace  # as much is the arena's, at most
    on_disk = int(1.1 * (entries + needed / (1.0 - _FRAMES)))
    if (1 - _BESIDE_ROWS) * on_disk < in_ram:
        return on_disk
    return int(1.1 * max(in_ram / (1 - _BESIDE_ROWS), in_ram + needed))
