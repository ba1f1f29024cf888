"""Another program's reading of our files: @playcanvas/splat-transform, where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from clm.formats.rows import Chunk
from tests.formats.whole import read_all


def read_by_splat_transform(path: Path, folder: Path, *options: str) -> Chunk:
    """Rows of `path` as splat-transform (3.7) writes them as a PLY; skips the test where it is absent."""
    program = os.environ.get("CLM_SPLAT_TRANSFORM") or shutil.which("splat-transform")
    if program is None:
        pytest.skip("splat-transform is not installed (npm install -g @playcanvas/splat-transform, Node 22 or later)")
    out = folder / "read_by_another.ply"
    done = subprocess.run([*program.split(), "-w", path, *options, out], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return read_all(out)
