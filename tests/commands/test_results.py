"""An interrupted run can be looked at: its newest checkpoint is what render, eval and export show."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from clm.run.checkpoint import checkpoints
from tests.demo_run import clm, run_demo


def test_a_checkpoint_is_exported_exactly_as_the_trainer_would_have(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_demo(run)
    ply = run / "point_cloud" / "iteration_80" / "point_cloud.ply"
    trained = ply.read_bytes()
    shutil.rmtree(run / "point_cloud")
    assert clm("export", run, tmp_path / "out.ply").returncode == 0
    assert ply.read_bytes() == trained


def test_an_interrupted_run_is_rendered_evaluated_and_exported(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_demo(run, stop_at=40)
    assert not (run / "point_cloud").exists()
    done = clm("render", run, "-o", tmp_path / "views")
    assert done.returncode == 0 and "image 40" in done.stderr
    assert len(list((tmp_path / "views").glob("*.png"))) == 5
    done = clm("eval", run, "--json", "-q")
    assert done.returncode == 0 and json.loads(done.stdout)["iteration"] == 40
    assert clm("export", run, tmp_path / "out.ply").returncode == 0
    assert (tmp_path / "out.ply").stat().st_size > 0


def test_a_damaged_checkpoint_leaves_the_older_ply(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_demo(run)
    newer = run / "checkpoints" / "step_84"
    shutil.copytree(checkpoints(run / "checkpoints")[-1], newer)
    (newer / "index.npy").write_bytes(b"")
    done = clm("export", run, tmp_path / "out.ply")
    assert done.returncode == 0 and "index.npy" in done.stderr
    assert (tmp_path / "out.ply").exists()
    assert [path.name for path in (run / "point_cloud").iterdir()] == ["iteration_80"]
