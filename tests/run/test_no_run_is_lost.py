"""Whatever happens to a run from outside, it goes on or stops with its state saved, and says so in a sentence."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from clm.errors import ClmError
from clm.run import saver
from clm.run.checkpoint import checkpoints
from clm.run.events import CheckpointSaved, Message
from clm.run.lock import locked
from tests.demo_run import (
    DEMO,
    assert_same_model,
    clm,
    command,
    environment,
    files_under,
    of_type,
    read_events,
    read_json,
    run_demo,
)
from tests.run.test_resume import wait_for

SHORT = ("--iterations", "48", "--downscale", "8")
LONG = ("--iterations", "200000", "--downscale", "8")


def start(run: Path, *options: str, **how: Any) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    words = command("train", DEMO, "-o", run, *options)
    return subprocess.Popen(words, text=True, env=environment(), **{**pipes, **how})


def training(run: Path) -> bool:
    return (run / "events.jsonl").exists() and "batch_done" in (run / "events.jsonl").read_text()


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    with start(tmp_path / "run", *SHORT, "--json") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        process.stderr.close()
        assert process.wait(60) == 0
    assert (tmp_path / "run" / "report.json").exists()


def test_a_closed_terminal_stops_the_run_with_its_state_saved_and_nohup_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with start(run, *LONG) as process:
        wait_for(lambda: training(run), process)
        process.send_signal(signal.SIGHUP)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and checkpoints(run / "checkpoints")
    assert "stopping after this batch, then saving" in said and "--resume" in said

    run, ignore = tmp_path / "nohup", lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with start(run, *SHORT, preexec_fn=ignore) as process:
        wait_for(lambda: training(run) or process.poll() == 0, process)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_two_processes_never_train_one_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with locked(run):
        done = clm("train", DEMO, "-o", run, *SHORT, "-q")
    assert done.returncode == 2 and f"run is being trained by process {os.getpid()}" in done.stderr
    assert not run.exists(), "something was left behind"
    assert clm("train", DEMO, "-o", run, *SHORT, "-q").returncode == 0
    assert ".lock" not in files_under(run)


def test_a_lock_is_given_back_by_kill_9(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with start(run, *LONG, "-q") as process:
        wait_for(lambda: training(run), process)
        with pytest.raises(ClmError, match=f"process {process.pid}"), locked(run):
            pass
        process.kill()
        process.communicate(timeout=30)
    with locked(run):
        pass


def test_a_run_that_was_never_told_to_save_saves_by_time_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_demo(tmp_path / "never", save_every=0)
    assert len(of_type(run_demo(tmp_path / "once"), CheckpointSaved)) == 1, "ten minutes have not passed"
    monkeypatch.setattr(saver, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(saver, "_SAVE_SHARE", 1e9)
    assert len(of_type(run_demo(tmp_path / "often"), CheckpointSaved)) == 20
    assert_same_model(tmp_path / "never", tmp_path / "often")


def test_seconds_before_a_kill_are_in_the_checkpoint(tmp_path: Path) -> None:
    run_demo(tmp_path / "run", stop_at=40, save_every=20)
    saved = [read_json(p / "state.json")["totals"]["seconds"] for p in checkpoints(tmp_path / "run" / "checkpoints")]
    assert 0 < saved[0] < saved[1]
    shutil.rmtree(checkpoints(tmp_path / "run" / "checkpoints")[1])  # as if killed before
    run_demo(tmp_path / "run", resume=True)
    assert read_json(tmp_path / "run" / "report.json")["seconds"] > saved[0]


def test_photos_that_vanish_stop_the_run_with_its_state_saved(tmp_path: Path) -> None:
    data = shutil.copytree(DEMO, tmp_path / "data")
    events: list[Any] = []
    options: dict[str, Any] = {"image_cache": "1B", "iterations": 400, "densify_until": 0}
    run_demo(tmp_path / "run", data=data, stop_at=8, **options)
    from clm.run.checkpoint import latest_checkpoint
    from clm.run.loop import train
    from clm.scene.open import open_scene
    from tests.demo_run import small_config

    config = small_config(**options)
    scene, newest = open_scene(data, config), latest_checkpoint(tmp_path / "run" / "checkpoints")
    shutil.rmtree(data / "images")
    with pytest.raises(ClmError, match=r"of 35 training photos can no longer be read.*--resume") as caught:
        train(scene, config, tmp_path / "run", events.append, resume=newest)
    assert caught.value.exit_code == 2
    assert sum("Skipping it" in event.text for event in of_type(events, Message)) == 3
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name in ("step_12", "step_16")


@pytest.mark.parametrize("limit", [100, 5_000, 20_000, 60_000, 200_000, 400_000])
def test_a_limit_on_the_size_of_files_ends_a_run_in_one_sentence_that_names_the_file(
    tmp_path: Path, limit: int
) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    run = tmp_path / "run"
    with start(run, *SHORT, "-q", preexec_fn=limited) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 3 and len(said.splitlines()) == 1, said
    assert said.startswith("error: The limit on the size of a file") and str(run) in said
    assert not list(run.rglob("*.tmp")) and not list(run.rglob("*.lock"))
    if (run / "events.jsonl").exists():
        read_events(run)  # every line is whole
