"""This commit against another checkout, run by run in turns: seconds per image of training, everything resident and offloaded.

    python scripts/bench_against.py CHECKOUT [--scenes fox caliterra] [--images 400] [--rounds 5] [--batches 4]

CHECKOUT: a worktree of the other commit with its kernels built. In each round the two sides train at the same time (`clm train`, a
fixed number of rows, a process each), and by turns of half a second one of them is stopped, so that what neighbours do to the
machine hits both alike. Counted per image, from a tenth of the images on until the first is through: seconds of a side's own
turns, and seconds of processor time over all threads. Ratios are taken round by round; below 1: this commit is faster.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from bench_common import SCENES, environment_of, header

HERE = Path(__file__).resolve().parents[1]
TURN = 0.5  # seconds
FIXED = {"densify_until": 0, "opacity_reset_every": 0, "sh_interval": 1, "save_every": 0, "keep_checkpoints": 1}
NEWER = {"anneal": 1.0}  # as it was there, where the other commit does not know it: other rates make other splats
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


@dataclass
class Side:
    """One commit's run of a round."""

    process: subprocess.Popen[bytes]
    marks: Path
    turns: list[tuple[float, float]] = field(default_factory=list)  # seconds of the machine's clock

    def run_until(self, end: float) -> None:
        began = time.perf_counter()
        self.process.send_signal(signal.SIGCONT)
        while time.perf_counter() < end and self.process.poll() is None:
            time.sleep(0.005)
        self.process.send_signal(signal.SIGSTOP)
        self.turns.append((began, time.perf_counter()))


def start(checkout: Path, scene: Path, run: Path, options: dict[str, object]) -> Side:
    config, marks = run.with_suffix(".yaml"), run.with_suffix(".json")
    config.write_text(json.dumps({**FIXED, **(NEWER if checkout == HERE else {}), **options}))
    words = ["train", str(scene), "-o", str(run), "--config", str(config), "-q", "--device", "cpu"]
    environment = environment_of(checkout)
    process = subprocess.Popen([sys.executable, "-c", MEASURED, str(marks), *words], cwd=checkout, env=environment)
    return Side(process, marks)


def alternate(sides: list[Side]) -> list[tuple[float, float, float]]:
    """Per side: seconds of its turns and of processor time per image, and the loss of its last batch."""
    while all(side.process.poll() is None for side in sides):
        for side in sides:
            side.run_until(time.perf_counter() + TURN)
    ends = time.perf_counter()
    for side in sides:
        side.process.send_signal(signal.SIGCONT)
        if side.process.wait():
            raise SystemExit(f"a run ended with {side.process.returncode}")
    return [per_image(json.loads(side.marks.read_text()), side.turns, ends) for side in sides]


def per_image(marks: list[list[float]], turns: list[tuple[float, float]], ends: float) -> tuple[float, float, float]:
    """Of `marks` (clock, processor, image, loss, rows) the part from a tenth of them until `ends`, in `turns` only."""
    first = marks[len(marks) // 10]
    last = [mark for mark in marks if mark[0] <= ends][-1]
    own = sum(max(0.0, min(end, last[0]) - max(began, first[0])) for began, end in turns)
    images = last[2] - first[2]
    return own / images, (last[1] - first[1]) / images, marks[-1][3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--scenes", nargs="+", default=["fox", "caliterra"])
    parser.add_argument("--downscale", default="2")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--batches", type=int, nargs="+", default=[4])
    parser.add_argument("--offload", nargs="+", default=["none", "host"])
    parser.add_argument("--rounds", type=int, default=5)
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
                        order = list(sides)[:: 1 if turn % 2 else -1]
                        runs = [
                            start(sides[side], SCENES / scene, Path(folder) / f"{side}_{turn}", options)
                            for side in order
                        ]
                        for side, result in zip(order, alternate(runs), strict=True):
                            taken[side].append(result)
                before, now = np.array(taken["before"]), np.array(taken["now"])  # [rounds, 3]
                print(f"{scene}, batch {batch}, {offload}: last loss {before[-1, 2]:.6f} before, {now[-1, 2]:.6f} now")
                for k, what in enumerate(("of its turns", "of processors")):
                    ratios = now[:, k] / before[:, k]
                    print(
                        f"  {what}: {1e3 * np.median(before[:, k]):.2f} ms an image before, {1e3 * np.median(now[:, k]):.2f}"
                        f" now; now/before {np.median(ratios):.3f} ({ratios.min():.3f} to {ratios.max():.3f})",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
