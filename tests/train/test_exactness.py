"""Placement, arena size, threads, interruptions: none of them changes a bit of the model."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from clm.plan.budget import SLOT_BYTES
from clm.train.checkpoint import checkpoints
from clm.train.events import BatchDone, Densified
from tests.conftest import scene_path
from tests.demo_run import (
    DEMO,
    assert_same_model,
    clm,
    command,
    environment,
    images_done,
    of_type,
    read_json,
    run_demo,
    write_survey_scene,
)


@pytest.fixture(scope="module")
def resident(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled scene trained with everything resident, two threads."""
    run = tmp_path_factory.mktemp("resident") / "run"
    events = run_demo(run, offload="none", threads=2)
    assert sum(e.cloned + e.split for e in of_type(events, Densified)) > 0
    return run


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("gpu_memory", ["8GiB", "6MiB"])
def test_host_offload_trains_the_same_model_as_everything_resident(
    resident: Path, tmp_path: Path, threads: int, gpu_memory: str
) -> None:
    events = run_demo(tmp_path / "run", offload="host", threads=threads, gpu_memory=gpu_memory)
    assert not any(e.refused for e in of_type(events, Densified)), "this arena is too small to grow as the other does"
    assert_same_model(resident, tmp_path / "run")


def test_an_arena_that_must_evict_trains_the_same_model(tmp_path: Path) -> None:
    data = write_survey_scene(tmp_path / "survey")
    options = {
        "data": data,
        "downscale": "1",
        "batch_size": 12,
        "iterations": 48,
        "densify_until": 0,
        "sh_interval": 12,
    }
    run_demo(tmp_path / "all", offload="none", **options)
    tight_runs = []
    for slots in (2600, 1500, 1000):
        run = tmp_path / f"tight_{slots}"
        run_demo(run, offload="host", gpu_memory=str(slots * SLOT_BYTES), **options)
        assert_same_model(tmp_path / "all", run)
        tight_runs.append(read_json(run / "report.json")["traffic"])
    assert tight_runs[-1]["rows_loaded"] > tight_runs[-1]["rows_lower_bound"], "the smallest arena never evicted"
    assert tight_runs[-1]["rows_loaded"] <= tight_runs[-1]["rows_loaded_consecutive_reuse"]


@pytest.mark.parametrize("stop_at", [20, 36, 60])
def test_a_resumed_run_equals_an_uninterrupted_one_also_under_another_budget(
    resident: Path, tmp_path: Path, stop_at: int
) -> None:
    run = tmp_path / "run"
    first = run_demo(run, stop_at=stop_at, offload="host", gpu_memory="6MiB")
    assert images_done(first)[-1] == stop_at
    second = run_demo(run, resume=True, offload="none", threads=1)
    assert images_done(second)[0] > stop_at
    assert_same_model(resident, run)


def test_many_interruptions_change_nothing(resident: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_demo(run, stop_at=4)
    for image in range(12, 80, 12):
        run_demo(run, resume=True, stop_at=image)
    run_demo(run, resume=True)
    assert_same_model(resident, run)


def test_kill_minus_nine_at_any_moment_loses_at_most_the_work_since_the_last_checkpoint(tmp_path: Path) -> None:
    options = ["--iterations", "160", "--batch-size", "4", "--downscale", "4", "--save-every", "8", "-q"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert clm("train", DEMO, "-o", whole, *options).returncode == 0
    rng = random.Random(0)
    reached = 0
    for _ in range(20):
        resume = ["--resume"] if checkpoints(killed / "checkpoints") else []
        process = subprocess.Popen(
            command("train", DEMO, "-o", killed, *options, *resume), stderr=subprocess.PIPE, env=environment()
        )
        deadline = time.monotonic() + 30
        while not (killed / "events.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.3, 1.3))
        process.kill()
        process.wait()
        saved = [int(path.name[5:]) for path in checkpoints(killed / "checkpoints")]
        assert max(saved, default=0) >= reached, "a complete checkpoint was lost"
        reached = max(saved, default=0)
    result = clm("train", DEMO, "-o", killed, *options, "--resume")
    assert result.returncode == 0, result.stderr
    assert_same_model(whole, killed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_batch_saves_and_says_how_to_resume(tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        command("train", DEMO, "-o", run, "--iterations", "100000", "--downscale", "4"),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if (run / "events.jsonl").exists() and "batch_done" in (run / "events.jsonl").read_text():
            break
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "--resume" in said and "Traceback" not in said
    assert len(checkpoints(run / "checkpoints")) == 1


def test_real_photos_none_and_host_give_the_same_bits(tmp_path: Path) -> None:
    data = scene_path("sceaux")
    options = {"data": data, "iterations": 200, "densify_from": 50, "densify_every": 50, "densify_until": 150}
    events = run_demo(tmp_path / "none", offload="none", **options)
    assert of_type(events, Densified) and len(of_type(events, BatchDone)) == 50
    run_demo(tmp_path / "host", offload="host", gpu_memory="4MiB", threads=1, **options)
    assert_same_model(tmp_path / "none", tmp_path / "host")
