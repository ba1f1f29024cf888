"""Host offload against everything resident on a real scene: two runs advance batch by batch in turns in one process, so
that both see the same machine. Prints images/s of each, seconds by lane, and what planning cost. Their models must agree.

The case where offloading loses is printed too: one view per batch, where nothing is reused.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from bench_common import SCENES, header

from clm.config import Config
from clm.run.loop import train_batch
from clm.run.open import Run, open_run
from clm.scene import Scene, load_scene
from clm.settings import load_config
from clm.units import format_bytes


def advance(run: Run) -> float:
    """One batch (and the densification that follows it); seconds of the batch alone."""
    totals = run.accounts.totals
    before = totals.batch_seconds
    train_batch(run, run.batches.next())
    if run.growth.due:
        run.growth.rebuild()
    return totals.batch_seconds - before


def compare(scene: Scene, config: dict[str, object], warm_up: int) -> None:
    """Run both placements in turns over the whole schedule; the first `warm_up` batches are not counted."""
    runs = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for offload in ("none", "host"):
            resolved: Config = load_config({**config, "offload": offload})
            runs[offload] = stack.enter_context(open_run(scene, resolved, Path(folder), lambda _event: None))
        seconds: dict[str, list[float]] = {"none": [], "host": []}
        turn = 0
        while not runs["none"].schedule.over:
            for offload in ("none", "host") if turn % 2 else ("host", "none"):
                seconds[offload].append(advance(runs[offload]))
            turn += 1
        show(runs, seconds, warm_up, resolved.batch_size)


def show(runs: dict[str, Run], seconds: dict[str, list[float]], warm_up: int, batch: int) -> None:
    for offload, run in runs.items():
        median = float(np.median(seconds[offload][warm_up:]))
        totals, lanes = run.accounts.totals, run.accounts.totals.lanes
        print(
            f"  {offload:4}  {batch / median:6.1f} images/s (median of {len(seconds[offload]) - warm_up} batches), "
            f"{run.residence.rows:,} Gaussians, device {format_bytes(totals.device_bytes)}"
        )
        print(
            f"        lanes: load {lanes.load:.2f} s, compute {lanes.compute:.2f} s, send back {lanes.send_back:.2f} s, "
            f"update {lanes.update:.2f} s, hidden {100 * lanes.hidden_fraction:.0f}%"
        )
        share, exposed = lanes.plan / totals.batch_seconds, lanes.plan_exposed / totals.batch_seconds
        print(f"        cull + order + plan: {100 * share:.1f}% of the batch time, exposed {100 * exposed:.1f}%")
    ratios = np.array(seconds["none"][warm_up:]) / np.array(seconds["host"][warm_up:])
    with runs["none"].residence.whole() as none, runs["host"].residence.whole() as host:
        same = all(np.array_equal(getattr(none, name), getattr(host, name)) for name in none.names)
    print(f"  host/none images/s, batch by batch: median {np.median(ratios):.3f}; models bitwise equal: {same}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scene", default="caliterra")
    parser.add_argument("--downscale", type=int, default=2)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--gpu-memory", default="8GiB")
    args = parser.parse_args()
    print(header())
    scene = load_scene(SCENES / args.scene, downscale=args.downscale)
    for batch in args.batches:
        print(
            f"{args.scene}, 1/{args.downscale} size, batch {batch}, {args.images} images, arena budget {args.gpu_memory}"
        )
        config = {"iterations": args.images, "batch_size": batch, "gpu_memory": args.gpu_memory}
        compare(scene, config, warm_up=max(2, 65 // batch))


if __name__ == "__main__":
    main()
