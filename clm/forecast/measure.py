"""The rates of this machine, measured in a few seconds with the kernels that train: what `--machine this` means.

Rows and cameras are those of the scene, photos are noise (the loss takes as long for any photo), so no photo is read.
Rows are rendered at the opacity that training gives them, because initial ones are quicker than trained ones.
Rates depend on whether rows fit into the caches: they are taken on as many rows as the run will have, up to a limit.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from clm.camera import Camera
from clm.device.cpu import CpuDevice
from clm.device.interface import Arena, gradient_floats, packed_gradients, packed_rows, row_floats
from clm.forecast.machine import Machine, adam_bytes, fetch_bytes, gradient_bytes, row_bytes
from clm.forecast.measure_disk import disk_rates
from clm.kernels import rows as row_kernels
from clm.kernels.rows import AdamStep, colour_columns
from clm.optim.adam import Adam, Betas
from clm.plan.batch import plan_batch
from clm.plan.visibility import NO_MARGIN, visible_rows
from clm.render import CpuRasterizer, Target, train_view
from clm.store.layout import GRAD_DRAWN, LOGIT_OPACITIES
from clm.store.store import Store
from clm.stream.handover import HostLane, Outcome

THIS = "this machine"
MEASURED_ROWS = 400_000  # 300 MB of rows, beyond most caches
_VIEWS = 8
_REPEATS = 5
_TURNS = 2
# Mean opacity on fox and caliterra after 300 images 0.36 and 0.32, after 1,200 0.47 and 0.45; initial rows (0.1) render
# 11 to 17% faster than trained ones, rows of opacity 0.3 to 0.5 as fast within 4%.
_TRAINED_OPACITY = 0.4
_PER_ROW = ("project", "sort", "project_backward")  # stages of the rasteriser that follow the rows of the visible set


@dataclass(frozen=True)
class Sizes:
    """Bytes that this machine offers."""

    device_memory: int
    host_memory: int
    disk: int


def measure_this(
    store: Store,
    cameras: Sequence[Camera],
    sizes: Sizes,
    *,
    gaussians: int,
    batch_size: int,
    sh_degree: int,
    scratch: Path | None = None,
) -> Machine:
    """Rates of this machine on rows [N] and training cameras of a scene, for a run with `gaussians` rows. scratch: the folder
    of a disk that is measured, too.

    The store is not changed. Memory: `MEASURED_ROWS` rows and the arena of a view, besides the rasteriser's workspace.
    """
    columns = colour_columns(sh_degree)
    some = [cameras[k] for k in np.unique(np.linspace(0, len(cameras) - 1, _VIEWS).astype(int))]
    working = _repeated(store, max(1, min(gaussians, MEASURED_ROWS) // max(1, store.rows)))
    seen = sorted((visible_rows(working.entries, working.bounds, camera) for camera in some), key=len)
    rows = seen[len(seen) // 2]
    step = Adam(np.full((6, 16), 1e-4), Betas.for_batch(batch_size))
    batch = list(range(min(batch_size, len(cameras))))
    planning = _median(lambda: plan_batch(working, cameras, batch, working.rows, NO_MARGIN, seed=0))
    planned = sum(len(visible_rows(working.entries, working.bounds, cameras[k])) for k in batch)
    return Machine(
        name=THIS,
        device="cpu",
        device_memory=sizes.device_memory,
        host_memory=sizes.host_memory,
        disk=sizes.disk,
        cores=float(os.cpu_count() or 1),
        plan_ns_per_row=1e9 * planning / max(1, planned),
        hand_over_us=1e6 * _hand_over_seconds(working, step.at(1)),
        **_row_rates(working, rows, step, columns),
        **render_model(store, some, sh_degree),
        **(disk_rates(scratch) if scratch else {}),
        notes=(("all rates", f"measured with {len(rows):,} of {working.rows:,} rows and {len(some)} views"),),
    )


def _repeated(store: Store, copies: int) -> Store:
    """Each row `copies` times, in place: denser, with the same cameras seeing the same share."""
    geometry, colour = (np.repeat(a, copies, axis=0) for a in (store.geometry, store.colour))
    repeated = Store.from_rows(geometry, colour, moments=store.moments)
    repeated.refresh(None)
    return repeated


def _median(work: Callable[[], object]) -> float:
    """Median seconds of a call that was made once before."""
    work()
    times = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def _row_rates(store: Store, rows: np.ndarray, adam: Adam, columns: int) -> dict[str, float]:
    """GB/s of fetch, Adam, place and the move of gradients, on the visible set `rows` of one view."""
    count, slots = len(rows), np.arange(len(rows), dtype=np.int32)
    device, arena = CpuDevice(), Arena(count)
    staged = packed_rows(device.staging(row_floats(count, columns)).host, count, columns)
    gradients = packed_gradients(device.staging(gradient_floats(count, columns)).host, count, columns)
    arena.grad_geometry[:], arena.grad_colour[:] = 1e-6, 1e-6
    arena.grad_geometry[:, GRAD_DRAWN] = 1.0
    entries, taken = np.empty((count, 4), np.float32), iter(range(1, adam.steps))

    def update() -> None:
        step = adam.at(next(taken))
        row_kernels.adam(store, step, rows, gradients, None, columns, store.statistics, entries)

    moves = {
        "bus_out_gb_s": (
            gradient_bytes(columns),
            lambda: device.collect(arena, slots, gradients, columns),
        ),
        "host_adam_gb_s": (adam_bytes(columns, store.moments or "f32"), update),
        "host_gather_gb_s": (
            fetch_bytes(columns, store.moments or "f32"),
            lambda: row_kernels.fetch(store, adam.at(adam.steps), rows, *staged, columns),
        ),
        "bus_in_gb_s": (
            row_bytes(columns),
            lambda: device.place(staged, slots, arena, columns),
        ),
    }
    rates = {name: 1e-9 * size * max(1, count) / _median(work) for name, (size, work) in moves.items()}
    plain = np.ones(max(1, count) * gradient_bytes(columns) // 4, np.float32)
    return {**rates, "device_gb_s": 2e-9 * plain.nbytes / _median(lambda: row_kernels.touch(plain))}


def _hand_over_seconds(store: Store, step: AdamStep) -> float:
    """Seconds until another thread has done next to nothing: the fixed cost of one piece of work of a lane."""
    row, arena = np.zeros(1, np.int32), Arena(1)

    lane = HostLane("measure")

    def work(done: Outcome[None]) -> None:
        row_kernels.fetch(store, step, row, arena.geometry, arena.colour, 3)
        done.succeed(None)

    def hand_over() -> None:
        for _ in range(20):
            done: Outcome[None] = Outcome()
            lane.hand_over(partial(work, done))
            done.wait()

    try:
        return _median(hand_over) / 20
    finally:
        lane.close()


def render_model(store: Store, cameras: Sequence[Camera], sh_degree: int) -> dict[str, float]:
    """Seconds of render, loss and backward, split into parts per view, row and pixel by the stages' own clocks.

    Splitting by stage is well conditioned where views differ little; a fit over views is not. Pairs of tiles and rows
    get no part of their own: over the views of a scene they follow the pixels. Cores in use: all in the kernels, one
    between them (processor time would show what other programs left to us).
    """
    rasterizer, rng = CpuRasterizer(), np.random.default_rng(0)
    sets = [visible_rows(store.entries, store.bounds, camera) for camera in cameras]
    arena, timed = Arena(max(len(rows) for rows in sets)), np.zeros(3)  # seconds: wall, by rows, by pixels
    for turn in range(
        1 + _TURNS
    ):  # as in a run, the caches hold another view's rows; the first turn grows the workspace
        for camera, rows in zip(cameras, sets, strict=True):
            slots = np.arange(len(rows), dtype=np.int32)
            row_kernels.fetch(store, None, rows, arena.geometry, arena.colour, colour_columns(sh_degree), slots)
            arena.geometry[: len(rows), LOGIT_OPACITIES] = math.log(_TRAINED_OPACITY / (1.0 - _TRAINED_OPACITY))
            photo = rng.integers(0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
            seconds = _timed_view(rasterizer, arena, slots, camera, sh_degree, photo)
            timed += np.array(seconds) / _TURNS if turn else 0.0
    wall, by_rows, by_pixels = timed.tolist()
    count, cores, rows_seen = len(cameras), os.cpu_count() or 1, max(1, sum(map(len, sets)))
    in_kernels = min(1.0, (by_rows + by_pixels) / wall)
    return {
        "render_ms_per_view": 1e3 * max(0.0, wall - by_rows - by_pixels) / count,
        "render_ns_per_row": 1e9 * by_rows / rows_seen,
        "render_ns_per_pixel": 1e9 * by_pixels / sum(camera.width * camera.height for camera in cameras),
        "compute_cores": in_kernels * cores + 1.0 - in_kernels,
    }


def _timed_view(
    rasterizer: CpuRasterizer, arena: Arena, slots: np.ndarray, camera: Camera, sh_degree: int, photo: np.ndarray
) -> tuple[float, float, float]:
    """Seconds of one view: in all, in the stages that follow rows, in those that follow pixels."""
    began = time.perf_counter()
    train_view(rasterizer, arena, slots, camera, sh_degree, Target(photo, None, (0.0, 0.0, 0.0)))
    wall, stages = time.perf_counter() - began, rasterizer.seconds()
    by_rows = sum(stages[name] for name in _PER_ROW)
    return wall, by_rows, sum(stages.values()) - by_rows
