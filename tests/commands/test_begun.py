"""A run goes on with its own configuration, finds its scene again, and keeps its held-out views whatever happens to photos."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from clm.run.checkpoint import checkpoints
from tests.demo_run import DEMO, assert_same_model, clm, files_under, read_events, read_json

OPTIONS = ("--batch-size", "4", "--downscale", "8", "--seed", "3")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the demo scene and a run of 8 images on it."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copytree(DEMO, folder / "scene")
    result = clm("train", folder / "scene", "-o", folder / "run", "--iterations", "8", *OPTIONS)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def folder(begun: Path, tmp_path: Path) -> Path:
    """A copy of it, whose run says that its scene is the copy's."""
    shutil.copytree(begun, tmp_path / "all")
    config = tmp_path / "all" / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(begun), str(tmp_path / "all")))
    return tmp_path / "all"


def started(run: Path) -> dict[str, int]:
    return [event for event in read_events(run) if event["type"] == "started"][-1]


def test_resume_without_flags_goes_on_with_the_scene_and_the_configuration_of_the_run(folder: Path) -> None:
    before = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    result = clm("train", "--resume", "-o", folder / "run", "--iterations", "16")
    assert result.returncode == 0, result.stderr
    assert "resumed with another iterations: 8 -> 16" in result.stderr and "another batch" not in result.stderr
    after = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    changed = {key for key in before if before[key] != after[key]}
    assert changed <= {"iterations", "sh_interval", "densify_from", "densify_until"} and after["iterations"] == 16
    assert started(folder / "run")["iteration"] == 8
    assert clm("train", "--resume", "-o", folder / "run").returncode == 0  # nothing is left to do


def test_a_flag_on_resume_overrides_the_run_and_a_bare_resume_equals_one_with_all_flags(
    begun: Path, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "run", tmp_path / "other")
    flags = ("--resume", "--iterations", "20", "--batch-size", "2")
    assert clm("train", "-o", folder / "run", *flags).returncode == 0
    said = clm("train", folder / "scene", "-o", tmp_path / "other", *OPTIONS, *flags).stderr
    assert "warning: resumed with another batch_size: 4 -> 2\n" in said
    assert_same_model(folder / "run", tmp_path / "other")


def test_a_run_finds_its_scene_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.chdir(folder)
    (folder / "masks").mkdir()
    assert clm("train", "scene", "-o", "here", "--iterations", "4", *OPTIONS).returncode == 0
    assert yaml.safe_load(Path("here/config.yaml").read_text())["data"] == str(folder / "scene")
    monkeypatch.chdir(tmp_path)
    assert clm("train", "--resume", "-o", folder / "here", "--iterations", "8").returncode == 0
    assert clm("eval", folder / "here").returncode == 0


def test_a_scene_that_moved_is_named_with_the_command_that_goes_on(folder: Path) -> None:
    (folder / "scene").rename(folder / "moved")
    run = folder / "run"
    for arguments, remedy in (
        (("train", "--resume", "-o", run, "--iterations", "12"), f"`clm train DATA --resume -o {run}`"),
        (("eval", run), f"`clm eval {run} --data DIR`"),
    ):
        result = clm(*arguments)
        assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
        assert f"The scene of {run} is not at {folder / 'scene'} any more" in result.stderr and remedy in result.stderr
    assert clm("eval", run, "--data", folder / "moved").returncode == 0
    result = clm("train", folder / "moved", "--resume", "-o", run, "--iterations", "12")
    assert result.returncode == 0 and "resumed with another DATA" in result.stderr
    assert clm("eval", run).returncode == 0, "the run knows where its scene is now"


def test_resume_without_data_and_run_says_what_it_needs(tmp_path: Path) -> None:
    result = clm("train", "--resume")
    assert result.returncode == 2 and "Pass -o RUN, or DATA." in result.stderr


@pytest.mark.parametrize("damage", ["gone", "a: [", "iterations: many\ndata: x\n"])
def test_without_a_sound_config_yaml_the_checkpoint_knows_the_configuration_but_not_the_scene(
    folder: Path, damage: str
) -> None:
    path = folder / "run" / "config.yaml"
    path.unlink() if damage == "gone" else path.write_text(damage)
    result = clm("train", "--resume", "-o", folder / "run", "--iterations", "12")
    assert result.returncode == 2 and "does not say where its scene is" in result.stderr
    result = clm("train", folder / "scene", "--resume", "-o", folder / "run", "--iterations", "12")
    assert result.returncode == 0, result.stderr
    assert yaml.safe_load(path.read_text())["seed"] == 3


def test_removing_photos_moves_no_view_to_the_other_side(folder: Path) -> None:
    run = folder / "run"
    before = read_json(run / "split.json")
    assert len(before["test"]) == 5 and len(before["train"]) == 35
    photos = sorted((folder / "scene" / "images").iterdir())
    kept = {}
    for path in (photos[0], photos[3], photos[9]):  # the first is held out; every later one moves up in the order
        kept[path] = path.read_bytes()
        path.unlink()
    assert clm("train", "--resume", "-o", run, "--iterations", "12").returncode == 0
    assert started(run)["test_views"] == 4 and started(run)["train_views"] == 33
    measured = read_json(run / "metrics.json")["test"]["per_view"]
    assert set(measured) == set(before["test"]) - {photos[0].name}
    assert read_json(run / "split.json") == before, "views that are away are remembered"
    assert clm("eval", run).returncode == 0
    assert set(read_json(run / "eval" / "step_12" / "test.json")["test"]["per_view"]) == set(measured)
    assert clm("render", run, "-o", folder / "out").returncode == 0
    assert files_under(folder / "out") == {f"{Path(name).stem}.png" for name in measured}
    for path, content in kept.items():
        path.write_bytes(content)
    assert clm("train", "--resume", "-o", run, "--iterations", "16").returncode == 0
    assert set(read_json(run / "metrics.json")["test"]["per_view"]) == set(before["test"])


def test_a_photo_that_is_new_is_trained_on(folder: Path) -> None:
    photo = sorted((folder / "scene" / "images").iterdir())[0]
    content = photo.read_bytes()
    photo.unlink()
    assert clm("train", folder / "scene", "-o", folder / "few", "--iterations", "4", *OPTIONS).returncode == 0
    before = read_json(folder / "few" / "split.json")
    photo.write_bytes(content)
    assert clm("train", "--resume", "-o", folder / "few", "--iterations", "8").returncode == 0
    after = read_json(folder / "few" / "split.json")
    assert after["test"] == before["test"] and set(after["train"]) == {*before["train"], photo.name}


def test_another_test_every_changes_nothing_for_a_run_that_has_begun(folder: Path) -> None:
    before = read_json(folder / "run" / "split.json")
    result = clm("train", "--resume", "-o", folder / "run", "--iterations", "12", "--test-every", "4")
    assert "warning: test_every 4 changes nothing: a run keeps what it began with\n" in result.stderr
    assert read_json(folder / "run" / "split.json") == before and started(folder / "run")["test_views"] == 5


def test_a_list_of_views_to_hold_out_is_needed_once(folder: Path) -> None:
    names = sorted(path.name for path in (folder / "scene" / "images").iterdir())
    (folder / "held_out.txt").write_text(f"{names[3]}\n{Path(names[7]).stem}\n")
    options = ["--iterations", "4", *OPTIONS, "--test-list", folder / "held_out.txt"]
    result = clm("train", folder / "scene", "-o", folder / "listed", *options)
    assert result.returncode == 0 and "2 of 40 images are held out" in result.stderr
    assert read_json(folder / "listed" / "split.json")["test"] == [names[3], names[7]]
    os.remove(folder / "held_out.txt")
    assert clm("train", "--resume", "-o", folder / "listed", "--iterations", "8").returncode == 0
    assert set(read_json(folder / "listed" / "metrics.json")["test"]["per_view"]) == {names[3], names[7]}
    assert clm("eval", folder / "listed").returncode == 0
    os.remove(folder / "listed" / "split.json")
    result = clm("eval", folder / "listed")
    assert result.returncode == 2 and "split.json" in result.stderr


def test_a_run_from_before_the_split_was_stored_keeps_the_views_of_its_cameras(folder: Path) -> None:
    before = read_json(folder / "run" / "split.json")
    os.remove(folder / "run" / "split.json")
    sorted((folder / "scene" / "images").iterdir())[2].unlink()
    assert clm("train", "--resume", "-o", folder / "run", "--iterations", "12").returncode == 0
    assert read_json(folder / "run" / "split.json") == before


def test_a_damaged_split_is_named_and_nothing_is_trained(folder: Path) -> None:
    (folder / "run" / "split.json").write_text(json.dumps({"test": 5}))
    for arguments in (("train", "--resume", "-o", folder / "run", "--iterations", "12"), ("eval", folder / "run")):
        result = clm(*arguments)
        assert result.returncode == 2 and "split.json is damaged" in result.stderr
    assert [path.name for path in checkpoints(folder / "run" / "checkpoints")] == ["step_8"]
