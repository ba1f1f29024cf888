"""Where a row lives never changes the model: lanes under any arena, thread count and placement give the same bits."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from clm import kernels
from clm.camera import Camera
from clm.gaussians.blocks import block_order
from clm.gaussians.store import Store
from clm.kernels import rows as row_kernels
from clm.kernels.rows import colour_columns
from clm.optim.adam import Adam, Betas
from clm.plan.residency import make_plan
from clm.plan.visibility import visible_rows, visible_sets
from clm.render.cpu import CpuRasterizer
from clm.stream.arena import Arena, GradientBuffer
from clm.stream.lanes import CpuLanes
from clm.stream.parking import ParkedGradients
from clm.stream.view import render_view

BLACK = (0.0, 0.0, 0.0)
VIEWS = 6


def camera(angle: float) -> Camera:
    """A small camera on a circle around a long row of Gaussians, looking past the centre: views share only some rows."""
    c, s = np.cos(angle), np.sin(angle)
    rotation = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, [0.4 * np.sin(3 * angle), 0, 0.5]
    return Camera(72, 56, 80.0, 80.0, 34.0, 29.0, pose)


CAMERAS = [camera(angle) for angle in np.linspace(0, 2.5, VIEWS)]


def scene(rows: int = 4000) -> Store:
    rng = np.random.default_rng(0)
    geometry = np.zeros((rows, 12), np.float32)
    geometry[:, :3] = rng.uniform([-6, -2, -6], [6, 2, 6], size=(rows, 3))
    geometry[:, 3:7] = rng.normal(size=(rows, 4))
    geometry[:, 7:10] = rng.normal(-3, 0.4, size=(rows, 3))
    geometry[:, 10] = rng.normal(size=rows)
    store = Store.from_rows(geometry, rng.normal(scale=0.3, size=(rows, 48)).astype(np.float32))
    store.refresh(None)
    store.take(block_order(store.entries))
    store.refresh(None)
    return store


def run_batches(capacity: int, *, resident: bool, batches: int = 5, degree: int = 2) -> tuple[Store, Adam, int]:
    """Train on a fixed pseudo-gradient; returns the store, the optimizer and the rows loaded."""
    store, adam = scene(), Adam(np.full((6, batches + 3), 1e-2), Betas.for_batch(VIEWS))
    arena = Arena(capacity)
    lanes, rasterizer = CpuLanes(store, arena, resident=resident), CpuRasterizer()
    arena.geometry[:] = arena.grad_geometry[:] = arena.grad_colour[:] = np.nan  # what a plan forgot would show
    arena.colour[:] = np.nan
    loaded = 0
    try:
        for batch in range(batches):
            order = np.random.default_rng(batch).permutation(VIEWS)
            sets = visible_sets(store.entries, store.bounds, [CAMERAS[v] for v in order])
            plan = make_plan([int(v) for v in order], sets, capacity)
            loaded += plan.traffic.loaded
            lanes.begin(plan, adam.at(batch + 1, VIEWS), colour_columns(degree))
            for i, step in enumerate(plan.steps):
                lanes.wait_loaded(i)
                image = rasterizer.forward(arena.geometry, arena.colour, step.slots, CAMERAS[step.view], degree, BLACK)
                v_rgb = np.ascontiguousarray(image.rgb - 0.5, dtype=np.float32)
                rasterizer.backward(v_rgb, arena.grad_geometry, arena.grad_colour)
                lanes.send_back(i)
            lanes.finish()
            lanes.publish_entries()
    finally:
        lanes.close()
    return store, adam, loaded


def model(store: Store) -> dict[str, np.ndarray]:
    return {name: getattr(store, name).copy() for name in (*store.names, "entries")}


def largest_view() -> int:
    store = scene()
    return max(len(visible_rows(store.entries, store.bounds, c)) for c in CAMERAS)


@pytest.fixture(scope="module")
def everything_resident() -> dict[str, np.ndarray]:
    return model(run_batches(scene().rows, resident=True)[0])


@pytest.mark.parametrize("room", [1.25, 1.4, 2.0, 10.0])
@pytest.mark.parametrize("threads", [1, 2])
def test_any_arena_gives_the_same_bits_as_everything_resident(everything_resident, room: float, threads: int) -> None:
    capacity = min(int(room * largest_view()), scene().rows)
    before = kernels.get_threads()
    try:
        kernels.set_threads(threads)
        store, _, _ = run_batches(capacity, resident=False)
    finally:
        kernels.set_threads(before)
    for name, values in model(store).items():
        np.testing.assert_array_equal(values, everything_resident[name], err_msg=name)


def test_a_small_arena_loads_more_rows_and_a_large_one_each_row_once() -> None:
    small = run_batches(int(1.25 * largest_view()), resident=False)[2]
    large = run_batches(scene().rows, resident=False)[2]
    assert small > large


def test_the_test_scene_trains_something_and_leaves_hidden_rows_alone(everything_resident) -> None:
    fresh = scene()
    moved = (everything_resident["geometry"] != fresh.geometry).any(axis=1)
    assert 0.2 < moved.mean() < 1.0
    never_drawn = everything_resident["stamp"] == 0
    assert never_drawn.any() and not moved[never_drawn].any()


def test_slow_lanes_change_nothing(everything_resident, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever lane is late, the waits hold the order: a missing one reads rows or gradients that are not there."""
    slow = np.random.default_rng(0)
    lock = threading.Lock()

    def delayed(kernel):
        def run(*args):
            with lock:
                pause = slow.uniform(0, 0.004)
            time.sleep(pause)
            return kernel(*args)

        return run

    for name in ("fetch", "place", "move_gradients", "adam"):
        monkeypatch.setattr(row_kernels, name, delayed(getattr(row_kernels, name)))
    store, _, _ = run_batches(int(1.25 * largest_view()), resident=False)
    for name, values in model(store).items():
        np.testing.assert_array_equal(values, everything_resident[name], err_msg=name)


def test_an_error_in_a_lane_reaches_the_caller_and_closing_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args) -> None:
        raise OSError("no such row")

    monkeypatch.setattr(row_kernels, "place", broken)
    with pytest.raises(OSError, match="no such row"):
        run_batches(scene().rows, resident=False)


def test_an_abandoned_batch_can_be_closed() -> None:
    store, arena = scene(), Arena(4000)
    lanes = CpuLanes(store, arena, resident=False)
    sets = visible_sets(store.entries, store.bounds, CAMERAS)
    plan = make_plan(list(range(VIEWS)), sets, max(len(s) for s in sets))
    lanes.begin(plan, Adam(np.full((6, 3), 1e-3), Betas.for_batch(1)).at(1), 3)
    lanes.wait_loaded(0)
    lanes.close()


def test_parked_gradients_come_back_bit_for_bit_also_after_parking_again() -> None:
    rng = np.random.default_rng(0)
    source, parked = GradientBuffer(100), ParkedGradients()
    latest: dict[int, np.ndarray] = {}
    for _ in range(5):
        source.grad_geometry[:], source.grad_colour[:] = rng.normal(size=(100, 16)), rng.normal(size=(100, 48))
        rows = np.sort(rng.permutation(1000)[:40]).astype(np.int32)
        slots = rng.permutation(100)[:40].astype(np.int32)
        parked.park(rows, source, slots, 48)
        latest |= {int(r): source.grad_colour[s].copy() for r, s in zip(rows, slots, strict=True)}
    wanted = np.array(sorted(latest)[::3], np.int32)
    buffer, positions = parked.find(wanted)
    for row, position in zip(wanted, positions, strict=True):
        np.testing.assert_array_equal(buffer.grad_colour[position], latest[int(row)])


def test_rendering_out_of_core_equals_rendering_all_rows() -> None:
    store, adam, _ = run_batches(scene().rows, resident=False)
    constants = adam.at(6)
    chunks = list(store.exact_chunks(constants))
    geometry, colour = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    everything, some = CpuRasterizer(), CpuRasterizer()
    arena = Arena(2 * largest_view())
    for view in CAMERAS:
        slots = np.arange(store.rows, dtype=np.int32)
        full = everything.forward(geometry, colour, slots, view, 2, BLACK).rgb.copy()
        np.testing.assert_array_equal(render_view(store, constants, arena, some, view, 2, BLACK).rgb, full)
