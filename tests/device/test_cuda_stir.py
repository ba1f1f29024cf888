"""Noise and regularisation in torch are those of the C++ kernel, draw by draw; nothing waits, nothing is allocated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clm.kernels import rows as row_kernels
from clm.optim.adam import Adam, Betas
from clm.store.store import Store
from tests.optim.test_mcmc import adam_of, faint_store

torch = pytest.importorskip("torch")
device = pytest.importorskip("clm.device.cuda_adam")
tables_of = pytest.importorskip("clm.device.cuda_tables").DeviceAdam
Workspace = pytest.importorskip("clm.device.workspace").Workspace
rules = pytest.importorskip("tests.device_rules")
neighbours = pytest.importorskip("tests.device.test_cuda_adam")


class Twins(neighbours.Twins):  # type: ignore[misc, name-defined]
    """One store of faint rows on both sides, given the same steps of 3DGS-MCMC."""

    def __init__(self, rows: int, steps: int, seed: int, batch: int):
        self.rows, self.seed = rows, seed
        self.store: Store = faint_store(rows, seed)
        self.tensors = neighbours.on_device(self.store)
        self.adam: Adam = adam_of(steps, batch)
        self.device_adam = tables_of(self.adam, "cpu")


@pytest.mark.parametrize("batch", [1, 4])
def test_steps_and_catch_up_equal_the_kernel(batch: int) -> None:
    """Also rows that no view drew keep every bit, and the reach of noise is in the entries."""
    twins = Twins(40, 90, 3, batch)
    for step in (1, 2, 3, 4, 9, 30, 80):
        drawn = np.random.default_rng(step).random(40) < 0.6
        before = {name: getattr(twins.tensors, name).clone() for name in neighbours.STATE}
        ours, entries = twins.step(step, drawn, columns=3, views=batch)
        for name in neighbours.STATE:
            assert torch.equal(getattr(twins.tensors, name)[~drawn], before[name][~drawn]), name
        kept = entries[:, 3] >= 0
        assert np.array_equal(ours[:, 3].numpy() == -1, ~kept)
        np.testing.assert_allclose(ours.numpy()[kept], entries[kept], rtol=2e-4, atol=2e-4)
        for name in neighbours.STATE:
            assert neighbours.close(getattr(twins.tensors, name), getattr(twins.store, name), 1e-4), (step, name)
        for mine, theirs in zip(*twins.fetched(step + 6, columns=3), strict=True):
            assert neighbours.close(mine, theirs, 1e-4), step
    moved = np.abs(twins.fetched(86)[1][0][:, :3] - twins.store.geometry[:, :3]).max()
    assert moved > 0.01, "noise was drawn"


def test_with_a_workspace_nothing_is_allocated_and_nothing_waits() -> None:
    rows = 300
    tables, work = tables_of(adam_of(9), "cpu"), Workspace(rows, "cpu")
    store, _, gradients, ids = neighbours.large(rows)
    store.geometry[:, 10] = -5.0
    out, entries = (torch.zeros(rows, 12), torch.zeros(rows, 48)), torch.zeros(rows, 4)
    with rules.NoWaiting(), rules.PeakBytes() as counted:
        step = tables.at(5)
        device.fetch_rows(store, step, ids, *out, 48, ids, work)
        device.adam_rows(store, step, ids, gradients, ids, 48, store.statistics, entries, work)
    assert counted.peak == 0 and (store.stamp == 5).all() and torch.isfinite(store.geometry).all()


def test_a_plain_step_is_not_stirred() -> None:
    plain: Any = tables_of(Adam(np.full((6, 9), 1e-3), Betas.for_batch(1)), "cpu").at(3)
    assert plain.stir is None and row_kernels.AdamStep().variance is None
