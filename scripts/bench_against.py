"""This commit against another checkout, run by run in turns: seconds per image of training, everything resident and offloaded.

    python scripts/bench_against.py CHECKOUT [--scenes fox caliterra] [--images 400] [--rounds 7] [--batches 4]

CHECKOUT: a worktree of the other commit with its kernels built. Each run is a process of its own (`clm train`, a fixed number
of rows), measured from batch to batch after its first tenth: seconds on the clock, and seconds of processor time over all
threads, which neighbours on the machine disturb less. Ratios are taken round by round; below 1: this commit is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from bench_common import SCENES, header

HERE = Path(__file__).resolve().parents[1]
FIXED = {"densify_until": 0, "opacity_reset_every": 0, "sh_interval": 1, "save_every": 0, "keep_checkpoints": 1}
# Both commits make a BatchDone per batch; where its module lies has changed.
MEASURED = """
import importlib.util, json, sys, time
from importlib import import_module
events = import_module("clm.run.events" if importlib.util.find_spec("clm.run") else "clm.train.events")
path, marks, made = sys.argv[1], [], events.BatchDone.__init__
def note(self, *arguments, **named):
    made(self, *arguments, **named)
    marks.append((time.perf_counter(), time.process_time(), self.iteration, self.loss, self.num_gaussians))
events.BatchDone.__init__ = note
from clm.cli import main
try:
    sys.argv[1:] = sys.argv[2:]
    main()
finally:
    with open(path, "w") as file:
        json.dump(marks, file)
"""


def seconds_per_image(checkout: Path, scene: Path, run: Path, options: dict[str, object]) -> tuple[float, float, float]:
    """On the clock, of processor time, and the loss of the last batch."""
    config, marks = run.with_suffix(".yaml"), run.with_suffix(".json")
    config.write_text(json.dumps({**FIXED, **options}))
    words = ["train", str(scene), "-o", str(run), "--config", str(config), "-q", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    subprocess.run([sys.executable, "-c", MEASURED, str(marks), *words], cwd=checkout, env=environment, check=True)
    done = json.loads(marks.read_text())
    first, last = done[len(done) // 10], done[-1]
    images = last[2] - first[2]
    return (last[0] - first[0]) / images, (last[1] - first[1]) / images, last[3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--scenes", nargs="+", default=["fox", "caliterra"])
    parser.add_argument("--downscale", default="2")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--batches", type=int, nargs="+", default=[4])
    parser.add_argument("--offload", nargs="+", default=["none", "host"])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    print(header())
    sides = {"before": args.checkout.resolve(), "now": HERE}
    for scene in args.scenes:
        for batch in args.batches:
            for offload in args.offload:
                options = {"iterations": args.images, "batch_size": batch, "offload": offload}
                options |= {"downscale": args.downscale, "test_every": 0, "gpu_memory": "8GiB"}
                taken: dict[str, list[tuple[float, float, float]]] = {side: [] for side in sides}
                with tempfile.TemporaryDirectory() as folder:
                    for turn in range(args.rounds):
                        for side in list(sides)[:: 1 if turn % 2 else -1]:
                            run = Path(folder) / f"{side}_{turn}"
                            taken[side].append(seconds_per_image(sides[side], SCENES / scene, run, options))
                before, now = np.array(taken["before"]), np.array(taken["now"])  # [rounds, 3]
                print(f"{scene}, batch {batch}, {offload}: last loss {before[-1, 2]:.6f} before, {now[-1, 2]:.6f} now")
                for k, what in enumerate(("on the clock", "of processors")):
                    ratios = now[:, k] / before[:, k]
                    print(
                        f"  {what}: {1e3 * np.median(before[:, k]):.2f} ms an image before, {1e3 * np.median(now[:, k]):.2f}"
                        f" now; now/before {np.median(ratios):.3f} ({ratios.min():.3f} to {ratios.max():.3f})",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
