"""A short run with its report, for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.demo_run import DEMO, clm


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "a run"
    options = ["--iterations", "40", "--downscale", "8", "--offload", "host", "--eval-every", "16", "--seed", "3"]
    done = clm("train", DEMO, "-o", folder, *options)
    assert done.returncode == 0 and f"{folder}/report.html" in done.stderr, done.stderr
    return folder
