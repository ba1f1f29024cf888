"""What several ranks cost and what they send, on this machine: `python scripts/bench_ranks.py overhead|bytes [options]`.

overhead: images per second of one rank with two threads, two ranks with one each, four with one each, and one under torchrun, by
turns, medians over rounds. bytes: what crosses the network per image, for models of several sizes of which views see the same rows.
Batches are timed by the run itself (`events.jsonl`), the first three of a run are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from clm.formats.ply_write import write_ply
from clm.scene.open import open_scene
from clm.settings import load_config
from clm.store.init import PointRows
from clm.store.layout import LOG_SCALES, MEANS
from scripts.bench_common import ROOT, header

_WARM_UP = 3  # batches


def model(scene_path: Path, downscale: str, seen: int, unseen: int, path: Path) -> None:
    """A PLY of rows around the points of a scene, and of rows far behind all of its cameras."""
    scene = open_scene(scene_path, load_config({"downscale": downscale}))
    rng, count = np.random.default_rng(0), len(scene.points)
    points = PointRows(scene.points, scene.point_colors, 0)
    positions = np.array([view.camera.position for view in scene.views])
    forward = np.mean([view.camera.forward for view in scene.views], axis=0)

    def chunks() -> Any:
        for first in range(0, seen + unseen, 1 << 16):
            numbers = rng.integers(0, count, min(1 << 16, seen + unseen - first))
            geometry, colour = points.rows(numbers)
            geometry[:, MEANS] += rng.normal(0, 1, (len(numbers), 3)) * np.exp(geometry[:, LOG_SCALES])
            geometry[:, LOG_SCALES] -= np.log(max(1.0, seen / count)) / 3
            far = np.arange(first, first + len(numbers)) >= seen
            geometry[far, :3] -= (1e3 * scene.scale * forward + positions.mean(axis=0)).astype(np.float32)
            yield geometry, colour

    write_ply(path, chunks())


def run(arguments: argparse.Namespace, ply: Path, ranks: int, threads: int, launched: bool) -> dict[str, Any]:
    """One run; images per second, and the part `ranks` of its receipt."""
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "-o",
            folder + "/run",
            "--init-ply",
            str(ply),
            "--threads",
            str(threads),
            "--downscale",
            arguments.downscale,
        ]
        options += [
            "--batch-size",
            str(arguments.batch_size),
            "--iterations",
            str(arguments.images),
            "--test-every",
            "0",
            "-q",
        ]
        config = Path(folder) / "config.yaml"
        config.write_text("densify_until: 0\nsh_interval: 1\n")
        options += ["--config", str(config), "--device", "cpu"]
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if launched else []
        command = [sys.executable, *launcher, "-m", "clm", "train", str(arguments.scene), *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(done.stderr)
        lines = (Path(folder) / "run" / "events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        seconds = [event["seconds"] for event in events if event["type"] == "batch_done"][_WARM_UP:]
        receipt = json.loads((Path(folder) / "run" / "report.json").read_text())
        speed = arguments.batch_size / float(np.median(seconds))
        return {"speed": speed, "lanes": receipt["lanes"], **receipt.get("ranks", {})}


def overhead(arguments: argparse.Namespace, folder: Path) -> None:
    ply = folder / "rows.ply"
    model(arguments.scene, arguments.downscale, arguments.rows, 0, ply)
    ways = {
        "1 rank, 2 threads": (1, 2, False),
        "1 rank, 2 threads, torchrun": (1, 2, True),
        "2 ranks, 1 thread each": (2, 1, True),
        "4 ranks, 1 thread each": (4, 1, True),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            speeds[name].append(run(arguments, ply, *way)["speed"])
    first = np.median(speeds["1 rank, 2 threads"])
    for name, found in speeds.items():
        ratio = np.median([a / b for a, b in zip(found, speeds["1 rank, 2 threads"], strict=True)])
        print(
            f"{name:30} {np.median(found):7.2f} images/s  {np.median(found) / first:5.2f} of the first, by rounds {ratio:5.2f}"
        )


def bytes_per_image(arguments: argparse.Namespace, folder: Path) -> None:
    print("Gaussians    bytes per image   rank 0 to 1    rank 1 to 0")
    for total in arguments.sizes:
        ply = folder / "rows.ply"
        model(arguments.scene, arguments.downscale, arguments.rows, max(0, total - arguments.rows), ply)
        network = run(arguments, ply, 2, 1, True)["network"]
        to_each = network["bytes_to_each"]
        there, back = to_each[0][1] / arguments.images, to_each[1][0] / arguments.images
        print(f"{total:9,}   {network['bytes_per_image']:14,.0f} {there:14,.0f} {back:14,.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("overhead", "bytes"))
    parser.add_argument("--scene", type=Path, default=ROOT / "data" / "demo")
    parser.add_argument("--downscale", default="1")
    parser.add_argument("--rows", type=int, default=250_000, help="that views see")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[250_000, 500_000, 2_000_000], help="of models, for bytes"
    )
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(header())
    with tempfile.TemporaryDirectory() as folder:
        (overhead if arguments.what == "overhead" else bytes_per_image)(arguments, Path(folder))


if __name__ == "__main__":
    main()
