"""What every benchmark prints first: date, hardware, command, commit; and where the real scenes are."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

from clm import kernels

ROOT = Path(__file__).resolve().parents[1]
SCENES = Path(os.environ.get("CLM_SCENES", ROOT.parent / "shared" / "scenes"))


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown CPU"


def _commit() -> str:
    """CLM_COMMIT where the checkout was copied without its history."""
    try:
        described = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
        commit = described.stdout.strip()
    except OSError:
        commit = ""
    return commit or os.environ.get("CLM_COMMIT", "unknown")


@cache
def environment_of(checkout: Path) -> dict[str, str]:
    """Environment in which `import clm` takes the package of `checkout`. An editable install can come before PYTHONPATH, and two
    commits that are compared would both be the installed one: refused."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", "import clm; print(clm.__file__)"]
    taken = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=True).stdout
    if Path(taken.strip()).resolve().parents[1] != checkout.resolve():
        raise SystemExit(
            f"`import clm` in {checkout} takes {taken.strip()}: uninstall clm from this Python (`pip uninstall clm`); "
            "scripts are run with PYTHONPATH=. and need no install"
        )
    return environment


def header() -> str:
    """Date, hardware, kernels, load, command and commit, as lines of text."""
    command = " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return "\n".join(
        [
            f"date     {time.strftime('%Y-%m-%d')}",
            f"hardware {_cpu_name()}, {os.cpu_count()} cores, kernels {kernels.variant()}, load before the run {load}",
            f"command  {command}",
            f"commit   {_commit()}",
            "",
        ]
    )
