"""Where a row lives never changes the model: lanes under any arena, thread count and placement give the same bits."""

from __future__ import annotations

import re
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clm import kernels
from clm.camera import Camera
from clm.device.cpu import CpuDevice
from clm.device.interface import Device, Staging, packed_rows, row_floats
from clm.kernels import rows as row_kernels
from clm.kernels.rows import colour_columns
from clm.optim.adam import Adam, Betas
from clm.plan.budget import TURNS_UNDER_WAY
from clm.plan.residency import Traffic, Turn, make_plan, rest_of
from clm.plan.visibility import visible_rows, visible_sets
from clm.store.order import block_order, plain_entries
from clm.store.store import Store
from clm.stream import fetch as fetch_module
from clm.stream import lanes as lanes_module
from clm.stream import send_back as send_back_module
from clm.stream.fetch import Fetch
from clm.stream.handover import after
from clm.stream.lanes import Lanes
from clm.stream.parking import GradientBuffer, ParkedGradients
from clm.stream.tiers import Tiers
from clm.stream.view import render_turn, render_view
from tests.device.fake_device import SCHEDULES, FakeDevice
from tests.render.whole import CpuRasterizer

BLACK = (0.0, 0.0, 0.0)
VIEWS = 6
PAGE_ROWS = 256  # rows: enough pages for some to be resident
PARCEL = 300  # rows: a turn takes several parcels
WAITS = (
    "the rows gathered before have left this staging buffer",
    "the slots of early rows were released two turns ago",
    "the slots of late rows are released by the previous turn",
    "the rows of this turn are in their slots",
    "the gradients of this turn are complete",
    "the gradients of this turn have arrived on the host",
    "the host has read this staging buffer before it is written again",
    "what is parked has arrived on the host",
    "the gradients brought back before have left this staging buffer",
    "the next batch reads the rows that this one updates",
)
INTERRUPTION_WAITS = (
    "the host's lanes have done what earlier turns gave them",
    "rows under way to the arena are there before it is replaced",
    "what was begun of the view is over before the arena is replaced",
)
SPARING = "the index lists of few turns are on the device at a time"
CLOSING = "arena and staging may go when no stream works with them any more"


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
    colour, order = rng.normal(scale=0.3, size=(rows, 48)).astype(np.float32), block_order(plain_entries(geometry))
    store = Store(rows, page_rows=PAGE_ROWS)
    store.append(geometry[order], colour[order], order.astype(np.uint64))
    store.refresh(None)
    return store


def everything(store: Store) -> np.ndarray:
    return np.ones(store.pages, bool)


def nothing(store: Store) -> np.ndarray:
    return np.zeros(store.pages, bool)


def every_other(store: Store) -> np.ndarray:
    return np.arange(store.pages) % 2 == 0


Which = Callable[[Store], np.ndarray]


class Tape:
    """The gradient rows of every view of a run, by row, so that a second run with the same order of views is given the same
    ones: a gradient is a sum over pixels of both signs, and magnifies the last bit of a parameter many thousand times."""

    def __init__(self) -> None:
        self.views: list[tuple[np.ndarray, np.ndarray]] = []  # [N, 16], [N, 48] f32 per view
        self.at: int | None = None  # the view that is played next; None: recording

    def rewound(self) -> Tape:
        tape = Tape()
        tape.views, tape.at = self.views, 0
        return tape

    def add(self, rows: np.ndarray, slots: np.ndarray, backward: Callable[..., None], *targets: np.ndarray) -> None:
        """Add the gradients of a view in one piece to those of the arena: what `backward` adds, or what is on the tape."""
        if self.at is None:
            fresh = [np.zeros_like(target) for target in targets]
            backward(*fresh)
            recorded = [np.zeros((4000, target.shape[1]), np.float32) for target in targets]
            for by_row, by_slot in zip(recorded, fresh, strict=True):
                by_row[rows] = by_slot[slots]
            self.views.append((recorded[0], recorded[1]))
        for target, by_row in zip(targets, self.views[-1 if self.at is None else self.at], strict=True):
            target[slots] += by_row[rows]
        self.at = None if self.at is None else self.at + 1


class Taped(CpuRasterizer):
    """A rasteriser whose gradients a tape records or plays, if there is one."""

    rows: np.ndarray  # of the turn

    def __init__(self, tape: Tape | None):
        super().__init__()
        self.tape = tape

    def project_backward(self, geometry, colour, slots, first, *targets) -> None:
        backward = partial(super().project_backward, geometry, colour, slots, first)
        if self.tape is None:
            backward(*targets)
        else:
            self.tape.add(self.rows, slots, backward, *targets)


def on_host(arena: Any) -> Any:
    """The arena's arrays as numpy, which they share their memory with."""
    names = ("geometry", "colour", "grad_geometry", "grad_colour")
    return SimpleNamespace(**{name: np.asarray(getattr(arena, name)) for name in names})


def run_batches(
    capacity: int,
    resident: Which,
    device: Device | None = None,
    *,
    batches: int = 5,
    degree: int = 2,
    interrupted: dict[tuple[int, int], int] | None = None,
    at_rest: Callable[[], None] = lambda: None,
    bf16_colours: bool = False,
    parcel_rows: int = PARCEL,
    tape: Tape | None = None,
) -> tuple[Store, Adam, Traffic]:
    """Train on a fixed pseudo-gradient; returns the store, the optimizer and what crossed the bus in all.

    interrupted: at (batch, turn), counted over all parts of the batch, the device has memory left for an arena of so many
    slots only. tape: records the gradients, or plays them."""
    interrupted = dict(interrupted or {})
    store, adam = scene(), Adam(np.full((6, batches + 3), 1e-2), Betas.for_batch(VIEWS))
    tiers = Tiers(device or CpuDevice(), store, resident(store), capacity)
    lanes, rasterizer, traffic, arena = Lanes(tiers, parcel_rows), Taped(tape), [], tiers.arena
    arena.geometry[:] = arena.grad_geometry[:] = arena.grad_colour[:] = np.nan  # what a plan forgot would show
    arena.colour[:] = np.nan
    try:
        for batch in range(batches):
            order = np.random.default_rng(batch).permutation(VIEWS)
            lanes.publish_entries()
            sets = visible_sets(store.entries, store.bounds, [CAMERAS[v] for v in order], page_rows=store.page_rows)
            plan = make_plan([int(v) for v in order], sets, tiers.arena.slots)
            lanes.begin(plan, adam.at(batch + 1, VIEWS, bf16_colours), colour_columns(degree))
            turns, done = list(enumerate(plan.turns)), 0
            while turns:
                i, turn = turns.pop(0)

                def render(slots: np.ndarray, turn: Turn = turn) -> None:
                    def draw() -> None:
                        image = rasterizer.rasterize(BLACK)
                        rasterizer.rasterize_backward(np.ascontiguousarray(image.rgb - 0.5, dtype=np.float32))

                    rasterizer.rows, where = turn.rows, np.asarray(slots, np.int32)
                    render_turn(rasterizer, on_host(tiers.arena), turn, CAMERAS[turn.view], degree, draw, where)

                if (room := interrupted.pop((batch, done), None)) is not None:
                    lanes.compute_stream.run(lambda: None)  # begun, and then there was no memory for the rest
                    lanes.interrupt(i)
                    at_rest()
                    tiers.replace_arena(room)
                    plan = rest_of(plan, i, room, store.page_rows)
                    lanes.go_on(plan)
                    turns = list(enumerate(plan.turns))
                    continue
                lanes.compute(i, render)
                lanes.send_back(i)
                done += 1
            traffic.append(lanes.finish()[0])
            lanes.end()
        lanes.publish_entries()
        tiers.write_back()
    finally:
        lanes.close()
    return store, adam, sum(traffic[1:], traffic[0])


def model(store: Store) -> dict[str, np.ndarray]:
    return {name: getattr(store, name).copy() for name in (*store.names, "entries")}


def assert_same(store: Store, expected: dict[str, np.ndarray]) -> None:
    for name, values in model(store).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def largest_view() -> int:
    store = scene()
    return max(len(visible_rows(store.entries, store.bounds, c, page_rows=PAGE_ROWS)) for c in CAMERAS)


def tight() -> int:
    """An arena in which rows are evicted before their last use."""
    return int(1.25 * largest_view())


@pytest.fixture(scope="module")
def everything_resident() -> dict[str, np.ndarray]:
    return model(run_batches(scene().rows, everything)[0])


@pytest.fixture(scope="module")
def rounded_resident() -> dict[str, np.ndarray]:
    """Everything resident, colours rounded to bf16 for every view."""
    return model(run_batches(scene().rows, everything, bf16_colours=True)[0])


@pytest.mark.parametrize("resident", [nothing, every_other, everything])
@pytest.mark.parametrize("room", [0.1, 0.25, 0.9, 1.25, 2.0, 10.0])
@pytest.mark.parametrize("threads", [1, 2])
def test_any_arena_and_any_resident_blocks_give_the_same_bits_as_everything_resident(
    everything_resident, resident: Which, room: float, threads: int
) -> None:
    capacity = min(int(room * largest_view()), scene().rows)
    before = kernels.get_threads()
    try:
        kernels.set_threads(threads)
        store, _, _ = run_batches(capacity, resident)
    finally:
        kernels.set_threads(before)
    assert_same(store, everything_resident)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("resident", [nothing, every_other, everything])
@pytest.mark.parametrize("room", [0.25, 0.6, 1.25, 10.0])
def test_a_device_with_memory_and_streams_of_its_own_gives_the_same_bits(
    everything_resident, schedule: str, resident: Which, room: float
) -> None:
    capacity = min(int(room * largest_view()), scene().rows)
    store, _, _ = run_batches(capacity, resident, FakeDevice(schedule))
    assert_same(store, everything_resident)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("room", [0.3, 1.25])
def test_streams_in_any_order_that_the_waits_admit_give_the_same_bits(everything_resident, seed: int, room) -> None:
    store, _, _ = run_batches(int(room * largest_view()), every_other, FakeDevice("random", seed=seed))
    assert_same(store, everything_resident)


def dawdling(monkeypatch: pytest.MonkeyPatch, device: FakeDevice, load_pause: float = 0.0) -> Callable[[], None]:
    """The update lane begins late, the load lane ends late, and lanes do not wait for each other where the device ignores
    the reason. Returns a check that the load lane is at rest."""
    load, at_work = Fetch.run, []

    def late(kernel: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            device.dawdle()
            kernel(*arguments)

        return run

    def slow_load(*arguments: Any) -> None:
        at_work.append(1)
        try:
            load(*arguments)
        finally:
            time.sleep(load_pause)
            at_work.pop()

    def at_rest() -> None:
        assert not at_work, "the load lane still works"

    monkeypatch.setattr(row_kernels, "adam", late(row_kernels.adam))
    monkeypatch.setattr(Fetch, "run", slow_load)
    for module in (lanes_module, fetch_module, send_back_module):
        monkeypatch.setattr(module, "after", lambda outcome, why: outcome.result() if device.heed(why) else [])
    return at_rest


def test_every_wait_of_the_lanes_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice("eager")
    dawdling(monkeypatch, device)
    run_batches(tight(), every_other, device, batches=2)
    assert device.reasons == {*WAITS, SPARING, CLOSING}
    run_batches(2 * largest_view(), every_other, device, interrupted=interruptions())
    assert device.reasons == {*WAITS, *INTERRUPTION_WAITS, SPARING, CLOSING}
    modules = (lanes_module, fetch_module, send_back_module)
    source = "".join(Path(str(module.__file__)).read_text() for module in modules)
    waits = len(re.findall(r"stream\.wait\(|\.synchronize\(|\bafter\(", source))
    assert waits == len(WAITS) + len(INTERRUPTION_WAITS) + 2, (
        "one call waits for early or for late rows, one spares memory, one is for few frames, one for closing"
    )


@pytest.mark.parametrize("why", WAITS)
def test_without_any_one_wait_the_model_is_wrong(
    everything_resident, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    tries = [
        ("lazy", 1.25),
        ("hasty loads", 1.25),
        ("eager", 1.25),
        *(("hasty loads", room) for room in (1.5, 1.75, 2.0)),
    ]
    for (
        schedule,
        room,
    ) in tries:  # a roomy arena has turns without late rows, which would wait in place of the early ones
        device = FakeDevice(schedule, ignored=(why,), pause=0.01)
        with monkeypatch.context() as patch:
            dawdling(patch, device)
            try:
                store, _, _ = run_batches(int(room * largest_view()), every_other, device)
                assert_same(store, everything_resident)
            except (Exception, AssertionError):
                return
    pytest.fail(f"nothing notices that no one waits until {why}")


@pytest.mark.parametrize("waits", [True, False])
def test_few_turns_have_their_index_lists_on_the_device_at_a_time(monkeypatch: pytest.MonkeyPatch, waits: bool) -> None:
    """Views of the same rows: all but the first have nothing to load, so nothing but this wait holds the load lane back."""
    lists: list[weakref.ref[np.ndarray]] = []

    class Counting(FakeDevice):
        def indices(self, lists_of_turn: list[np.ndarray]) -> list[np.ndarray]:
            there = [ids.copy() for ids in super().indices(lists_of_turn)]
            lists.append(weakref.ref(there[0]))  # the slots of the view
            return there

    def comes_to(allowed: Callable[[int], bool]) -> bool:
        """Whether so many turns have lists; the lanes get time to make more or to drop some."""
        time.sleep(0.02)
        deadline = time.monotonic() + 5
        while not (there := allowed(sum(ref() is not None for ref in lists))) and time.monotonic() < deadline:
            time.sleep(0.002)
        return there

    device, store, views = Counting("eager", ignored=() if waits else (SPARING,)), scene(), 3 * TURNS_UNDER_WAY
    dawdling(monkeypatch, device)
    rows = visible_rows(store.entries, store.bounds, CAMERAS[0], page_rows=PAGE_ROWS)
    lanes = Lanes(Tiers(device, store, nothing(store), 4000))
    try:
        steps = Adam(np.full((6, 3), 1e-3), Betas.for_batch(views))
        lanes.begin(make_plan(list(range(views)), [rows] * views, 4000), steps.at(1, views), 3)
        for i in range(views):
            left = views - i
            assert comes_to(lambda held, left=left: held <= TURNS_UNDER_WAY if waits else held == left)
            lanes.compute(i, lambda slots: None)
            lanes.send_back(i)
            after(lanes._batch.turns[i].updated, "its lists are gone")
        lanes.finish()
        assert comes_to(lambda held: held == 0)
    finally:
        lanes.close()


INTERRUPTED = ((0, 3), (2, 0), (2, 2), (4, 5))  # batch and view


def interruptions() -> dict[tuple[int, int], int]:
    """Arenas that shrink from roomy to barely enough while batches run."""
    return {at: int((1.5 - 0.1 * k) * largest_view()) for k, at in enumerate(INTERRUPTED)}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("resident", [nothing, every_other, everything])
def test_a_batch_that_goes_on_in_a_smaller_arena_gives_the_same_bits(
    everything_resident, schedule: str, resident: Which
) -> None:
    store, _, _ = run_batches(int(2.2 * largest_view()), resident, FakeDevice(schedule), interrupted=interruptions())
    assert_same(store, everything_resident)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("resident", [nothing, every_other])
def test_a_batch_interrupted_within_views_in_pieces_gives_the_same_bits(
    everything_resident, schedule: str, resident: Which
) -> None:
    """Of nine turns or so per view: on the way there, in the turn that rasterises, and on the way back."""
    rooms = {(0, 1): 0.3, (0, 4): 0.45, (1, 6): 0.25, (2, 3): 0.4, (2, 9): 0.2, (2, 14): 1.1, (3, 2): 0.4, (4, 3): 0.3}
    interrupted = {at: int(room * largest_view()) for at, room in rooms.items()}
    store, _, _ = run_batches(int(0.5 * largest_view()), resident, FakeDevice(schedule), interrupted=interrupted)
    assert_same(store, everything_resident)


@pytest.mark.parametrize("why", INTERRUPTION_WAITS)
def test_without_any_one_wait_of_an_interruption_something_is_wrong(
    everything_resident, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    for schedule in ("lazy", "eager"):
        device = FakeDevice(schedule, ignored=(why,), pause=0.01)
        with monkeypatch.context() as patch:
            at_rest = dawdling(patch, device, load_pause=0.01)
            try:
                run = run_batches(2 * largest_view(), every_other, device, interrupted=interruptions(), at_rest=at_rest)
                store = run[0]
                assert_same(store, everything_resident)
            except (Exception, AssertionError):
                return
    pytest.fail(f"nothing notices that no one waits until {why}")


@pytest.mark.parametrize("device", ["cpu", *SCHEDULES])
@pytest.mark.parametrize("resident", [nothing, every_other, everything])
@pytest.mark.parametrize("room", [1.25, 10.0])
def test_colours_rounded_for_the_bus_are_rounded_wherever_a_row_lives(
    rounded_resident, device: str, resident: Which, room: float
) -> None:
    where = CpuDevice() if device == "cpu" else FakeDevice(device)
    capacity = min(int(room * largest_view()), scene().rows)
    store, _, _ = run_batches(capacity, resident, where, bf16_colours=True)
    assert_same(store, rounded_resident)


@pytest.mark.parametrize("resident", [nothing, every_other])
def test_rounded_colours_stay_the_same_when_a_batch_is_interrupted(rounded_resident, resident: Which) -> None:
    device = FakeDevice("random")
    store, _, _ = run_batches(2 * largest_view(), resident, device, interrupted=interruptions(), bf16_colours=True)
    assert_same(store, rounded_resident)


def test_rounding_for_the_bus_changes_gradients_a_little_and_rounds_no_stored_colour(
    everything_resident, rounded_resident
) -> None:
    exact, rounded = everything_resident["colour"], rounded_resident["colour"]
    moved = np.abs(exact - scene().colour).max()
    difference = np.abs(exact - rounded)
    assert 0 < np.mean(difference) < 0.01 * moved
    drawn = rounded_resident["stamp"] > 0
    short = (rounded[drawn].view(np.uint32) & 0xFFFF) == 0
    assert short.mean() < 0.01, "what the optimizer steps on stays exact"


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_two_bytes_of_every_active_colour_cross_the_bus(monkeypatch: pytest.MonkeyPatch, degree: int) -> None:
    """What is really copied to the device: in an arena with room for all, rows and nothing else."""
    columns, copies = colour_columns(degree), []

    class Counting(FakeDevice):
        def to_device(self, staging: Staging, floats: int) -> None:
            copies.append(4 * floats)
            super().to_device(staging, floats)

    for bf16_colours, value in ((False, 4), (True, 2)):
        copies.clear()
        _, _, traffic = run_batches(scene().rows, nothing, Counting(), degree=degree, bf16_colours=bf16_colours)
        assert traffic.loaded_partial == 0
        # A copy of an odd number of bf16 values ends with two bytes of nothing.
        padding = sum(copies) - traffic.loaded * (48 + value * columns)
        assert 0 <= padding <= (2 * len(copies) if bf16_colours else 0)


def test_packed_colours_end_with_the_float_that_holds_the_last_one() -> None:
    for count, columns, floats in ((1, 3, 14), (2, 3, 27), (3, 27, 77), (5, 48, 180), (0, 3, 0)):
        assert row_floats(count, columns, bf16_colours=True) == floats
        flat = np.zeros(floats, np.float32)
        rows = packed_rows(flat, count, columns, np.uint16)
        assert rows.geometry.shape == (count, 12) and rows.colour.shape == (count, columns)
        rows.geometry[:], rows.colour[:] = 1, 0xFFFF
        assert (flat[: 12 * count] == 1).all() and (flat[12 * count :].view(np.uint16) != 0).sum() == count * columns


def test_resident_rows_never_cross_the_bus() -> None:
    all_resident, some, none = (run_batches(scene().rows, which)[2] for which in (everything, every_other, nothing))
    assert all_resident.loaded == all_resident.sent_back == all_resident.lower_bound == 0
    assert 0 < some.loaded == some.lower_bound < none.loaded == none.lower_bound
    assert some.no_reuse == none.no_reuse


def test_a_small_arena_loads_more_rows_and_a_large_one_each_row_once() -> None:
    small, large = run_batches(tight(), nothing)[2], run_batches(scene().rows, nothing)[2]
    assert small.loaded > large.loaded == large.lower_bound
    assert small.loaded_partial > 0 == large.loaded_partial


def test_the_test_scene_trains_something_and_leaves_hidden_rows_alone(everything_resident) -> None:
    fresh = scene()
    moved = (everything_resident["geometry"] != fresh.geometry).any(axis=1)
    assert 0.2 < moved.mean() < 1.0
    never_drawn = everything_resident["stamp"] == 0
    assert never_drawn.any() and not moved[never_drawn].any()


@pytest.mark.parametrize("resident", [nothing, every_other])
def test_slow_lanes_change_nothing(everything_resident, resident: Which, monkeypatch: pytest.MonkeyPatch) -> None:
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
    store, _, _ = run_batches(tight(), resident)
    assert_same(store, everything_resident)


def test_an_error_in_a_lane_reaches_the_caller_and_closing_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args) -> None:
        raise OSError("no such row")

    monkeypatch.setattr(row_kernels, "place", broken)
    with pytest.raises(OSError, match="no such row"):
        run_batches(scene().rows, nothing)


@pytest.mark.parametrize("waits", [True, False])
def test_an_abandoned_batch_can_be_closed_and_leaves_no_work_behind(waits: bool) -> None:
    store, device = scene(), FakeDevice("lazy", ignored=() if waits else (CLOSING,))
    lanes = Lanes(Tiers(device, store, nothing(store), 4000))
    sets = visible_sets(store.entries, store.bounds, CAMERAS, page_rows=PAGE_ROWS)
    plan = make_plan(list(range(VIEWS)), sets, max(len(s) for s in sets))
    lanes.begin(plan, Adam(np.full((6, 3), 1e-3), Betas.for_batch(1)).at(1), 3)
    lanes.compute(0, lambda slots: None)
    lanes.close()
    assert any(stream.work for stream in device.streams) != waits


@pytest.mark.parametrize("resident", [nothing, everything])
def test_a_view_that_sees_nothing_is_over_before_the_batch_is(resident: Which) -> None:
    """The last view of a batch has no row that anybody waits for, yet its times are read when the batch is over."""
    store, device = scene(), FakeDevice("lazy")
    lanes = Lanes(Tiers(device, store, resident(store), 4000), PARCEL)
    sets = [visible_rows(store.entries, store.bounds, CAMERAS[0], page_rows=PAGE_ROWS), np.zeros(0, np.int32)]
    computed: list[int] = []
    try:
        lanes.begin(make_plan([0, 1], sets, 4000), Adam(np.full((6, 3), 1e-3), Betas.for_batch(2)).at(1, 2), 3)
        for i in range(2):
            lanes.compute(i, lambda slots: computed.append(len(slots)))
            lanes.send_back(i)
        _, seconds, spans = lanes.finish()
    finally:
        lanes.close()
    assert computed == [len(sets[0]), 0] and seconds.compute > 0
    assert [span.turn for span in spans if span.lane == "compute"] == [0, 1]


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
    target = GradientBuffer(len(wanted))
    parked.copy_to(wanted, target, 48)
    for row, colour in zip(wanted, target.grad_colour, strict=True):
        np.testing.assert_array_equal(colour, latest[int(row)])


@pytest.mark.parametrize("resident", [nothing, every_other, everything])
def test_rendering_out_of_core_equals_rendering_all_rows(resident: Which) -> None:
    store, adam, _ = run_batches(scene().rows, nothing)
    constants = adam.at(6)
    chunks = list(store.exact_chunks(constants))
    geometry, colour = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    all_rows, some = CpuRasterizer(), CpuRasterizer()
    for capacity in (2 * largest_view(), largest_view() // 4):
        fetch = Fetch(Tiers(CpuDevice(), store, resident(store), capacity))
        for view in CAMERAS:
            slots = np.arange(store.rows, dtype=np.int32)
            full = all_rows.forward(geometry, colour, slots, view, 2, BLACK).rgb.copy()
            np.testing.assert_array_equal(render_view(fetch, constants, some, view, 2, BLACK).rgb, full)
