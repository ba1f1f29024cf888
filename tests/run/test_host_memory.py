"""`--host-memory` covers the whole process: what it leaves for rows, and that a run which grows stays below it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clm.errors import ResourceError
from clm.plan.budget import WRITING_BYTES
from clm.run import host_memory
from clm.run.host_memory import HostMemory
from clm.run.open import open_run
from clm.scene.open import open_scene
from tests.demo_run import DEMO, run_demo, small_config

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_run_that_would_grow_beyond_the_host_budget_stops_growing_and_stays_within_it() -> None:
    budget = 400
    script = [sys.executable, REPOSITORY / "scripts" / "bench_memory.py", "--json", "--rows", "100000"]
    options = ["--grow-to", "1000000", "--images", "60", "--host-memory", f"{budget}MiB"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(
        [*script, *options], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    seen = json.loads(result.stdout)
    assert 100_000 < seen["rows"] < 500_000, "it grew, and the budget ended that"
    assert seen["peak"]["rss_bytes"] <= budget << 20


def test_a_run_holds_no_points_once_there_are_rows(tmp_path: Path) -> None:
    config = small_config(iterations=2)
    for checkpoint in (None, tmp_path / "checkpoints" / "step_2"):
        scene = open_scene(DEMO, config)
        assert scene.point_bytes == 15 * len(scene.points) > 0
        with open_run(scene, config, tmp_path, lambda event: None, checkpoint, keep_points=False) as run:
            assert scene.point_bytes == run.scene.point_bytes == 0 and run.residence.rows > 1000
        if checkpoint is None:
            run_demo(tmp_path, iterations=2)


def test_the_host_budget_counts_what_the_process_already_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a scene grows, memory that is still available shrinks: the store must not be refused for what it takes itself."""
    monkeypatch.setattr(host_memory, "available_memory", lambda: 50)
    monkeypatch.setattr(host_memory, "resident_bytes", lambda: 150)
    assert HostMemory.find("auto", 10, 20, 5, print).total() == int(0.8 * 200)
    stated = HostMemory.find("100", 10, 20, 5, print)
    assert stated.total() == 100 and stated.beside_rows == 15 + WRITING_BYTES


def test_the_photo_cache_gives_way_to_a_stated_host_budget_and_says_so() -> None:
    said: list[str] = []
    assert HostMemory.find("110MiB", 10 << 20, 1 << 30, 1 << 30, said.append).photos == 25 << 20
    assert said == [
        "photos are cached in 25.0 MiB instead of 1.0 GiB, a quarter of what --host-memory 110MiB leaves beside the "
        "program: the others are decoded again when they are used"
    ]


def test_a_host_budget_below_the_program_itself_is_refused() -> None:
    with pytest.raises(ResourceError, match=r"is less than the 10.0 MiB .*") as caught:
        HostMemory.find("5MiB", 10 << 20, 1, 1, print)
    assert "`--host-memory 20MiB`" in caught.value.fix
