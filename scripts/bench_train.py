"""A whole training step on real photos, in milliseconds per image and per stage: the `fox` scene at 265x473 with its own
11 k initial Gaussians (no densification), as the figures of other CPU trainers were taken."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_common import SCENES, header

from clm.run.loop import train_batch
from clm.run.open import open_run
from clm.scene import load_scene
from clm.settings import load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scene", default="fox")
    parser.add_argument("--downscale", type=int, default=2)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--offload", default="host")
    args = parser.parse_args()
    print(header())
    scene = load_scene(SCENES / args.scene, downscale=args.downscale)
    options = {"iterations": args.images, "batch_size": args.batch_size, "offload": args.offload, "densify_until": 0}
    config = load_config(options)
    with tempfile.TemporaryDirectory() as folder, open_run(scene, config, Path(folder), lambda _event: None) as run:
        for index in scene.train:
            run.photos.cache.get(int(index))  # decoded before the clock starts, as in a run's second epoch
        walls, stages = [], []
        while not run.schedule.over:
            began = time.perf_counter()
            train_batch(run, run.batches.next())
            walls.append((time.perf_counter() - began) / args.batch_size)
            stages.append(run.residence.rasterizer.seconds())
        lanes, totals = run.accounts.totals.lanes, run.accounts.totals
        print(f"{args.scene}, batch {args.batch_size}, offload {args.offload}, {run.residence.rows:,} Gaussians")
        tenth, median, ninetieth = (1e3 * float(q) for q in np.percentile(walls, [10, 50, 90]))
        print(f"whole step: median {median:.1f} ms per image (10th {tenth:.1f}, 90th {ninetieth:.1f})")
        for name in stages[0]:
            print(f"  {name:16} {1e3 * float(np.median([s[name] for s in stages])):6.2f} ms (median)")
        print(f"  {'compute in all':16} {1e3 * lanes.compute / totals.images:6.2f} ms (mean; loss and copies included)")
        for name in ("load", "send_back", "update", "plan", "exposed", "plan_exposed"):
            print(f"  {name:16} {1e3 * getattr(lanes, name) / totals.images:6.2f} ms (mean)")


if __name__ == "__main__":
    main()
