"""Noise and regularisation of rows that miss steps are those of a run in memory: exactly where a row is drawn in every step, in
distribution or within a stated bound where it is not. And no visible set can miss a row that they moved."""

from __future__ import annotations

import numpy as np
import pytest

from clm import kernels
from clm.kernels import rows as row_kernels
from clm.optim.adam import Adam, Betas
from clm.optim.mcmc import Mcmc
from clm.store.identity import identity_floats
from clm.store.layout import GRAD_DRAWN, IDENTITY, LOG_SCALES, LOGIT_OPACITIES, MEANS, QUATS
from clm.store.store import Store
from clm.stream.parking import GradientBuffer
from tests.optim.slow_adam import dense_adam
from tests.optim.slow_mcmc import covariances, gate, noise, pull
from tests.optim.test_adam import COLUMN_GROUP, parameters

BOTH = pytest.mark.parametrize("moments", ["f32", "bf16"])
RATES = np.array([1.6e-4, 1e-3, 5e-3, 5e-2, 2.5e-3, 1.25e-4])  # of the configuration
NOISE, PULL, SEED = 5e5, 1e-8, 77  # a million rows
GEOMETRY = slice(0, 11)


def adam_of(steps: int, batch: int = 1, noise_lr: float = NOISE, weight: float = PULL) -> Adam:
    rates = RATES[:, None] * np.ones(steps + 2) * batch**0.5
    rates[0] *= 0.01 ** (np.arange(steps + 2) / steps)
    return Adam(rates, Betas.for_batch(batch), mcmc=Mcmc(noise_lr, weight, weight / 3, SEED))


def faint_store(rows: int, seed: int = 0, moments: str = "f32", opacity: float = -4.5) -> Store:
    """Rows of all shapes, a thousandth to a tenth of the scene in size, most of them faint enough to be moved by noise."""
    rng = np.random.default_rng(seed)
    geometry = rng.normal(size=(rows, 12)).astype(np.float32)
    geometry[:, LOG_SCALES] = rng.uniform(np.log(1e-3), np.log(1e-1), (rows, 3))
    geometry[:, LOGIT_OPACITIES] += opacity
    return Store.from_rows(geometry, rng.normal(size=(rows, 48)).astype(np.float32), moments=moments)


def gradients(drawn: np.ndarray, rng: np.random.Generator, size: float) -> GradientBuffer:
    buffer = GradientBuffer(len(drawn))
    buffer.grad_geometry[:] = 0
    buffer.grad_geometry[:, GEOMETRY] = rng.normal(size=(len(drawn), 11)) * size * drawn[:, None]
    buffer.grad_geometry[:, GRAD_DRAWN] = drawn
    buffer.grad_colour[:] = 0
    return buffer


def step(store: Store, adam: Adam, t: int, buffer: GradientBuffer, until: int | None = None) -> np.ndarray:
    """Apply step t to all rows; their new cull entries [N, 4] (radius -1: not drawn)."""
    ids, entries = np.arange(store.rows, dtype=np.int32), np.empty((store.rows, 4), np.float32)
    constants = adam.at(t, entries_until=until)
    row_kernels.adam(store, constants, ids, buffer, None, 3, store.statistics, entries)
    return entries


def test_a_row_that_is_drawn_in_every_step_has_the_rule_of_a_run_in_memory() -> None:
    """Dense Adam with the regularisation in its gradients, then noise scaled as the row was before the step; the first has none."""
    rows, steps = 300, 40
    adam, store, rng = adam_of(steps), faint_store(rows), np.random.default_rng(1)
    p = parameters(store, adam, 0).astype(np.float64)
    identities, m, v = store.geometry[:, IDENTITY].copy(), np.zeros_like(p), np.zeros_like(p)
    for t in range(1, steps + 1):
        buffer = gradients(np.ones(rows), rng, 1e-7)
        step(store, adam, t, buffer)
        g = np.concatenate([buffer.grad_geometry[:, GEOMETRY], buffer.grad_colour], 1) + pull(p, PULL, PULL / 3)
        before = p
        p, m, v = dense_adam(p, m, v, g, adam.rates[COLUMN_GROUP, t], t, adam.betas)
        if t > 1:
            p[:, MEANS] += noise(before, identities, t, SEED, (NOISE * adam.rates[0, t]) ** 2)
    assert np.abs(parameters(store, adam, steps) - p).max() < 1e-4
    quiet = adam_of(steps, noise_lr=0.0)
    assert np.abs(parameters(store, quiet, steps)[:, MEANS] - p[:, MEANS]).max() < 1e-4, "nothing is pending"


@pytest.mark.parametrize("missed", [1, 7, 60])
def test_the_noise_of_missed_steps_has_the_moments_of_as_many_single_steps(missed: int) -> None:
    """Rows of one shape: mean zero, gate^2 covariance^2 summed over the steps as covariance, and the fourth moments of normals."""
    rows, first = 20_000, 3
    adam, store = adam_of(100), faint_store(rows)
    store.geometry[:, :IDENTITY] = store.geometry[:1, :IDENTITY]
    store.geometry[:, LOGIT_OPACITIES], store.stamp[:] = -5.0, first
    start = store.geometry[0, GEOMETRY].astype(np.float64)[None]
    moved = parameters(store, adam, first + missed)[:, MEANS] - start[:, MEANS]
    covariance = covariances(start[:, LOG_SCALES], start[:, QUATS])[0]
    steps = np.arange(first + 1, first + missed + 1)
    scale = float(gate(start[:, LOGIT_OPACITIES])[0]) ** 2 * np.square(NOISE * adam.rates[0, steps]).sum()
    whole = covariance @ covariance * scale
    white = moved @ np.linalg.inv(np.linalg.cholesky(whole)).T
    assert np.abs(white.mean(axis=0)).max() < 4 * rows**-0.5
    assert np.abs(np.cov(white.T) - np.eye(3)).max() < 5 * (2 / rows) ** 0.5
    assert np.abs((white**4).mean(axis=0) - 3.0).max() < 5 * (96 / rows) ** 0.5 + 0.02
    assert np.linalg.norm(white, axis=1).max() <= 5.001
    row, others = white[:, 0], parameters(store, adam, first + missed + 1)[:, 0] - start[0, 0]
    assert abs(np.corrcoef(row, others)[0, 1]) < 5 * rows**-0.5, "another end is another draw"


def test_opaque_rows_and_rows_without_a_gradient_stay_where_they_are() -> None:
    store, adam = faint_store(500), adam_of(50)
    store.geometry[::3, LOGIT_OPACITIES] = -1.38  # 0.2
    store.stamp[:] = np.arange(500) % 2 * 5
    opaque = np.arange(500) % 3 == 0
    moved = (parameters(store, adam, 40)[:, MEANS] != store.geometry[:, MEANS]).any(axis=1)
    np.testing.assert_array_equal(moved, ~opaque & (store.stamp > 0))


@pytest.mark.parametrize(("batch", "gap"), [(1, 10), (4, 4), (4, 30), (16, 8)])
def test_the_regularisation_of_missed_steps_is_near_that_of_dense_adam(batch: int, gap: int) -> None:
    """Gradients about ten times the pull, rows drawn in one step of `gap`: what the pull did to opacities and scales over the run
    is right to 10% (root mean square over rows), and to a third of the largest."""
    rows, steps = 400, 200
    adam, rng = adam_of(steps, batch, noise_lr=0.0), np.random.default_rng(gap)
    plain = Adam(adam.rates, adam.betas)
    stores = faint_store(rows, opacity=0.0), faint_store(rows, opacity=0.0)
    p = parameters(stores[0], adam, 0).astype(np.float64)
    m, v, born = np.zeros_like(p), np.zeros_like(p), np.zeros((rows, 1))
    for t in range(1, steps + 1):
        drawn = (rng.random(rows) < 1 / gap) | (t == 1)
        buffer = gradients(drawn, rng, 3e-8)
        buffer.grad_geometry[:, LOG_SCALES] *= np.exp(p[:, LOG_SCALES])
        for store, optimizer in zip(stores, (adam, plain), strict=True):
            step(store, optimizer, t, buffer)
        born[drawn] = 1
        g = np.concatenate([buffer.grad_geometry[:, GEOMETRY], buffer.grad_colour], 1) + pull(p, PULL, PULL / 3) * born
        p, m, v = dense_adam(p, m, v, g, adam.rates[COLUMN_GROUP, t], t, adam.betas)
    ours, unpulled = parameters(stores[0], adam, steps), parameters(stores[1], plain, steps)
    for columns in (LOG_SCALES, slice(LOGIT_OPACITIES, LOGIT_OPACITIES + 1)):
        error, effect = (ours - p)[:, columns], (p - unpulled)[:, columns]
        assert np.sqrt(np.square(effect).mean()) > 0.01
        assert np.sqrt(np.square(error).mean()) < 0.1 * np.sqrt(np.square(effect).mean()), (batch, gap)
        assert np.abs(error).max() < np.abs(effect).max() / 3


@BOTH
def test_settling_changes_no_exact_parameter_and_loading_leaves_no_trace(moments: str) -> None:
    adam, store, rng = adam_of(60), faint_store(200, moments=moments), np.random.default_rng(0)
    for t in range(1, 31):
        step(store, adam, t, gradients(rng.random(200) < 0.3, rng, 1e-7))
    before = parameters(store, adam, 30)
    for t in (35, 40):
        parameters(store, adam, t)
    np.testing.assert_array_equal(parameters(store, adam, 30), before)
    row_kernels.settle(store, adam.at(31), np.arange(200, dtype=np.int32))
    np.testing.assert_array_equal(parameters(store, adam, 30), before)


@BOTH
def test_cull_entries_bound_rows_until_they_are_made_anew_and_through_the_step_that_updates_them(moments: str) -> None:
    """Also entries from before the batch that updates a row, which is what a plan made ahead reads, and those made anew."""
    rows, until = 1500, 90
    adam, store, rng = adam_of(100), faint_store(rows, moments=moments), np.random.default_rng(2)
    entries = np.empty((rows, 4), np.float32)
    everyone = np.arange(rows, dtype=np.int32)
    row_kernels.cull_entries(store, adam.at(1, entries_until=until), everyone, entries)

    def check(bounds: np.ndarray, t: int, growth: float = 1.0, extra: float = 0.0) -> None:
        exact = parameters(store, adam, t)
        distance = np.linalg.norm(exact[:, MEANS] - bounds[:, :3], axis=1)
        radius = 3.33 * np.exp(exact[:, LOG_SCALES].max(axis=1))
        assert (distance + radius <= (bounds[:, 3] * growth + extra) * (1 + 1e-5)).all()

    for t in range(1, until + 1):
        old, drawn = entries.copy(), rng.random(rows) < 0.05
        fresh = step(store, adam, t, gradients(drawn, rng, 1e-7), until)
        means, log_scales = adam.reach(t)
        check(old, t, np.exp(log_scales), means)
        np.copyto(entries, fresh, where=fresh[:, 3:] >= 0)
        if t % 10 == 0:
            check(entries, t)
            check(entries, until)
    again = np.empty_like(entries)
    row_kernels.cull_entries(store, adam.at(until + 1), everyone, again)
    check(again, 100)
    exact = parameters(store, adam, until)
    assert (
        np.linalg.norm(exact[:, MEANS] - store.geometry[:, MEANS], axis=1) > 3 * np.exp(exact[:, LOG_SCALES].max(1))
    ).any()


@BOTH
def test_noise_and_regularisation_are_bitwise_equal_for_any_thread_count_and_place(moments: str) -> None:
    results, rows, before = [], 3000, kernels.get_threads()
    try:
        for threads, order in ((1, np.arange(rows)), (2, np.random.default_rng(1).permutation(rows))):
            kernels.set_threads(threads)
            like, adam, rng = faint_store(rows), adam_of(20), np.random.default_rng(5)
            keys = like.keys[order]
            store = Store(rows, moments=moments)
            store.append(like.geometry[order], like.colour[order], keys)
            assert (store.geometry[:, IDENTITY] == identity_floats(keys)).all()
            for t in range(1, 16):
                buffer = gradients(rng.random(rows) < 0.4, rng, 1e-7)
                buffer.grad_geometry[:] = buffer.grad_geometry[order]
                step(store, adam, t, buffer)
            results.append(parameters(store, adam, 18)[np.argsort(keys)])
    finally:
        kernels.set_threads(before)
    np.testing.assert_array_equal(*results)
