"""Bad input gets one sentence and an exit code, no traceback, and leaves nothing behind. One test per row of the catalogue."""

from __future__ import annotations

import dataclasses
import errno
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from PIL import Image

from clm.errors import ClmError, OutOfDeviceMemory, ResourceError
from clm.image.losses import Loss
from clm.plan.budget import SLOT_BYTES
from clm.render import cpu
from clm.run import residence, segments
from clm.run.checkpoint import checkpoints
from clm.run.events import Message
from clm.stream.view import render_view
from tests.conftest import scene_path
from tests.demo_run import (
    DEMO,
    FIXED,
    assert_same_model,
    checkpoint_arrays,
    clm,
    clm_process,
    contents,
    files_under,
    of_type,
    read_json,
    run_demo,
    write_survey_scene,
)

SHORT = ("--iterations", "8", "--downscale", "8")


def refused(tmp_path: Path, *arguments: str | Path, code: int = 2, start: Callable = clm) -> str:
    """Run `clm`, check that it refuses in one line and writes or changes nothing, and return that line."""
    before = contents(tmp_path)
    result = start(*arguments)
    assert result.returncode == code, (result.returncode, result.stderr)
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert result.stdout == ""
    assert contents(tmp_path) == before, "something was left behind"
    return lines[0]


def copy_demo(folder: Path) -> Path:
    shutil.copytree(DEMO, folder)
    return folder


def train(tmp_path: Path, data: Path, *options: str | Path, code: int = 2) -> str:
    return refused(tmp_path, "train", data, "-o", tmp_path / "run", *SHORT, "-q", *options, code=code)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("small") / "run"
    assert clm("train", DEMO, "-o", run, *SHORT, "-q").returncode == 0
    return run


def test_data_missing(tmp_path: Path) -> None:
    assert "nowhere" in train(tmp_path, tmp_path / "nowhere")


def test_no_colmap_model_lists_the_places_looked(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "transforms.json").write_text("{}")
    said = train(tmp_path, tmp_path / "data")
    assert "sparse/0" in said and "transforms.json" in said


def test_a_truncated_model_names_the_file(tmp_path: Path) -> None:
    data = scene_path("models/broken_truncated")
    assert "images.bin" in refused(tmp_path, "train", data, "-o", tmp_path / "run", start=clm_process)


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
def test_any_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    data = copy_demo(tmp_path / "data")
    path = data / "sparse" / "0" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert name in train(tmp_path, data)


def test_a_few_missing_images_are_collected_and_left_out(tmp_path: Path) -> None:
    data = copy_demo(tmp_path / "data")
    gone = sorted((data / "images").iterdir())[:3]
    for path in gone:
        path.unlink()
    result = clm("train", data, "-o", tmp_path / "run", *SHORT)
    assert result.returncode == 0
    assert f"3 of 40 images are missing (first: {gone[0].name})" in result.stderr


def test_most_images_missing_is_an_error_that_suggests_images(tmp_path: Path) -> None:
    data = copy_demo(tmp_path / "data")
    for path in sorted((data / "images").iterdir())[:30]:
        path.unlink()
    said = train(tmp_path, data)
    assert "30 of 40" in said and "--images" in said


def test_another_size_on_disk_is_scaled_and_another_aspect_refused(tmp_path: Path) -> None:
    data = copy_demo(tmp_path / "data")
    paths = sorted((data / "images").iterdir())
    Image.open(paths[3]).resize((160, 120)).save(paths[3])
    assert clm("train", data, "-o", tmp_path / "fine", *SHORT).returncode == 0
    Image.open(paths[5]).resize((100, 200)).save(paths[5])
    assert paths[5].name in train(tmp_path, data)


def test_a_corrupt_image_is_skipped_with_its_name_and_strict_fails(tmp_path: Path) -> None:
    data = copy_demo(tmp_path / "data")
    path = sorted((data / "images").iterdir())[1]
    path.write_bytes(path.read_bytes()[:40])
    result = clm("train", data, "-o", tmp_path / "skipped", *SHORT)
    assert result.returncode == 0 and path.name in result.stderr
    assert path.name in train(tmp_path, data, "--strict")


def test_an_image_cut_off_in_its_pixels_is_skipped_while_training(tmp_path: Path) -> None:
    data = copy_demo(tmp_path / "data")
    path = sorted((data / "images").iterdir())[1]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    result = clm("train", data, "-o", tmp_path / "skipped", "--iterations", "80", "--downscale", "8")
    assert result.returncode == 0, result.stderr
    assert path.name in result.stderr and "Skipping it" in result.stderr


def test_no_points_start_from_random_gaussians_with_a_warning(tmp_path: Path) -> None:
    data = copy_demo(tmp_path / "data")
    model = pycolmap.Reconstruction(str(data / "sparse" / "0"))
    for point in list(model.points3D):
        model.delete_point3D(point)
    model.write(str(data / "sparse" / "0"))
    result = clm("train", data, "-o", tmp_path / "run", *SHORT, "--max-gaussians", "500")
    assert result.returncode == 0 and "random" in result.stderr


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--offload", "none", "--gpu-memory", "3MiB"), ("--offload host", "--max-gaussians")),
        (("--offload", "none", "--gpu-memory", "1MiB"), ("--gpu-memory", "--max-gaussians")),
        (("--offload", "host", "--gpu-memory", "64KiB"), ("--gpu-memory", "Even in pieces")),
        (("--offload", "host", "--host-memory", "1MiB"), ("--host-memory",)),
    ],
)
def test_an_impossible_budget_says_what_is_needed_and_the_ways_out(
    tmp_path: Path, options: tuple[str, ...], names: tuple[str, ...]
) -> None:
    said = train(tmp_path, DEMO, *options, code=3)
    assert "iB" in said and all(name in said for name in names)


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run_demo(run, stop_at=20)
    before = {p: p.read_bytes() for p in checkpoints(run / "checkpoints")[-1].iterdir()}

    def full(_path: Path, _array: np.ndarray, *_rest: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(segments, "write_array", full)
    with pytest.raises(ResourceError, match=r"disk is full.*needs .*iB"):
        run_demo(run, resume=True, stop_at=40)
    assert {p: p.read_bytes() for p in checkpoints(run / "checkpoints")[-1].iterdir()} == before
    assert len(checkpoints(run / "checkpoints")) == 1
    assert not list((run / "checkpoints").glob(".*"))


def test_resume_without_a_checkpoint(tmp_path: Path) -> None:
    assert "No checkpoint in" in train(tmp_path, DEMO, "--resume")


def test_an_existing_run_is_never_overwritten(tmp_path: Path) -> None:
    assert clm("train", DEMO, "-o", tmp_path / "first", *SHORT).returncode == 0
    said = refused(tmp_path, "train", DEMO, "-o", tmp_path / "first", *SHORT)
    assert "first already holds a run" in said and "--resume" in said


@pytest.mark.parametrize(
    "name", ["input.ply", "metrics.json", "point_cloud/iteration_16/point_cloud.ply", "config.yaml"]
)
def test_a_new_run_refuses_a_folder_that_holds_somebody_elses_file_of_its_own_names(name: str, tmp_path: Path) -> None:
    mine = tmp_path / "first" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert f"first already holds {name}" in refused(tmp_path, "train", DEMO, "-o", tmp_path / "first", *SHORT)
    assert mine.read_text() == "mine" and files_under(tmp_path / "first") == {name}


def test_what_a_run_left_that_was_killed_before_its_first_checkpoint_may_be_written_again(tmp_path: Path) -> None:
    run = tmp_path / "first"
    assert clm("train", DEMO, "-o", run, *SHORT).returncode == 0
    for result in (run / "checkpoints", run / "point_cloud"):
        shutil.rmtree(result)
    for result in (run / "metrics.json", run / "report.json", run / "report.html"):
        result.unlink()
    assert clm("train", DEMO, "-o", run, *SHORT).returncode == 0


def test_resuming_with_other_options_lists_what_changed_and_refuses_other_shapes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_demo(run, stop_at=20)
    with pytest.raises(ClmError, match="sh_degree 3"):
        run_demo(run, resume=True, sh_degree=1)
    events = run_demo(run, resume=True, sh0_lr=1e-3, threads=1)
    warned = [event.text for event in of_type(events, Message) if event.level == "warning"]
    assert warned == ["resumed with another sh0_lr: 0.0025 -> 0.001"]


def test_resuming_with_another_scene_says_so(tmp_path: Path) -> None:
    data = copy_demo(tmp_path / "other")
    assert clm("train", DEMO, "-o", tmp_path / "run", *SHORT, "-q").returncode == 0
    again = ("-o", tmp_path / "run", "--iterations", "12", "--downscale", "8", "--resume")
    assert f"warning: resumed with another DATA: {DEMO} -> {data}\n" in clm("train", data, *again).stderr
    assert "DATA" not in clm("train", data, *again).stderr


def test_a_loss_that_is_not_finite_stops_saves_and_names_step_and_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = cpu.l1_ssim, []

    def broken(rgb: np.ndarray, *rest: object) -> Loss:
        calls.append(None)
        loss = real(rgb, *rest)
        return Loss(math.nan, loss.l1, loss.ssim, np.full_like(loss.v_rgb, np.nan)) if len(calls) == 30 else loss

    monkeypatch.setattr(cpu, "l1_ssim", broken)
    with pytest.raises(ClmError, match=r"loss is nan at step 8, image .*\.jpg"):
        run_demo(tmp_path / "run")
    monkeypatch.undo()
    run_demo(tmp_path / "run", resume=True)  # and what was saved is sound
    assert np.isfinite(checkpoint_arrays(tmp_path / "run")["geometry"]).all()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--gpu-memory", "lots"), "lots"),
        (("--max-gaussians", "many"), "many"),
        (("--device", "cuda"), "CUDA"),
        (("--device", "tpu"), "tpu"),
        (("--downscale", "3"), "downscale"),
        (("--preset", "nosuch"), "nosuch"),
        (("--init-ply", "/dev/null"), "/dev/null"),
        (("--masks", "nosuchfolder"), "nosuchfolder"),
        (("--images", "nosuchfolder"), "nosuchfolder"),
        (("--model", "7"), "7"),
    ],
)
def test_bad_values_are_named(tmp_path: Path, options: tuple[str, str], part: str) -> None:
    assert part in train(tmp_path, DEMO, *options)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert str(tmp_path / "file") in refused(tmp_path, "train", DEMO, "-o", tmp_path / "file" / "run", *SHORT, "-q")


def test_an_unknown_key_of_a_configuration_is_answered_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("iteratoins: 100\n")
    said = train(tmp_path, DEMO, "--config", tmp_path / "mine.yaml")
    assert "`iteratoins`" in said and "mine.yaml" in said and "`iterations`" in said
    assert "nosuch.yaml" in train(tmp_path, DEMO, "--config", tmp_path / "nosuch.yaml")


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    assert "seed" in train(tmp_path, DEMO, "--seed", "-5")


def test_a_full_disk_ends_the_command_with_the_exit_code_of_resources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    result = clm("train", DEMO, "-o", tmp_path / "run", *SHORT, "-q")
    assert result.returncode == 3
    assert result.stderr.startswith("error: The disk is full: ") and len(result.stderr.splitlines()) == 1
    assert not files_under(tmp_path), "half a file was left behind"


def test_a_loss_that_is_not_finite_is_bad_input_for_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cpu.l1_ssim
    monkeypatch.setattr(cpu, "l1_ssim", lambda *inputs: dataclasses.replace(real(*inputs), total=math.inf))
    result = clm("train", DEMO, "-o", tmp_path / "run", *SHORT, "-q")
    assert result.returncode == 2
    assert re.fullmatch(r"error: The loss is inf at step 1, image view_\d\d\.jpg\. .*--resume\.\n", result.stderr)
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step_4"]


def test_a_view_that_outgrows_the_arena_while_training_goes_in_pieces(tmp_path: Path) -> None:
    data = write_survey_scene(tmp_path / "data")
    options = {"data": data, "downscale": "1", "iterations": 160, "means_lr": 1e-2, "offload": "host", **FIXED}
    run_demo(tmp_path / "run", **options, gpu_memory=str(850 * SLOT_BYTES))
    run_demo(tmp_path / "whole", **options)
    assert_same_model(tmp_path / "run", tmp_path / "whole")


def test_a_view_that_outgrew_the_budget_at_the_end_costs_its_figure_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[int] = []

    def render(*inputs: Any, **options: Any) -> Any:
        rendered.append(1)
        if len(rendered) == 2:
            raise OutOfDeviceMemory("This view needs 1,001 Gaussians.")
        return render_view(*inputs, **options)

    monkeypatch.setattr(residence, "render_view", render)
    result = clm("train", DEMO, "-o", tmp_path / "run", *SHORT)
    assert result.returncode == 0, result.stderr
    assert "warning: view_08.jpg is not evaluated: This view needs 1,001 Gaussians" in result.stderr
    measured = read_json(tmp_path / "run" / "metrics.json")["test"]["per_view"]
    assert len(measured) == 4 and "view_08.jpg" not in measured
    assert {"report.json", "point_cloud/iteration_8/point_cloud.ply"} <= files_under(tmp_path / "run")


@pytest.mark.parametrize(
    ("entries", "part"),
    [
        ("not json", "is not JSON"),
        ("{}", "not a list"),
        ('[{"width": 10}]', "Camera 0"),
        ('["front"]', "Camera 0"),
        ("[]", "no camera"),
        ("\x00\x93", "is not JSON"),
    ],
)
def test_a_camera_file_that_is_none_is_refused(tmp_path: Path, small_run: Path, entries: str, part: str) -> None:
    (tmp_path / "cameras.json").write_bytes(entries.encode("latin-1"))
    said = refused(tmp_path, "render", small_run, "--cameras", tmp_path / "cameras.json", "-o", tmp_path / "out")
    assert part in said


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--background", "pink"), "pink"),
        (("--gpu-memory", "lots"), "lots"),
    ],
)
def test_a_bad_value_for_rendering_is_named(
    tmp_path: Path, small_run: Path, options: tuple[str, ...], part: str
) -> None:
    assert part in refused(tmp_path, "render", small_run, "-o", tmp_path / "out", *options)


def test_a_model_without_a_run_asks_for_cameras(tmp_path: Path, small_run: Path) -> None:
    model = shutil.copy(small_run / "input.ply", tmp_path / "model.ply")
    assert "--cameras FILE.json" in refused(tmp_path, "render", model, "-o", tmp_path / "out")


def test_a_damaged_configuration_of_a_run_is_named(tmp_path: Path, small_run: Path) -> None:
    run = shutil.copytree(small_run, tmp_path / "damaged")
    assert "--split" in refused(tmp_path, "eval", run, "--split", "all")
    (run / "config.yaml").write_text("a: [")
    assert "config.yaml is damaged" in refused(tmp_path, "eval", run)
    assert "config.yaml is damaged" in refused(tmp_path, "render", run, "-o", tmp_path / "out")


def test_other_commands_refuse_in_one_sentence(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.ply"
    garbage.write_bytes(b"ply\nnothing good\n")
    for arguments in (
        ("render", garbage, "-o", tmp_path / "out"),
        ("render", tmp_path / "nothing.ply", "-o", tmp_path / "out"),
        ("export", garbage, tmp_path / "out.ply"),
        ("export", garbage, tmp_path / "out.spz"),
        ("eval", tmp_path),
        ("info", tmp_path / "nothing"),
        ("info", garbage),
        ("render", DEMO, "-o", tmp_path / "out"),
        ("export", DEMO, tmp_path / "out.ply"),
    ):
        refused(tmp_path, *arguments)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.ply").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--offload", "none", "--gpu-memory", "3MiB"),
        ("--offload", "none", "--gpu-memory", "1MiB"),
        ("--offload", "host", "--gpu-memory", "64KiB"),
        ("--offload", "host", "--host-memory", "1MiB"),
        ("--threads", "32768"),
        ("--batch-size", "1000000"),
        ("--max-gaussians", "0"),
    ],
    ids=" ".join,
)
def test_every_way_out_that_a_refusal_names_works_when_it_is_typed(tmp_path: Path, options: tuple[str, ...]) -> None:
    """One flag at a time, beside what was typed; the later of two equal flags counts."""
    result = clm("train", DEMO, "-o", tmp_path / "run", *SHORT, "-q", *options)
    assert result.returncode in (2, 3), result.stderr
    ways = re.findall(r"`(--[a-z-]+) (\S+)`", result.stderr)
    assert ways
    for k, way in enumerate(ways):
        tried = clm("train", DEMO, "-o", tmp_path / str(k), *SHORT, "-q", *options, *way)
        assert tried.returncode == 0, (way, tried.stderr)
