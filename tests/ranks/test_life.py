"""Whole runs over several ranks, each a process, over gloo: killed, started again with another number of ranks, refused."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from clm.cli import main as clm_main
from tests.demo_run import DEMO, GROWING, run_demo
from tests.ranks.processes import members, wait_for_files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc and forks")
GROWTH = json.dumps({"anneal": 1.0, **GROWING})  # as `run_demo` trains; JSON is YAML
_PLY_ROW = 4 * 62


def train(folder: Path, rank: int, *words: str) -> None:
    """`clm train` as the command line does it."""
    fixed = ["--iterations", "80", "--batch-size", "4", "--downscale", "4", "--threads", "1", "--save-every", "20"]
    sys.argv = [
        "clm",
        "train",
        str(DEMO),
        "-o",
        str(folder / "run"),
        "--config",
        str(folder / "growing.yaml"),
        *fixed,
        *words,
    ]
    clm_main()


def rows_of(run: Path) -> list[bytes]:
    (ply,) = run.glob("point_cloud/iteration_80/point_cloud.ply")
    body = ply.read_bytes().partition(b"end_header\n")[2]
    return sorted(body[at : at + _PLY_ROW] for at in range(0, len(body), _PLY_ROW))


def test_a_killed_run_goes_on_by_itself_with_another_number_of_ranks_to_the_same_model(tmp_path: Path) -> None:
    (tmp_path / "growing.yaml").write_text(GROWTH)
    run_demo(tmp_path / "alone", threads=1, save_every=20)
    with members(tmp_path, train, 2) as party:
        wait_for_files(tmp_path / "run" / "checkpoints" / "step_40", seconds=120)
        os.kill(party[1].process.pid, signal.SIGKILL)
        assert party[0].end(30) == 4 and "Rank 1 (process " in party[0].text
    assert (tmp_path / "run" / "ranks" / "1.jsonl").exists()
    with members(tmp_path, train, 3, TORCHELASTIC_RESTART_COUNT="1") as party:
        assert [member.end(180) for member in party] == [0, 0, 0], [member.text for member in party]
        assert "Traceback" not in "".join(member.text for member in party)
    assert rows_of(tmp_path / "run") == rows_of(tmp_path / "alone")


def differing(folder: Path, rank: int) -> None:
    train(folder, rank, *(("--seed", "5") if rank == 1 else ()))


def test_a_rank_with_other_options_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "growing.yaml").write_text(GROWTH)
    with members(tmp_path, differing, 2) as party:
        assert [member.end(60) for member in party] == [2, 2]
        for member in party:
            assert "Rank 1 (process " in member.text and "the configuration: seed is 5 instead of 0" in member.text
    assert not (tmp_path / "run" / "events.jsonl").exists()
