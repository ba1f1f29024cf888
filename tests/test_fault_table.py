"""The fault table, rehearsed: every fault is tried, and what a try can come to is told apart."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.demo_run import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))

from fault_parts.tries import Fault, Job, Lost, Traceback, Try, run_tries

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, /proc and mounts")


def fault_table(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / "fault_table.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_every_fault_is_tried_and_a_report_is_written(tmp_path: Path) -> None:
    result = fault_table("--quick", "--output", str(tmp_path / "faults.md"))
    assert "in the try itself" not in result.stderr, result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 24 and rows[-1].startswith("| **all** | **"), result.stdout + result.stderr
    for row in rows[1:-1]:  # a hang may be a busy machine's
        tracebacks, _, lost = (cell.strip() for cell in row.strip("|").split("|")[-3:])  # names may hold bars
        assert (tracebacks, lost) == ("0", "0"), row + result.stdout
    report = (tmp_path / "faults.md").read_text()
    assert rows[-1] in report and "commit " in report and "hardware" in report


def outcome(work: object, folder: Path, **options: float) -> str:
    fault = Fault("made-up", "made up", 1, 1, work, **options)  # type: ignore[arg-type]
    ((_, verdict),) = run_tries([Job(fault, 0)], SimpleNamespace(scratch=folder, patience=1.0), 1, keep=False)
    return verdict.kind


def test_a_segfault_an_exception_a_hang_and_a_loss_are_told_apart(tmp_path: Path) -> None:
    def finds(error: Exception):
        def work(t: Try) -> None:
            raise error

        return work

    assert outcome(lambda t: None, tmp_path) == ""
    assert outcome(lambda t: ctypes.string_at(0), tmp_path) == "traceback"
    assert outcome(finds(Traceback("bug: it broke")), tmp_path) == "traceback"
    assert outcome(finds(ValueError("in the try")), tmp_path) == "traceback"
    assert outcome(lambda t: os.abort(), tmp_path) == "traceback"
    assert outcome(finds(Lost("gone")), tmp_path) == "lost"
    assert outcome(lambda t: time.sleep(60), tmp_path, seconds=0.2) == "hang"


def test_the_same_case_is_the_same_try(tmp_path: Path) -> None:
    def work(t: Try) -> None:
        (tmp_path / "drawn").open("a").write(f"{t.rng.integers(10**9)}\n")

    for _ in range(2):
        outcome(work, tmp_path / "scratch")
    first, second = (tmp_path / "drawn").read_text().split()
    assert first == second
