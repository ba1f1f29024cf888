"""Deferred Adam in torch equals the C++ kernel and the dense float64 reference, on any touch pattern; it never waits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clm.kernels import rows as row_kernels
from clm.optim.adam import Adam, Betas
from clm.store.layout import GRAD_DRAWN, GRAD_SQUARES
from clm.store.store import Store
from clm.stream.parking import GradientBuffer
from tests.optim.slow_adam import dense_adam
from tests.optim.test_adam import BETAS, COLUMN_GROUP, random_store, schedule

torch = pytest.importorskip("torch")
device = pytest.importorskip("clm.device.cuda_adam")
tables_of = pytest.importorskip("clm.device.cuda_tables").DeviceAdam
Workspace = pytest.importorskip("clm.device.workspace").Workspace
rules = pytest.importorskip("tests.device_rules")

STATE = ("geometry", "colour", "m_geometry", "v_geometry", "m_colour", "v_colour", "stamp", "statistics")


def on_device(store: Store) -> Any:
    """The store's arrays as tensors of their own."""
    return SimpleNamespace(**{name: torch.tensor(getattr(store, name)) for name in STATE})


def gradients_for(rows: int, slots: int, drawn: np.ndarray, at: np.ndarray, seed: int, columns: int) -> GradientBuffer:
    """Gradient rows at `at` [rows] of a buffer of `slots`; nothing usable in other slots and inactive
    columns, and leftovers in rows that were not drawn: the count alone decides."""
    rng = np.random.default_rng(seed)
    buffer = GradientBuffer(slots)
    buffer.grad_geometry[:], buffer.grad_colour[:] = np.nan, np.nan
    scale = 10.0 ** rng.uniform(-7, -2, size=(rows, 1))
    buffer.grad_geometry[at] = 0
    buffer.grad_geometry[at, :11] = rng.normal(size=(rows, 11)) * scale
    buffer.grad_geometry[at, GRAD_DRAWN] = drawn * rng.integers(1, 5, rows)
    buffer.grad_geometry[at, GRAD_DRAWN + 1 : GRAD_SQUARES + 1] = rng.random((rows, GRAD_SQUARES - GRAD_DRAWN))
    buffer.grad_colour[at, :columns] = rng.normal(size=(rows, columns)) * scale
    return buffer


def tensors_of(buffer: GradientBuffer) -> Any:
    return SimpleNamespace(
        grad_geometry=torch.tensor(buffer.grad_geometry), grad_colour=torch.tensor(buffer.grad_colour)
    )


def close(ours: Any, theirs: np.ndarray, tolerance: float = 1e-6) -> bool:
    """Within the tolerance of the largest value of each row (its gradients share one size; single sums may cancel)."""
    ours, theirs = ours.numpy().astype(np.float64), theirs.astype(np.float64)
    scale = np.abs(theirs) if theirs.ndim == 1 else np.abs(theirs).max(axis=1, keepdims=True)
    return bool((np.abs(ours - theirs) <= tolerance * (scale + 1e-30)).all())


class Twins:
    """One store on both sides, given the same steps."""

    def __init__(self, rows: int, steps: int, seed: int, betas: Betas = BETAS):
        self.rows, self.seed = rows, seed
        self.store = random_store(rows, seed)
        self.tensors = on_device(self.store)
        self.adam = Adam(schedule(steps, seed), betas)
        self.device_adam = tables_of(self.adam, "cpu")

    def step(self, step: int, drawn: np.ndarray, columns: int = 48, views: int = 1) -> tuple[Any, np.ndarray]:
        """Apply one step to a random subset of rows in random slots; returns both sides' cull entries."""
        rng = np.random.default_rng((self.seed, step))
        rows = np.flatnonzero(rng.random(self.rows) < 0.8).astype(np.int32)
        slots = rng.permutation(self.rows + 7)[: len(rows)].astype(np.int32)
        buffer = gradients_for(len(rows), self.rows + 7, drawn[rows], slots, step, columns)
        entries = np.zeros((len(rows), 4), np.float32)
        row_kernels.adam(
            self.store, self.adam.at(step, views), rows, buffer, slots, columns, self.store.statistics, entries
        )
        ours = torch.full((len(rows), 4), 7.0)
        device.adam_rows(
            self.tensors, self.device_adam.at(step, views), torch.tensor(rows), tensors_of(buffer), torch.tensor(slots),
            columns, self.tensors.statistics, ours,
        )  # fmt: skip
        return ours, entries

    def fetched(self, step: int, columns: int = 48) -> tuple[list[Any], list[np.ndarray]]:
        """Parameters caught up to `step - 1`, on both sides."""
        ids = np.arange(self.rows, dtype=np.int32)
        theirs = [np.zeros((self.rows, width), np.float32) for width in (12, 48)]
        row_kernels.fetch(self.store, self.adam.at(step), ids, *theirs, columns)
        ours = [torch.zeros(self.rows, width) for width in (12, 48)]
        device.fetch_rows(self.tensors, self.device_adam.at(step), torch.tensor(ids), *ours, columns)
        return ours, theirs

    def check(self) -> None:
        for name in STATE:
            assert close(getattr(self.tensors, name), getattr(self.store, name)), name
        assert torch.equal(self.tensors.stamp, torch.tensor(self.store.stamp))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 30).flatmap(
        lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=30)
    ),
    st.integers(0, 1000),
    st.sampled_from([1, 4]),
)
def test_steps_and_catch_up_equal_the_kernel_on_any_touch_pattern(
    pattern: list[list[bool]], seed: int, views: int
) -> None:
    twins = Twins(len(pattern[0]), len(pattern) + 1, seed, Betas.for_batch(views))
    for step, touched in enumerate(pattern, 1):
        ours, entries = twins.step(step, np.array(touched), views=views)
        assert np.array_equal(ours[:, 3].numpy() == -1, entries[:, 3] == -1)
        kept = entries[:, 3] >= 0
        assert not kept.any() or np.allclose(ours.numpy()[kept], entries[kept], rtol=2e-6)
    twins.check()
    for ours, theirs in zip(*twins.fetched(len(pattern) + 1), strict=True):
        assert close(ours, theirs)


def test_a_long_absence_is_caught_up_as_in_the_kernel() -> None:
    twins = Twins(50, 901, 3)
    for step in (1, 2, 3, 800):
        twins.step(step, np.random.default_rng(step).random(50) < 0.5)
    twins.check()
    for ours, theirs in zip(*twins.fetched(900), strict=True):
        assert close(ours, theirs)


def test_results_equal_dense_adam_in_float64() -> None:
    rows, steps = 40, 25
    adam, store = Adam(schedule(steps, 1), BETAS), random_store(rows, 1)
    tensors, device_adam = on_device(store), tables_of(adam, "cpu")
    p = np.concatenate([store.geometry[:, :11], store.colour], 1).astype(np.float64)
    start, m, v = p.copy(), np.zeros_like(p), np.zeros_like(p)
    ids, entries = torch.arange(rows), torch.zeros(rows, 4)
    for step in range(1, steps + 1):
        drawn = np.random.default_rng(step).random(rows) < 0.4
        buffer = gradients_for(rows, rows, drawn, np.arange(rows), step, 48)
        device.adam_rows(tensors, device_adam.at(step), ids, tensors_of(buffer), None, 48, None, entries)
        g = np.concatenate([buffer.grad_geometry[:, :11], buffer.grad_colour], 1).astype(np.float64) * drawn[:, None]
        p, m, v = dense_adam(p, m, v, g, adam.rates[COLUMN_GROUP, step], step, BETAS)
    geometry, colour = torch.zeros(rows, 12), torch.zeros(rows, 48)
    device.fetch_rows(tensors, device_adam.at(steps + 1), ids, geometry, colour, 48)
    exact = torch.cat([geometry[:, :11], colour], 1).numpy()
    assert (tensors.stamp < steps).any() and np.abs(p - start).max() > 0.01
    assert np.abs(exact - p).max() <= 2e-6 * (np.abs(p).max() + np.abs(p - start).max())


def test_a_row_that_no_view_drew_keeps_every_bit() -> None:
    twins = Twins(60, 12, 4)
    for step in range(1, 10):
        twins.step(step, np.random.default_rng(step).random(60) < 0.5)
    before = {name: getattr(twins.tensors, name).clone() for name in STATE}
    drawn = np.random.default_rng(99).random(60) < 0.5
    twins.step(10, drawn)
    for name in STATE:
        assert torch.equal(getattr(twins.tensors, name)[~drawn], before[name][~drawn]), name
        assert not torch.equal(getattr(twins.tensors, name), before[name]), name


def test_inactive_colour_columns_are_neither_read_nor_written() -> None:
    twins = Twins(30, 5, 5)
    before = twins.tensors.colour.clone()
    twins.step(1, np.ones(30, bool), columns=12)
    assert torch.equal(twins.tensors.colour[:, 12:], before[:, 12:]) and not twins.tensors.m_colour[:, 12:].any()
    assert torch.isfinite(twins.tensors.colour).all()
    ours, theirs = twins.fetched(2, columns=12)
    assert close(ours[1], theirs[1]) and not ours[1][:, 12:].any()


@pytest.mark.parametrize("index_type", [torch.int32, torch.int64])
def test_fetched_rows_go_to_their_slots_and_the_store_stays_as_it_is(index_type: Any) -> None:
    twins = Twins(80, 20, 6)
    for step in range(1, 8):
        twins.step(step, np.random.default_rng(step).random(80) < 0.5)
    before = {name: getattr(twins.tensors, name).clone() for name in STATE}
    rows = np.arange(3, 70, 2, dtype=np.int32)
    slots = np.random.default_rng(1).permutation(90)[: len(rows)].astype(np.int32)
    theirs = np.full((90, 12), 9, np.float32), np.full((90, 48), 9, np.float32)
    row_kernels.fetch(twins.store, twins.adam.at(15), rows, *theirs, 27, slots)
    ours = torch.full((90, 12), 9.0), torch.full((90, 48), 9.0)
    ids, at = torch.tensor(rows, dtype=index_type), torch.tensor(slots, dtype=index_type)
    device.fetch_rows(twins.tensors, twins.device_adam.at(15), ids, *ours, 27, at)
    assert all(close(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all(torch.equal(getattr(twins.tensors, name), before[name]) for name in STATE)
    plain = torch.zeros(len(rows), 12), torch.zeros(len(rows), 48)
    device.fetch_rows(twins.tensors, None, ids, *plain, 48)
    assert torch.equal(plain[0], before["geometry"][ids.long()])
    assert torch.equal(plain[1], before["colour"][ids.long()])


def test_results_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for chunk in (7, 1 << 15):
        monkeypatch.setattr("clm.device.workspace.DEVICE_ROWS", chunk)
        twins = Twins(100, 10, 7)
        entries = [twins.step(step, np.random.default_rng(step).random(100) < 0.5)[0] for step in range(1, 6)]
        results.append([*(getattr(twins.tensors, name) for name in STATE), *entries, *twins.fetched(9)[0]])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def large(rows: int) -> tuple[Any, Any, Any, Any]:
    """A device store of zeros with pending steps, its Adam step, its gradient rows and their slots."""
    store = SimpleNamespace(
        **{f"{kind}{name}": torch.zeros(rows, width) for kind in ("", "m_", "v_") for name, width in WIDTHS},
        stamp=torch.ones(rows, dtype=torch.int32), statistics=torch.zeros(rows, 4),
    )  # fmt: skip
    gradients = SimpleNamespace(grad_geometry=torch.ones(rows, 16), grad_colour=torch.ones(rows, 48))
    return store, tables_of(Adam(schedule(9), BETAS), "cpu").at(5), gradients, torch.arange(rows)


WIDTHS = (("geometry", 12), ("colour", 48))


def test_temporaries_stay_below_64_mib_whatever_the_number_of_rows() -> None:
    store, step, gradients, ids = large(100_000)
    out = torch.zeros(len(ids), 12), torch.zeros(len(ids), 48)
    entries = torch.zeros(len(ids), 4)
    for work in (
        lambda: device.fetch_rows(store, step, ids, *out, 48, ids),
        lambda: device.adam_rows(store, step, ids, gradients, ids, 48, store.statistics, entries),
    ):
        with rules.PeakBytes() as counted:
            work()
        assert 16 * 2**20 < counted.peak < 64 * 2**20 and counted.live == 0


@pytest.mark.parametrize("index_type", [torch.int32, torch.int64])
@pytest.mark.parametrize("rows", [1, 100, 1 << 15, 40_000])
def test_with_a_workspace_nothing_is_allocated_so_no_step_can_run_out_of_memory_half_way(
    rows: int, index_type: Any
) -> None:
    store, _, gradients, ids = large(rows)
    tables, work = tables_of(Adam(schedule(9), BETAS), "cpu"), Workspace(rows, "cpu")
    out, entries, ids = (torch.zeros(rows, 12), torch.zeros(rows, 48)), torch.zeros(rows, 4), ids.to(index_type)
    with rules.PeakBytes() as counted:
        step = tables.at(5, 1, True)
        device.fetch_rows(store, step, ids, *out, 48, ids, work)
        device.adam_rows(store, step, ids, gradients, ids, 48, store.statistics, entries, work)
    assert counted.peak == 0 and (store.stamp == 5).all()


def test_nothing_waits_for_the_device() -> None:
    store, _, gradients, ids = large(100)
    tables, out = tables_of(Adam(schedule(9), BETAS), "cpu"), (torch.zeros(100, 12), torch.zeros(100, 48))
    with rules.NoWaiting():
        step = tables.at(5)
        device.fetch_rows(store, step, ids, *out, 48, ids)
        device.adam_rows(store, step, ids, gradients, ids, 48, store.statistics, torch.zeros(100, 4))
    assert (store.stamp == 5).all()


def test_no_rows_are_no_work() -> None:
    store, step, gradients, ids = large(3)
    before = store.geometry.clone()
    device.fetch_rows(store, step, ids[:0], torch.zeros(0, 12), torch.zeros(0, 48), 48)
    device.adam_rows(store, step, ids[:0], gradients, ids[:0], 48, None, torch.zeros(0, 4))
    assert torch.equal(store.geometry, before)
