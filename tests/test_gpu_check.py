"""The GPU check, run with the doubles: every part does what it does on a GPU, on tiny sizes, and its report says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("gsplat", reason="gsplat is not installed")

from tests.demo_run import REPOSITORY, environment

PARTS = ["facts", "compile", "parity", "loss", "adam", "placements", "resume", "memory", "speed", "predicted", "ramp"]


def gpu_check(*options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / "gpu_check.py"), "--double", "--quick", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment())


def test_every_part_passes_with_the_doubles_and_the_report_says_that_it_is_none_of_a_gpu(tmp_path: Path) -> None:
    result = gpu_check("--output", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    (markdown,), (figures,) = tmp_path.glob("*-gpu-DOUBLE.md"), tmp_path.glob("*-gpu-DOUBLE.json")
    text, parts = markdown.read_text(), json.loads(figures.read_text())["parts"]
    assert text.startswith("# DOUBLE: ") and "commit " in text and "hardware" in text
    assert list(parts) == PARTS and all(part["passed"] for part in parts.values())
    expected = {name: len(part["expectations"]) for name, part in parts.items()}
    assert expected["parity"] == 21 and expected["placements"] == 16 and all(expected[n] for n in ("resume", "memory"))


def test_a_part_that_fails_is_reported_with_its_last_line_and_the_others_go_on(tmp_path: Path) -> None:
    result = gpu_check("--only", "resume", "--only", "loss", "--scene", tmp_path / "nosuch", "--output", tmp_path)
    assert result.returncode == 1
    parts = json.loads(next(tmp_path.glob("*.json")).read_text())["parts"]
    assert parts["loss"]["passed"] and not parts["resume"]["passed"]
    assert parts["resume"]["error"].startswith("clm.errors.ClmError: ") and "nosuch" in parts["resume"]["error"]
    assert parts["resume"]["error"] in next(tmp_path.glob("*.md")).read_text()


def test_what_doubles_find_is_never_written_into_docs() -> None:
    result = gpu_check("--output", REPOSITORY / "docs" / "benchmarks")
    assert result.returncode != 0 and "never written into docs/" in result.stderr
    assert not list((REPOSITORY / "docs").rglob("*DOUBLE*"))
