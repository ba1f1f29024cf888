"""Interrupted in whatever way, a run goes on from its checkpoint and ends with the same bits as an uninterrupted one."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clm.commands.train import run_training
from clm.errors import ClmError
from clm.plan.budget import SLOT_BYTES, resident_row_bytes
from clm.run.checkpoint import checkpoints, latest_checkpoint
from clm.run.events import BatchDone, Densified, Message
from tests.demo_run import (
    DEMO,
    FIXED,
    as_format_1,
    assert_same_model,
    checkpoint_arrays,
    clm,
    command,
    environment,
    images_done,
    of_type,
    read_events,
    read_json,
    run_demo,
    saved_rows,
    write_survey_scene,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled scene trained without interruption; rows are added after images 20 and 40."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert len(of_type(run_demo(run, offload="none"), Densified)) == 2
    return run


@pytest.mark.parametrize("stop_at", [16, 20, 36, 60], ids=lambda n: f"image {n}")
def test_a_resumed_run_equals_an_uninterrupted_one_under_another_placement(
    whole: Path, tmp_path: Path, stop_at: int
) -> None:
    first = run_demo(tmp_path / "run", stop_at=stop_at, offload="host", gpu_memory="6MiB", threads=2)
    assert images_done(first)[-1] == stop_at
    assert not (tmp_path / "run" / "report.json").exists(), "an unfinished run has no receipt"
    second = run_demo(tmp_path / "run", resume=True, offload="none", threads=1)
    assert images_done(second)[0] == stop_at + 4
    assert_same_model(whole, tmp_path / "run")


def test_a_run_interrupted_after_every_few_batches_equals_an_uninterrupted_one(whole: Path, tmp_path: Path) -> None:
    run_demo(tmp_path / "run", stop_at=4)
    for image in range(12, 80, 12):
        run_demo(tmp_path / "run", resume=True, stop_at=image, offload="host")
    run_demo(tmp_path / "run", resume=True)
    assert_same_model(whole, tmp_path / "run")


def test_a_run_with_bf16_moments_resumes_with_the_same_bits_under_another_placement(tmp_path: Path) -> None:
    run_demo(tmp_path / "whole", offload="none", moments="bf16")
    run_demo(tmp_path / "run", stop_at=36, offload="host", gpu_memory="6MiB", threads=2, moments="bf16")
    saved = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert saved_rows(saved)["v_colour"].dtype == np.uint16 and read_json(saved / "state.json")["moments"] == "bf16"
    run_demo(tmp_path / "run", resume=True, offload="none", threads=1, moments="bf16")
    assert_same_model(tmp_path / "whole", tmp_path / "run")
    report = read_json(tmp_path / "run" / "report.json")
    rows = report["num_gaussians"]
    assert report["in_core_bytes"] == rows * (resident_row_bytes("bf16") + SLOT_BYTES)


@pytest.mark.parametrize(("before", "now"), [("f32", "bf16"), ("bf16", "f32")])
def test_moments_of_another_type_are_refused_with_the_flag_that_goes_on(tmp_path: Path, before: str, now: str) -> None:
    run_demo(tmp_path / "run", stop_at=4, moments=before)
    with pytest.raises(ClmError, match=f"moments {before}, this call says {now}") as caught:
        run_demo(tmp_path / "run", resume=True, moments=now)
    assert f"`--moments {before}`" in caught.value.fix


def test_a_checkpoint_that_names_no_type_of_moments_holds_float32(tmp_path: Path) -> None:
    """And rows without keys are numbered."""
    run_demo(tmp_path / "run", stop_at=40)
    path = latest_checkpoint(tmp_path / "run" / "checkpoints")
    as_format_1(path)
    state = read_json(path / "state.json")
    del state["moments"], state["config"]["moments"]
    (path / "state.json").write_text(json.dumps(state))
    run_demo(tmp_path / "run", resume=True, densify_until=0)
    arrays = checkpoint_arrays(tmp_path / "run")
    assert arrays["m_colour"].dtype == np.float32
    np.testing.assert_array_equal(np.sort(arrays["keys"]), np.arange(len(arrays["geometry"])))


def test_a_run_that_evicts_resumes_in_another_arena_with_the_same_model(tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": write_survey_scene(tmp_path / "survey"), "downscale": "1", "batch_size": 12}
    options |= {"iterations": 72, "sh_interval": 12, "offload": "host", **FIXED}
    run_demo(tmp_path / "whole", **options)
    run_demo(tmp_path / "run", stop_at=12, gpu_memory=str(1000 * SLOT_BYTES), **options)
    run_demo(tmp_path / "run", stop_at=36, resume=True, **options)
    run_demo(tmp_path / "run", resume=True, gpu_memory=str(940 * SLOT_BYTES), **options)
    assert_same_model(tmp_path / "whole", tmp_path / "run")
    ours, theirs = (read_json(tmp_path / run / "report.json") for run in ("run", "whole"))
    assert ours["traffic"]["rows_loaded"] > ours["traffic"]["rows_lower_bound"], "nothing was evicted"
    for name in ("rows_loaded_no_reuse", "rows_lower_bound"):  # plans made ahead carry a margin, exact ones do not
        assert ours["traffic"][name] == pytest.approx(theirs["traffic"][name], rel=0.01)


def test_the_receipt_of_a_resumed_run_covers_all_its_parts(whole: Path, tmp_path: Path) -> None:
    run_demo(tmp_path / "run", stop_at=40)
    run_demo(tmp_path / "run", resume=True)
    ours, theirs = read_json(tmp_path / "run" / "report.json"), read_json(whole / "report.json")
    assert ours["iterations"] == theirs["iterations"] == 80
    assert ours["num_gaussians"] == theirs["num_gaussians"]
    assert ours["traffic"]["rows_loaded"] == pytest.approx(theirs["traffic"]["rows_loaded"], rel=0.01)
    assert ours["peak"]["device_bytes"] == theirs["peak"]["device_bytes"]


def test_a_finished_run_resumes_to_the_same_model_and_metrics(whole: Path, tmp_path: Path) -> None:
    run_demo(tmp_path / "run")
    before = read_json(tmp_path / "run" / "metrics.json")
    assert images_done(run_demo(tmp_path / "run", resume=True)) == []
    assert read_json(tmp_path / "run" / "metrics.json") == before
    assert_same_model(whole, tmp_path / "run")


def test_a_run_that_ended_short_goes_on_with_more_iterations_and_says_what_changed(tmp_path: Path) -> None:
    run_demo(tmp_path / "run", iterations=40)
    events = run_demo(tmp_path / "run", resume=True, iterations=60, means_lr=3e-4)
    warnings = " | ".join(e.text for e in of_type(events, Message) if e.level == "warning")
    assert "means_lr: 0.00016 -> 0.0003" in warnings and "iterations: 40 -> 60" in warnings
    assert images_done(events)[-1] == 60


def test_resuming_beyond_the_asked_number_of_images_is_refused(tmp_path: Path) -> None:
    run_demo(tmp_path / "run", stop_at=40)
    with pytest.raises(ClmError, match="already at image 40, beyond --iterations 20"):
        run_demo(tmp_path / "run", resume=True, iterations=20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_ends_the_batch_saves_and_says_how_to_resume(tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    arguments = command("train", DEMO, "-o", run, "--iterations", "200000", "--downscale", "8")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()) as p:
        wait_for(lambda: (run / "events.jsonl").exists() and "batch_done" in (run / "events.jsonl").read_text(), p)
        p.send_signal(number)
        shown, said = p.communicate(timeout=30)
    assert p.returncode == 130
    assert f"Go on with the same command and --resume (-o {run})" in said and "Traceback" not in said
    assert shown == ""
    (saved,) = checkpoints(run / "checkpoints")
    assert saved.name == f"step_{[e['iteration'] for e in read_events(run) if e['type'] == 'batch_done'][-1]}"
    assert read_events(run)[-2] == {**read_events(run)[-2], "type": "finished", "interrupted": True}


def wait_for(condition: Any, process: subprocess.Popen[str], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def _train_quietly(run: Path | None, resume: bool) -> None:
    if run is None:
        return
    flags = {"iterations": 96, "batch_size": 4, "downscale": "8", "save_every": 4, "densify_from": 10}
    flags |= {"densify_every": 20, "densify_until": 60, "grow_screen_gradient": 4e-4, "offload": "host"}
    run_training(DEMO, run, flags, None, None, resume=resume, as_json=False, quiet=True)


def test_kill_9_at_any_moment_loses_at_most_the_work_since_the_last_checkpoint(tmp_path: Path) -> None:
    """Twenty kills of one run, early ones while it starts, later ones at any moment; then it is left to finish."""
    context = multiprocessing.get_context("forkserver")  # the server imports once, so that a start takes milliseconds
    context.set_forkserver_preload([__name__, "clm.run.loop", "clm.scene", "pycolmap"])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for run in (None, whole):  # the first waits for the server's imports
        started = time.monotonic()
        process = context.Process(target=_train_quietly, args=(run, False))
        process.start()
        process.join(60)
        assert process.exitcode == 0
    seconds = time.monotonic() - started

    rng, reached, saved_between = random.Random(3), 0, 0
    for kill in range(20):
        process = context.Process(target=_train_quietly, args=(killed, reached > 0))
        process.start()
        deadline = time.monotonic() + 30
        while kill % 3 == 0 and process.is_alive() and time.monotonic() < deadline:
            found = checkpoints(killed / "checkpoints")
            if found and int(found[-1].name[5:]) > reached:
                break  # on a busy machine a run may need long to get this far
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, seconds / (20 if kill % 2 else 5)))
        finished = not process.is_alive()
        process.kill()
        process.join(30)
        assert not finished or process.exitcode == 0, "a run could not go on"
        found = checkpoints(killed / "checkpoints")
        for folder in found[-1:]:  # what counts as a checkpoint is complete, whatever was being written
            assert len(saved_rows(folder)["keys"]) == read_json(folder / "state.json")["rows"]
        now = int(found[-1].name[5:]) if found else 0
        assert now >= reached, "a complete checkpoint was lost"
        saved_between, reached = saved_between + (now > reached), now
    assert saved_between >= 3, "the kills came too early to prove anything"
    last = context.Process(target=_train_quietly, args=(killed, True))
    last.start()
    last.join(60)
    assert last.exitcode == 0
    assert_same_model(whole, killed)
    assert not list(killed.rglob("*.tmp")) and not list((killed / "checkpoints").glob(".*"))


def test_an_unfinished_folder_is_never_taken_for_a_checkpoint(whole: Path, tmp_path: Path) -> None:
    run_demo(tmp_path / "run", stop_at=40)
    folder = tmp_path / "run" / "checkpoints"
    # the first as format 1 named it; the second: pages without the state that is written last
    for name, file in ((".step_60.tmp", "geometry.npy"), ("step_60", "pages_60.bin")):
        (folder / name).mkdir()
        (folder / name / file).write_bytes(b"half of it")
    events = run_demo(tmp_path / "run", resume=True)
    assert of_type(events, BatchDone)[0].iteration == 44
    assert_same_model(whole, tmp_path / "run")
    assert not (folder / ".step_60.tmp").exists()


def test_a_damaged_checkpoint_is_named_and_not_overwritten(tmp_path: Path) -> None:
    run_demo(tmp_path / "run", stop_at=4)
    damaged = tmp_path / "run" / "checkpoints" / "step_4" / "index.npy"
    damaged.write_bytes(b"\x93NUMPY half of it")
    done = clm("train", DEMO, "-o", tmp_path / "run", "--downscale", "4", "--resume", "-q")
    assert done.returncode == 2
    assert done.stderr.startswith("error: Checkpoint ") and "step_4 cannot be read" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert damaged.read_bytes() == b"\x93NUMPY half of it"
