"""`clm eval` of a model without a run: the same figures as those of the run that trained it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.demo_run import DEMO, clm, contents, read_json, run_demo

EVAL = ("--data", DEMO, "--downscale", "4", "--json", "-q")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval") / "run"
    run_demo(folder, iterations=24)
    return folder


@pytest.fixture
def model(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(run / "point_cloud" / "iteration_24" / "point_cloud.ply", tmp_path / "model.ply"))


def test_a_ply_on_a_scene_has_the_figures_of_the_run_that_wrote_it(run: Path, model: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    figures, metrics = json.loads(clm("eval", model, *EVAL).stdout), read_json(run / "metrics.json")
    assert figures.keys() == metrics.keys() and figures["test"].keys() == metrics["test"].keys()
    assert figures["test"]["per_view"].keys() == metrics["test"]["per_view"].keys()
    assert figures["test"]["psnr"] == pytest.approx(metrics["test"]["psnr"], abs=0.01)
    assert (figures["iteration"], figures["num_gaussians"]) == (-1, metrics["num_gaussians"])
    assert contents(tmp_path) == before, "nothing is written beside a model that is somebody's"
    fewer = json.loads(clm("eval", model, *EVAL, "--test-every", "20").stdout)
    assert len(fewer["test"]["per_view"]) == 2
    (tmp_path / "more.yaml").write_text("test_every: 10\n")
    assert (
        len(json.loads(clm("eval", model, *EVAL, "--config", tmp_path / "more.yaml").stdout)["test"]["per_view"]) == 4
    )


def test_what_is_missing_or_of_no_use_ends_in_one_sentence(run: Path, model: Path, tmp_path: Path) -> None:
    for arguments, said in (
        ((model,), f"does not say which scene it is of. Say it: `clm eval {model} --data SCENE`."),
        ((model, "--data", tmp_path / "nowhere"), "nowhere"),
        ((tmp_path / "nothing.ply", *EVAL), "No such file or directory"),
        ((model, *EVAL[:2], "--downscale", "3"), "downscale"),
        ((model, *EVAL, "--test-every", "0"), "No views are held out (test_every 0). Use --split train."),
        ((run, "--downscale", "2"), f"--downscale is for a model without a run: {run} has its own."),
        ((run, "--config", tmp_path / "a.yaml"), "--config is for a model without a run"),
    ):
        result = clm("eval", *arguments)
        [line] = result.stderr.splitlines()
        assert result.returncode == 2 and said in line, line
    (tmp_path / "georef.json").write_text('{"offset": [500000, 0, 0]}')
    result = clm("eval", model, *EVAL)
    assert result.returncode == 2 and "The origin of" in result.stderr and "georef.json" in result.stderr
