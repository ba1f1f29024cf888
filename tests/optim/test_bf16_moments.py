"""Moments in bf16: rounded without bias, the same bits everywhere, and close to Adam with float32 moments."""

from __future__ import annotations

import numpy as np
import pytest

from clm import kernels
from clm.kernels import rows as row_kernels
from clm.kernels.rows import AdamStep
from clm.optim.adam import Adam, Betas
from clm.store.identity import first_keys, identity_floats
from clm.store.layout import GRAD_DRAWN, IDENTITY
from clm.store.store import Store
from clm.stream.parking import GradientBuffer
from tests.optim.slow_adam import bf16_values, round_to_bf16

MOMENTS = ("m_geometry", "m_colour", "v_geometry", "v_colour")
FIRST_COLUMN = {"geometry": 0, "colour": 12}


def new_store(rows: int, moments: str) -> Store:
    return Store.from_rows(np.zeros((rows, 12), np.float32), np.zeros((rows, 48), np.float32), moments=moments)


def gradient_buffer(rows: int, rng: np.random.Generator, scale: float = 1.0) -> GradientBuffer:
    buffer = GradientBuffer(rows)
    buffer.grad_geometry[:] = rng.normal(scale=scale, size=(rows, 16))
    buffer.grad_geometry[:, GRAD_DRAWN] = 1
    buffer.grad_colour[:] = rng.normal(scale=scale, size=(rows, 48))
    return buffer


def take_step(store: Store, step: AdamStep, buffer: GradientBuffer, columns: int = 48) -> None:
    ids, entries = np.arange(store.rows, dtype=np.int32), np.empty((store.rows, 4), np.float32)
    row_kernels.adam(store, step, ids, buffer, None, columns, None, entries)


def twin(name: str, values: np.ndarray, identities: np.ndarray, stamp: int) -> np.ndarray:
    """What the kernel should store for float32 moments `values` [N, C] of the array `name` at `stamp`."""
    return round_to_bf16(values, identities, stamp, FIRST_COLUMN[name[2:]], int(name[0] == "v"))


def values(store: Store, name: str) -> np.ndarray:
    array = getattr(store, name)
    return bf16_values(array) if store.moments == "bf16" else array


@pytest.mark.parametrize("columns", [3, 12, 27, 48])
def test_adam_and_settle_round_as_their_slow_twin_bit_for_bit(columns: int) -> None:
    adam, exact, rounded = (
        Adam(np.full((6, 40), 1e-3), Betas.for_batch(4)),
        new_store(700, "f32"),
        new_store(700, "bf16"),
    )
    buffer = gradient_buffer(700, np.random.default_rng(0))
    buffer.grad_colour[:, columns:] = np.nan  # never read
    for store in (exact, rounded):
        take_step(store, adam.at(7), buffer, columns)
    for name in MOMENTS:
        np.testing.assert_array_equal(
            getattr(rounded, name),
            twin(name, getattr(exact, name), exact.geometry[:, IDENTITY].copy(), 7),
            err_msg=name,
        )
    np.testing.assert_array_equal(rounded.colour, exact.colour)  # the step itself uses what is not rounded yet
    for name in MOMENTS:
        getattr(exact, name)[:] = values(rounded, name)
    for store in (exact, rounded):
        row_kernels.settle(store, adam.at(31), np.arange(700, dtype=np.int32))
    for name in MOMENTS:
        np.testing.assert_array_equal(
            getattr(rounded, name),
            twin(name, getattr(exact, name), exact.geometry[:, IDENTITY].copy(), 30),
            err_msg=name,
        )


@pytest.mark.parametrize("value", [1.003, -1.003, 3.1e-9, 1.0 + 2.0**-8, 1.2e-40, 0.0, 1.5])
@pytest.mark.parametrize("moment", [0, 1])
def test_the_mean_of_many_roundings_is_the_value(value: float, moment: int) -> None:
    rows = identity_floats(first_keys(0, 4000))
    kept = np.concatenate(
        [round_to_bf16(np.full((4000, 48), value, np.float32), rows, stamp, 12, moment) for stamp in (1, 2, 999)]
    )
    results, target = bf16_values(kept).astype(np.float64), float(np.float32(value))
    assert len(np.unique(kept)) == (1 if value in (0.0, 1.5) else 2)
    gap = np.ptp(results)
    assert np.abs(results - target).max() <= gap
    assert abs(results.mean() - target) <= 5 * 0.5 * gap / results.size**0.5  # five standard errors


def test_random_numbers_of_columns_moments_rows_and_steps_are_uncorrelated() -> None:
    rows, halfway = identity_floats(first_keys(0, 30_000)), np.full((30_000, 60), 1.0 + 2.0**-8, np.float32)

    def coins(stamp: int) -> np.ndarray:
        """[rows, 120] of -1 and 1: all columns of both moments."""
        return np.concatenate([round_to_bf16(halfway, rows, stamp, 0, m) & 1 for m in (0, 1)], axis=1) * 2.0 - 1.0

    now, later = coins(5), coins(6)
    limit = 6 / len(rows) ** 0.5
    assert np.abs(now.mean(axis=0)).max() < limit
    assert np.abs(now.T @ now / len(rows) - np.eye(120)).max() < limit
    for other in (later, np.roll(now, 1, axis=0), np.roll(now, 64, axis=0)):
        assert np.abs(now.T @ other / len(rows)).max() < limit


def test_exp_avg_sq_decays_where_rounding_to_nearest_would_stick() -> None:
    betas, rows, steps = Betas.for_batch(1), 1000, 700
    adam, store = Adam(np.full((6, steps + 2), 1e-3), betas), new_store(rows, "bf16")
    take_step(store, adam.at(1), gradient_buffer(rows, np.random.default_rng(1)))
    start = values(store, "v_colour").astype(np.float64).mean(axis=1)
    still = gradient_buffer(rows, np.random.default_rng(0), scale=0.0)
    for step in range(2, steps + 1):
        take_step(store, adam.at(step), still)
    share = values(store, "v_colour").mean(axis=1) / start
    expected = betas.beta2 ** (steps - 1)  # 0.497
    assert share.mean() == pytest.approx(expected, rel=0.005)
    assert share.std() < 0.2
    nearest = np.float32(1.0)
    for _ in range(steps):
        bits = (nearest * np.float32(betas.beta2)).reshape(1).view(np.uint32) + np.uint32(0x7FFF)
        nearest = bf16_values((bits >> np.uint32(16)).astype(np.uint16))[0]
    assert nearest > 0.99


@pytest.mark.parametrize("share", [1.0, 0.3, 0.02], ids=["every step", "a third of the steps", "every 50th step"])
@pytest.mark.parametrize("batch", [1, 4])
def test_rows_move_as_with_float32_moments(share: float, batch: int) -> None:
    """400 steps of noisy gradients with a drift, rows touched at random: the end points differ by a per cent of the way."""
    rows, steps = 400, 400
    adam = Adam(np.full((6, steps + 2), 1e-2) * 0.03 ** (np.arange(steps + 2) / steps), Betas.for_batch(batch))
    ends = {}
    for moments in ("f32", "bf16"):
        store, rng = new_store(rows, moments), np.random.default_rng(2)
        pull, scale = rng.normal(size=(rows, 64)), 10.0 ** rng.uniform(-9, 1, size=(rows, 1))
        for step in range(1, steps + 1):
            gradient = ((pull + 2 * rng.normal(size=(rows, 64))) * scale).astype(np.float32)
            buffer = GradientBuffer(rows)
            buffer.grad_geometry[:], buffer.grad_colour[:] = gradient[:, :16], gradient[:, 16:]
            buffer.grad_geometry[:, GRAD_DRAWN] = rng.random(rows) < share
            take_step(store, adam.at(step), buffer)
            if step == 200:
                row_kernels.settle(store, adam.at(step + 1), np.arange(rows, dtype=np.int32))
        geometry, colour = next(iter(store.exact_chunks(adam.at(steps + 1))))
        ends[moments] = np.concatenate([geometry[:, :11], colour], axis=1).astype(np.float64)
    way = np.sqrt((ends["f32"] ** 2).mean())
    difference = ends["bf16"] - ends["f32"]
    assert np.sqrt((difference**2).mean()) < 0.02 * way
    along = (ends["bf16"] * ends["f32"]).sum() / (ends["f32"] ** 2).sum()
    assert along == pytest.approx(1.0, abs=0.003)  # neither faster nor slower


@pytest.mark.parametrize("name", kernels.variants()[1:])
def test_every_build_writes_the_same_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def train() -> Store:
        adam, store, rng = (
            Adam(np.full((6, 20), 1e-2), Betas.for_batch(2)),
            new_store(300, "bf16"),
            np.random.default_rng(3),
        )
        for step in range(1, 12):
            buffer = gradient_buffer(300, rng)
            buffer.grad_geometry[:, GRAD_DRAWN] = rng.random(300) < 0.4
            take_step(store, adam.at(step), buffer, 27)
        row_kernels.settle(store, adam.at(14), np.arange(300, dtype=np.int32))
        return store

    best = train()
    monkeypatch.setenv("CLM_KERNELS", name)
    library = kernels.load.__wrapped__()
    monkeypatch.setattr(row_kernels, "load", lambda: library)
    other = train()
    for array in best.names:
        np.testing.assert_array_equal(getattr(other, array), getattr(best, array), err_msg=array)
