#!/usr/bin/env python
"""Trains one scene in several units and prints a table of held-out PSNR: the unit of a COLMAP model must not matter.

    python scripts/check_scale.py [--data DATA] [--scales 1e-4,1e-2,1,1e2,1e4] [--seeds 0] [train options]

DATA is by default the bundled scene, the train options are those of `scripts/demo.sh`. A run that grows is chaotic: two
that differ by a rounding decide otherwise about single rows, and their figures differ by some tenths of a dB. So every scale
is also trained without growth, where 0.1 dB is the bound, and growing runs are averaged over seeds: their means may differ
by 0.1 dB and three standard errors. Exits 1 beyond.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pycolmap

ROOT = Path(__file__).resolve().parents[1]
DEMO_OPTIONS = ["--iterations", "2000", "--offload", "host", "--gpu-memory", "8MiB"]
TOLERANCE_DB = 0.1


def write_scaled(data: Path, folder: Path, scale: float) -> None:
    """The COLMAP model of `data` with every length times `scale`, its photos linked."""
    model = pycolmap.Reconstruction(str(data / "sparse" / "0"))
    model.transform(pycolmap.Sim3d(scale, pycolmap.Rotation3d(), [0.0, 0.0, 0.0]))
    (folder / "sparse" / "0").mkdir(parents=True)
    model.write_binary(str(folder / "sparse" / "0"))
    (folder / "images").symlink_to((data / "images").resolve())


def train(data: Path, run: Path, options: list[str]) -> tuple[float, int]:
    """Held-out PSNR (dB) and the number of Gaussians of one run."""
    command = [sys.executable, "-m", "clm.cli", "train", str(data), "-o", str(run), "-q", *options]
    subprocess.run(command, check=True, cwd=ROOT)
    metrics = json.loads((run / "metrics.json").read_text())
    return metrics["test"]["psnr"], metrics["num_gaussians"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "demo")
    parser.add_argument("--scales", default="1e-4,1e-2,1,1e2,1e4")
    parser.add_argument("--seeds", default="0")
    arguments, options = parser.parse_known_args()
    options, seeds = options or DEMO_OPTIONS, arguments.seeds.split(",")
    print("| scale | fixed rows: PSNR (dB) | growing: PSNR (dB) | Gaussians |\n|---|---|---|---|", flush=True)
    fixed, growing = [], []
    for text in arguments.scales.split(","):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_scaled(arguments.data, folder / "scene", float(text))
            (folder / "fixed.yaml").write_text("densify_until: 0\n")
            still, _ = train(folder / "scene", folder / "fixed", [*options, "--config", str(folder / "fixed.yaml")])
            grown = [train(folder / "scene", folder / f"run{s}", [*options, "--seed", s]) for s in seeds]
        values, rows = np.array(grown).T
        fixed.append(still)
        growing.append(values)
        each = f" ({', '.join(f'{v:.2f}' for v in values)})" if len(values) > 1 else ""
        print(f"| {text} | {still:.3f} | {values.mean():.3f}{each} | {rows.mean():,.0f} |", flush=True)
    means = np.mean(growing, axis=1)
    error = float(np.mean(np.std(growing, axis=1, ddof=1)) / len(seeds) ** 0.5) if len(seeds) > 1 else 0.1
    spreads, bounds = (np.ptp(fixed), np.ptp(means)), (TOLERANCE_DB, TOLERANCE_DB + 3 * error)
    print(f"largest difference, fixed rows: {spreads[0]:.3f} dB (allowed: {bounds[0]})")
    print(f"largest difference, growing: {spreads[1]:.3f} dB (allowed: {bounds[1]:.2f}; standard error {error:.2f})")
    return 0 if spreads[0] <= bounds[0] and spreads[1] <= bounds[1] else 1


if __name__ == "__main__":
    sys.exit(main())
