"""3DGS-MCMC out of core trains the model that it trains in memory, bit for bit: rows that move, relocate and are added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clm.plan import placement
from clm.plan.budget import SLOT_BYTES
from clm.run.events import Densified, Relocated
from tests.demo_run import (
    assert_same_model,
    checkpoint_arrays,
    of_type,
    pages_in_a_quarter_of_ram,
    read_json,
    run_demo,
)
from tests.run.test_device_memory import DeviceWithMemory

# Rows are so faint that noise moves most of them, and some die; rebuilds after images 20 and 40. The scene has 4,200 points.
OPTIONS: dict[str, Any] = {
    "strategy": "mcmc",
    "init_opacity": 0.006,
    "iterations": 48,
    "downscale": "8",
    "max_gaussians": 4300,
}


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("memory") / "run"
    events = run_demo(run, offload="none", threads=2, **OPTIONS)
    done = of_type(events, Relocated)
    assert len(done) == 2 and done[0].relocated > 0 and done[0].added == 100 and not of_type(events, Densified)
    assert read_json(run / "report.json")["num_gaussians"] == done[-1].num_gaussians
    return run


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of 128 rows, a quarter of which are in RAM where rows lie on disk."""
    pages_in_a_quarter_of_ram(monkeypatch, 128)


def rows_by_key(run: Path) -> dict[str, np.ndarray]:
    arrays = checkpoint_arrays(run)
    del arrays["fill"]
    order = np.argsort(arrays["keys"])
    return {name: array[order] for name, array in arrays.items()}


def assert_same_rows(one: Path, other: Path) -> None:
    for (name, mine), theirs in zip(rows_by_key(one).items(), rows_by_key(other).values(), strict=True):
        assert mine.tobytes() == theirs.tobytes(), name


def test_a_quarter_of_the_pages_in_ram_and_small_pieces_of_views_train_the_same_rows_also_when_stopped_and_resumed(
    in_memory: Path, tmp_path: Path, small_pages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "LEAST_SLOTS", 64)
    tight = {"offload": "disk", "threads": 1, "gpu_memory": str(500 * SLOT_BYTES), **OPTIONS}
    run_demo(tmp_path / "run", stop_at=28, **tight)
    run_demo(tmp_path / "run", resume=True, **tight)
    assert_same_rows(in_memory, tmp_path / "run")
    report = read_json(tmp_path / "run" / "report.json")
    assert report["disk"]["bytes_read"] > 0 and report["traffic"]["rows_loaded"] > report["traffic"]["rows_lower_bound"]


def test_a_device_with_memory_of_its_own_trains_the_same_model(
    in_memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clm.render import CpuRasterizer

    def open_device(choice: str, *, antialiased: bool, absgrad: bool, say: Any) -> Any:
        return DeviceWithMemory(), CpuRasterizer(antialiased, absgrad)

    monkeypatch.setattr("clm.run.open.open_device", open_device)
    run_demo(tmp_path / "run", offload="auto", threads=1, gpu_memory="8MiB", **OPTIONS)
    assert_same_model(in_memory, tmp_path / "run")
