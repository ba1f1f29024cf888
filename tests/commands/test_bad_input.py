"""Bad input gets one sentence and an exit code, no traceback, and leaves nothing behind. One test per row of the catalogue."""

from __future__ import annotations

import errno
import math
import shutil
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from clm.errors import ClmError, ResourceError
from clm.render.losses import Loss
from clm.train import checkpoint as checkpoint_module
from clm.train import loop
from clm.train.checkpoint import checkpoints
from clm.train.events import Message
from tests.conftest import scene_path
from tests.demo_run import DEMO, clm, of_type, run_demo

SHORT = ("--iterations", "8", "--downscale", "8")


def refused(tmp_path: Path, *arguments: str | Path, code: int = 2) -> str:
    """Run `clm`, check that it refuses in one line and writes no run directory, and return that line."""
    result = clm(*arguments)
    assert result.returncode == code, (result.returncode, result.stderr)
    lines = result.stderr.strip().splitlines()
    assert lines and lines[-1].startswith("error: ") and "Traceback" not in result.stderr, result.stderr
    assert not (tmp_path / "run").exists(), "a run directory was left behind"
    return lines[-1]


def copy_demo(folder: Path) -> Path:
    shutil.copytree(DEMO, folder)
    return folder


def train(tmp_path: Path, data: Path, *options: str | Path, code: int = 2) -> str:
    return refused(tmp_path, "train", data, "-o", tmp_path / "run", *SHORT, *options, code=code)


def test_data_missing(tmp_path: Path) -> None:
    assert "nowhere" in train(tmp_path, tmp_path / "nowhere")


def test_no_colmap_model_lists_the_places_looked(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "transforms.json").write_text("{}")
    said = train(tmp_path, tmp_path / "data")
    assert "sparse/0" in said and "transforms.json" in said


def test_a_truncated_model_names_the_file(tmp_path: Path) -> None:
    assert "images.bin" in train(tmp_path, scene_path("models/broken_truncated"))


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
        (("--offload", "none", "--gpu-memory", "1MiB"), ("--offload host", "--max-gaussians")),
        (("--offload", "host", "--gpu-memory", "64KiB"), ("--gpu-memory", "--max-gaussians")),
        (("--offload", "host", "--host-memory", "1MiB"), ("--host-memory", "--max-gaussians")),
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

    def full(_path: Path, _array: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "_write_array", full)
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
    assert "--resume" in said


def test_resuming_with_other_options_lists_what_changed_and_refuses_other_shapes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_demo(run, stop_at=20)
    with pytest.raises(ClmError, match="sh_degree 3"):
        run_demo(run, resume=True, sh_degree=1)
    events = run_demo(run, resume=True, sh0_lr=1e-3, threads=1)
    warned = [event.text for event in of_type(events, Message) if event.level == "warning"]
    assert warned == ["resumed with another sh0_lr: 0.0025 -> 0.001"]


def test_a_loss_that_is_not_finite_stops_saves_and_names_step_and_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = loop.l1_ssim, []

    def broken(rgb: np.ndarray, *rest: object) -> Loss:
        calls.append(None)
        loss = real(rgb, *rest)
        return Loss(math.nan, loss.l1, loss.ssim, np.full_like(loss.v_rgb, np.nan)) if len(calls) == 30 else loss

    monkeypatch.setattr(loop, "l1_ssim", broken)
    with pytest.raises(ClmError, match=r"loss is nan at step 8, image .*\.jpg"):
        run_demo(tmp_path / "run")
    monkeypatch.undo()
    run_demo(tmp_path / "run", resume=True)  # and what was saved is sound
    assert np.isfinite(np.load(checkpoints(tmp_path / "run" / "checkpoints")[-1] / "geometry.npy")).all()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--gpu-memory", "lots"), "lots"),
        (("--max-gaussians", "many"), "many"),
        (("--device", "cuda"), "cuda"),
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
    ):
        refused(tmp_path, *arguments)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.ply").exists()
