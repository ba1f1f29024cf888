"""Measuring leaves the store alone and gives a machine that describes the rows and views it was measured with."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from clm.forecast.measure import Sizes, _repeated, measure_this
from clm.forecast.measure_disk import disk_rates
from clm.formats.start import initial_store
from clm.plan.visibility import visible_rows
from clm.scene.open import open_scene
from clm.store.store import Store
from tests.demo_run import DEMO, small_config


@pytest.fixture(scope="module")
def store() -> Store:
    config = small_config()
    store = initial_store(open_scene(DEMO, config, require_images=False), config, lambda _text: None, scratch=Path())
    store.refresh(None)
    return store


def cameras() -> list:
    scene = open_scene(DEMO, small_config(), require_images=False)
    return [scene.views[k].camera for k in scene.train]


def test_measuring_gives_rates_and_leaves_the_store_alone(store: Store) -> None:
    before = {name: getattr(store, name).copy() for name in (*store.names, "entries")}
    machine = measure_this(store, cameras(), Sizes(1, 2, 3), gaussians=store.rows, batch_size=4, sh_degree=3)
    for name, array in before.items():
        assert np.array_equal(array, getattr(store, name)), name
    assert machine.on_cpu and (machine.device_memory, machine.host_memory, machine.disk) == (1, 2, 3)
    assert 1 <= machine.compute_cores <= machine.cores == os.cpu_count()
    for rate in ("host_gather_gb_s", "host_adam_gb_s", "bus_in_gb_s", "bus_out_gb_s", "device_gb_s"):
        assert 0.05 < getattr(machine, rate) < 2000, f"{rate} is not a rate of memory"
    small, large = (machine.turn_seconds(1000, 2, pixels) for pixels in (1e4, 1e6))
    assert 0 < small < large < 10


def test_a_disk_is_measured_where_a_scratch_folder_would_be_and_nothing_stays(tmp_path: Path) -> None:
    rates = disk_rates(tmp_path / "not" / "yet", pages=40)
    assert all(0.001 < rates[name] < 100 for name in ("disk_read_gb_s", "disk_write_gb_s", "disk_core_gb_s"))
    assert list(tmp_path.iterdir()) == []
    assert set(disk_rates(tmp_path, pages=1 << 40).values()) == {0.0}, "no room for the probe"


def test_repeated_rows_are_seen_in_the_same_share(store: Store) -> None:
    denser = _repeated(store, 3)
    assert denser.rows == 3 * store.rows
    for camera in cameras()[::8]:
        seen = visible_rows(store.entries, store.bounds, camera)
        expected = (3 * seen[:, None] + np.arange(3)).reshape(-1)
        assert np.array_equal(visible_rows(denser.entries, denser.bounds, camera), expected)
