"""`clm info` in words: what a run, a PLY or a scene is, how good, and what to type next."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from plyfile import PlyData, PlyElement

from clm.commands.info import suggested_preset
from tests.demo_run import DEMO, REPOSITORY, clm, run_demo


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("info") / "a run"
    run_demo(run, iterations=8)
    return run


def words(path: Path) -> str:
    result = clm("info", path)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    return result.stdout


def suggestion(text: str, before: str) -> list[str]:
    """The command that follows `before`, as typed."""
    line = next(line for line in text.splitlines() if before in line)
    return shlex.split(line.partition(before)[2].partition(" (")[0])


def test_a_finished_run_says_how_good_it_is_and_the_command_it_suggests_renders_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, facts = words(run), json.loads(clm("info", run, "--json").stdout)
    assert "finished: 8 of 8 images in 0:00:0" in text and "on cpu" in text
    assert f"test PSNR {facts['metrics']['test']['psnr']:.2f} dB" in text and "over 5 views at image 8" in text
    assert f"{facts['ply']['gaussians']:,} Gaussians, SH degree 3" in text and facts["ply"]["path"] in text
    monkeypatch.chdir(tmp_path)
    assert clm(*suggestion(text, "render it: clm ")).returncode == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == 5


def test_an_interrupted_run_says_where_it_stopped_and_the_command_it_suggests_finishes_it(tmp_path: Path) -> None:
    run_demo(tmp_path / "run", stop_at=40)
    text = words(tmp_path / "run")
    assert "not finished: 40 of 80 images" in text and "checkpoints: step_40" in text
    assert clm(*suggestion(text, "go on with: clm ")).returncode == 0
    assert "  finished: 80 of 80 images" in words(tmp_path / "run")


def test_a_run_with_damaged_files_is_described_by_those_that_are_whole(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    for name in ("metrics.json", "report.json", "config.yaml"):
        (tmp_path / "run" / name).write_text("{")
    text = words(tmp_path / "run")
    assert "not finished: 8 images" in text and "checkpoints: step_8" in text


def test_a_ply_says_where_its_gaussians_are_and_how_many_are_of_no_use(run: Path, tmp_path: Path) -> None:
    vertices = PlyData.read(run / "input.ply")["vertex"].data.copy()
    vertices["x"][:3] = np.nan
    PlyData([PlyElement.describe(vertices, "vertex")]).write(tmp_path / "a.ply")
    text, facts = words(tmp_path / "a.ply"), json.loads(clm("info", tmp_path / "a.ply", "--json").stdout)
    assert f"{len(vertices):,} Gaussians, SH degree 3" in text and "3 Gaussians are not finite" in text
    assert facts["unusable"] == 3 and facts["gaussians"] == len(vertices)
    np.testing.assert_allclose(facts["bounds"][0][0], np.nanmin(vertices["x"]), rtol=1e-6)
    assert "not finite" not in words(run / "input.ply")


def test_a_scene_says_its_cameras_its_split_and_which_photos_are_missing(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "data")
    assert "photos: all are there" in words(tmp_path / "data")
    for path in sorted((tmp_path / "data" / "images").iterdir())[:3]:
        path.unlink()
    text, facts = words(tmp_path / "data"), json.loads(clm("info", tmp_path / "data", "--json").stdout)
    assert "40 views: 35 to train on, 5 held out" in text and "cameras: 40 x PINHOLE 320x240" in text
    assert "photos: 37 of 40 are in images/" in text and facts["photos"] == 37
    assert suggestion(text, "train it: clm ") == ["train", str(tmp_path / "data")]


def test_the_demo_never_removes_a_folder_that_it_did_not_make(tmp_path: Path) -> None:
    """It is refused before anything is installed or trained."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_text("precious")
    command = ["bash", str(REPOSITORY / "scripts" / "demo.sh"), str(tmp_path / "mine")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert result.returncode == 2 and str(tmp_path / "mine") in result.stderr
    assert (tmp_path / "mine" / "photo.jpg").read_text() == "precious"


def test_a_scene_of_many_views_is_suggested_a_preset_by_how_dense_its_points_are() -> None:
    assert [suggested_preset(*each) for each in ((200, 9_000_000), (201, 9_000_000), (400, 100_000))] == [
        "",
        "city",
        "aerial",
    ]
