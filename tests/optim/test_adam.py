"""Deferred Adam equals dense Adam, whatever rows are touched when, under any learning-rate schedule."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clm import kernels
from clm.kernels import rows as row_kernels
from clm.optim.adam import Adam, Betas
from clm.optim.schedules import Leg
from clm.settings import load_config
from clm.store.layout import GRAD_DRAWN, GROUPS, LOG_SCALES, MEANS
from clm.store.store import Store
from clm.stream.parking import GradientBuffer
from tests.optim.slow_adam import closed_form_drift, dense_adam

BETAS = Betas.for_batch(1)
BOTH = pytest.mark.parametrize("moments", ["f32", "bf16"])
COLUMN_GROUP = np.array([0] * 3 + [1] * 4 + [2] * 3 + [3] + [4] * 3 + [5] * 45)  # group of each of the 59 columns


def schedule(steps: int, seed: int = 0) -> np.ndarray:
    """Six different schedules: exponential decay, constants, and one that jumps about."""
    t = np.arange(steps + 2)
    rates = np.array([1e-2, 1e-3, 5e-3, 5e-2, 2.5e-3, 1e-4])[:, None] * np.ones(steps + 2)
    rates[0] *= 0.01 ** (t / steps)
    rates[3] *= np.random.default_rng(seed).uniform(0.1, 2.0, steps + 2)
    return rates


def random_store(rows: int, seed: int = 0, moments: str = "f32") -> Store:
    rng = np.random.default_rng(seed)
    geometry = rng.normal(size=(rows, 12)).astype(np.float32)
    geometry[:, 11] = 0
    return Store.from_rows(geometry, rng.normal(size=(rows, 48)).astype(np.float32), moments=moments)


def parameters(store: Store, adam: Adam, done: int) -> np.ndarray:
    """Exact parameters after step `done`: [N, 59] (the pad column dropped)."""
    chunks = list(store.exact_chunks(adam.at(done + 1)))
    geometry, colour = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    return np.concatenate([geometry[:, :11], colour], axis=1)


def run_both(
    touched: list[list[bool]], seed: int, views: int = 1, moments: str = "f32"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(deferred kernel, dense float64 reference, start) parameters [N, 59] after all steps; touched[step][row]."""
    steps, rows = len(touched), len(touched[0])
    adam, store = Adam(schedule(steps, seed), BETAS), random_store(rows, seed, moments)
    rng = np.random.default_rng(seed + 1)
    start = parameters(store, adam, 0)
    p = start.astype(np.float64)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for step in range(1, steps + 1):
        mask = np.array(touched[step - 1])
        gradient = rng.normal(size=(rows, 59)) * 10.0 ** rng.uniform(-7, -2, size=(rows, 1)) * mask[:, None]
        buffer = GradientBuffer(rows)
        buffer.grad_geometry[:] = 0
        buffer.grad_geometry[:, :11] = gradient[:, :11] * views
        buffer.grad_geometry[:, GRAD_DRAWN] = mask
        buffer.grad_colour[:] = gradient[:, 11:] * views
        ids, entries = np.arange(rows, dtype=np.int32), np.empty((rows, 4), np.float32)
        row_kernels.adam(store, adam.at(step, views), ids, buffer, None, 48, store.statistics, entries)
        rates = adam.rates[COLUMN_GROUP, step]
        p, m, v = dense_adam(p, m, v, gradient.astype(np.float32).astype(np.float64), rates, step, BETAS)
    return parameters(store, adam, steps), p, start


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40).flatmap(
        lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=60)
    ),
    st.integers(0, 1000),
)
def test_deferred_adam_equals_dense_adam_on_any_touch_pattern(pattern: list[list[bool]], seed: int) -> None:
    transposed = [list(step) for step in zip(*pattern, strict=True)]  # lists of steps, each over rows
    deferred, dense, start = run_both(transposed, seed)
    moved = np.abs(dense - start).max() + 1e-6
    assert np.abs(deferred - dense).max() <= 2e-6 * (np.abs(dense).max() + moved)


def test_a_long_absence_is_caught_up_exactly() -> None:
    touched = [[True, True]] * 5 + [[True, False]] * 900 + [[True, True]]
    deferred, dense, _ = run_both(touched, seed=3)
    assert np.abs(deferred - dense).max() < 2e-5  # 900 float32 roundings of the row that was always touched
    assert np.abs(deferred[1] - dense[1]).max() < 2e-6


def test_gradients_are_averaged_over_the_views_of_a_batch() -> None:
    deferred, dense, _ = run_both([[True] * 3] * 4, seed=5, views=4)
    assert np.abs(deferred - dense).max() < 2e-6


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.integers(0, 400), st.integers(0, 100))
def test_the_tabulated_drift_equals_the_series_summed_term_by_term_in_float64(
    stamp: int, missed: int, seed: int
) -> None:
    steps = stamp + missed + 1
    adam = Adam(schedule(steps, seed), BETAS)
    rng = np.random.default_rng(seed)
    m, v = rng.normal(size=8), rng.uniform(0.1, 1.0, size=8)
    ratio = BETAS.beta1 / BETAS.beta2**0.5
    for group in range(len(GROUPS)):
        table = adam._drift[group]
        telescoped = m / np.sqrt(v) * (table[stamp] - ratio**missed * table[stamp + missed])
        summed = closed_form_drift(m, v, adam.rates[group], stamp, stamp + missed, BETAS)
        np.testing.assert_allclose(telescoped, summed, rtol=1e-8, atol=1e-14)


def test_the_closed_form_equals_dense_zero_gradient_steps_in_float64() -> None:
    adam = Adam(schedule(300), BETAS)
    rng = np.random.default_rng(0)
    p = np.zeros(16)
    m, v = rng.normal(size=16) * 1e-3, rng.uniform(1e-8, 1e-6, size=16)
    drift = closed_form_drift(m, v, adam.rates[0], 40, 290, BETAS)
    for step in range(41, 291):
        p, m, v = dense_adam(p, m, v, np.zeros(16), adam.rates[0, step], step, BETAS)
    np.testing.assert_allclose(-drift, p, rtol=1e-8)


def test_a_row_that_no_view_drew_stays_untouched() -> None:
    adam, store = Adam(schedule(5), BETAS), random_store(3)
    before = store.geometry.copy(), store.colour.copy()
    buffer = GradientBuffer(3)
    buffer.grad_geometry[:], buffer.grad_colour[:] = 0, 0
    entries = np.empty((3, 4), np.float32)
    row_kernels.adam(store, adam.at(1), np.arange(3, dtype=np.int32), buffer, None, 48, None, entries)
    assert (entries[:, 3] == -1).all() and (store.stamp == 0).all()
    np.testing.assert_array_equal(store.geometry, before[0])
    np.testing.assert_array_equal(store.colour, before[1])


@BOTH
def test_settling_changes_no_exact_parameter(moments: str) -> None:
    touched = np.random.default_rng(0).random((30, 50)) < 0.3
    adam, store = Adam(schedule(31), BETAS), random_store(50, moments=moments)
    for step in range(1, 31):
        buffer = GradientBuffer(50)
        buffer.grad_geometry[:] = np.random.default_rng(step).normal(size=(50, 16)) * 1e-3
        buffer.grad_geometry[:, GRAD_DRAWN] = touched[step - 1]
        buffer.grad_colour[:] = 1e-3
        ids, entries = np.arange(50, dtype=np.int32), np.empty((50, 4), np.float32)
        row_kernels.adam(store, adam.at(step), ids, buffer, None, 48, store.statistics, entries)
    before = parameters(store, adam, 30)
    row_kernels.settle(store, adam.at(31), np.arange(50, dtype=np.int32))
    assert (store.stamp[touched.any(axis=0)] == 30).all()
    np.testing.assert_array_equal(parameters(store, adam, 30), before)


@BOTH
def test_cull_entries_bound_the_row_over_all_pending_steps(moments: str) -> None:
    adam, store = Adam(schedule(400), BETAS), random_store(64, moments=moments)
    buffer, ids = GradientBuffer(64), np.arange(64, dtype=np.int32)
    entries = np.empty((64, 4), np.float32)
    for step in range(1, 4):
        buffer.grad_geometry[:] = np.random.default_rng(step).normal(size=(64, 16)) * 1e-2
        buffer.grad_geometry[:, GRAD_DRAWN] = 1
        buffer.grad_colour[:] = 0
        row_kernels.adam(store, adam.at(step), ids, buffer, None, 3, None, entries)
    for later in (3, 4, 10, 100, 399):
        exact = parameters(store, adam, later)
        distance = np.linalg.norm(exact[:, MEANS] - entries[:, :3], axis=1)
        radius = 3.33 * np.exp(exact[:, LOG_SCALES].max(axis=1))
        assert (distance + radius <= entries[:, 3] * (1 + 1e-5)).all()


@BOTH
def test_one_step_never_moves_a_row_beyond_the_reach_that_plans_made_ahead_allow_for(moments: str) -> None:
    adam, store = Adam(schedule(50), BETAS), random_store(200, moments=moments)
    buffer, ids = GradientBuffer(200), np.arange(200, dtype=np.int32)
    entries = np.empty((200, 4), np.float32)
    row_kernels.cull_entries(store, adam.at(1), np.arange(200, dtype=np.int32), entries)
    for step in range(1, 40):
        rng = np.random.default_rng(step)
        buffer.grad_geometry[:] = rng.normal(size=(200, 16)) * 10.0 ** rng.uniform(-8, 2, size=(200, 1))
        buffer.grad_geometry[:, GRAD_DRAWN] = 1
        buffer.grad_colour[:] = 0
        old = entries.copy()
        row_kernels.adam(store, adam.at(step), ids, buffer, None, 3, None, entries)
        means, log_scales = adam.reach(step)
        exact = parameters(store, adam, step)
        distance = np.linalg.norm(exact[:, MEANS] - old[:, :3], axis=1)
        radius = 3.33 * np.exp(exact[:, LOG_SCALES].max(axis=1))
        assert (distance + radius <= (old[:, 3] * np.exp(log_scales) + means) * (1 + 1e-5)).all()


@BOTH
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_adam_is_bitwise_equal_for_any_thread_count(threads: int, moments: str) -> None:
    touched = (np.random.default_rng(1).random((12, 3000)) < 0.5).tolist()
    before = kernels.get_threads()
    try:
        kernels.set_threads(1)
        one = run_both(touched, seed=9, moments=moments)[0]
        kernels.set_threads(threads)
        many = run_both(touched, seed=9, moments=moments)[0]
    finally:
        kernels.set_threads(before)
    np.testing.assert_array_equal(one, many)


@BOTH
def test_deferred_adam_equals_dense_adam_across_a_change_of_batch_size_and_rates(moments: str) -> None:
    """Rows are settled at the end of a leg and go on under the next one's tables; dense Adam just changes its betas."""
    config = load_config({"iterations": 61, "batch_size": 4})
    first = Leg.of(config, 30.0)
    then = Leg.of(dataclasses.replace(config, iterations=140, batch_size=9), 30.0)
    second = first.followed_by(then, 61, first.steps)
    rows, rng = 40, np.random.default_rng(2)
    store = random_store(rows, moments=moments)
    p = np.concatenate([store.geometry[:, :11], store.colour], axis=1).astype(np.float64)
    m, v, step, decayed = np.zeros_like(p), np.zeros_like(p), 0, 0
    for leg in (first, second):
        adam, betas = leg.adam(), Betas.for_batch(leg.batch_size)
        for _ in range(leg.steps):
            step, decayed, mask = step + 1, decayed + leg.batch_size, rng.random(rows) < 0.3
            gradient = (rng.normal(size=(rows, 59)) * 1e-3 * mask[:, None]).astype(np.float32)
            buffer = GradientBuffer(rows)
            buffer.grad_geometry[:] = 0
            buffer.grad_geometry[:, :11], buffer.grad_colour[:] = gradient[:, :11], gradient[:, 11:]
            buffer.grad_geometry[:, GRAD_DRAWN] = mask
            ids, entries = np.arange(rows, dtype=np.int32), np.empty((rows, 4), np.float32)
            row_kernels.adam(store, adam.at(leg.index(step)), ids, buffer, None, 48, store.statistics, entries)
            rates = adam.rates[COLUMN_GROUP, leg.index(step)]
            age = decayed / leg.batch_size  # in steps of the present betas
            p, m, v = dense_adam(p, m, v, gradient.astype(np.float64), rates, age, betas)
        row_kernels.settle(store, adam.at(leg.index(step) + 1), np.arange(rows, dtype=np.int32))
        store.stamp[store.stamp > 0] = second.settled
    exact = np.concatenate([store.geometry[:, :11], store.colour], axis=1)
    assert np.abs(exact - p).max() < (2e-5 if moments == "f32" else 2e-2)
