"""This commit against another checkout, run by run in turns: images/s of training, everything resident and offloaded.

    python scripts/bench_against.py CHECKOUT [--scenes fox caliterra] [--images 400] [--rounds 5] [--batches 4]

CHECKOUT: a worktree of the other commit with its kernels built. Each run is a process of its own (`clm train`, a fixed number
of rows), and its `images_per_second` is what the receipt says; ratios are taken round by round.
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


def images_per_second(checkout: Path, scene: Path, run: Path, options: dict[str, object]) -> float:
    config = run.with_suffix(".yaml")
    config.write_text(json.dumps({**FIXED, **options}))
    words = ["train", str(scene), "-o", str(run), "--config", str(config), "-q", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", "from clm.cli import main; main()", *words]
    subprocess.run(command, cwd=checkout, env=environment, check=True)
    return float(json.loads((run / "report.json").read_text())["images_per_second"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--scenes", nargs="+", default=["fox", "caliterra"])
    parser.add_argument("--downscale", default="2")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--batches", type=int, nargs="+", default=[4])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(header())
    sides = {"before": args.checkout.resolve(), "now": HERE}
    for scene in args.scenes:
        for batch in args.batches:
            for offload in ("none", "host"):
                options = {"iterations": args.images, "batch_size": batch, "offload": offload}
                options |= {"downscale": args.downscale, "test_every": 0, "gpu_memory": "8GiB"}
                rates: dict[str, list[float]] = {side: [] for side in sides}
                with tempfile.TemporaryDirectory() as folder:
                    for turn in range(args.rounds):
                        for side in list(sides)[:: 1 if turn % 2 else -1]:
                            run = Path(folder) / f"{side}_{turn}"
                            rates[side].append(images_per_second(sides[side], SCENES / scene, run, options))
                ratios = np.array(rates["now"]) / np.array(rates["before"])
                print(
                    f"{scene}, batch {batch}, {offload}: before {np.median(rates['before']):.1f} images/s, now "
                    f"{np.median(rates['now']):.1f}; now/before {np.median(ratios):.3f} ({ratios.min():.3f} to {ratios.max():.3f})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
