#!/usr/bin/env python
"""Held-out quality of this commit against another checkout: real captures, and parts of them that overlap little.

    python scripts/bench_quality.py CHECKOUT [--cases fox caliterra ...] [--seeds 0 1] [--keep DIR] [train options]

CHECKOUT: a worktree of the other commit with its kernels built. The two sides of a case train at the same time, with one thread
each, so that their seconds can be compared; splits are the same, whatever options the other commit knows: photos are given names
under which `--test-every` holds out the right ones. Means and medians are over views; a line per case, side and seed. Time to
quality: cases with a figure to reach are measured twenty times, and the images and seconds of training (measuring and rebuilds left
out) until it was reached are said.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pycolmap
from bench_common import SCENES, environment_of, header

MEASURED = 20  # times, on the way to a figure
ROOT = Path(__file__).resolve().parents[1]
Names = Sequence[str]


@dataclass(frozen=True)
class Case:
    """A capture and how it is trained. keep: which of its photos, sorted by name, there are; held_out: of those, None: every
    eighth."""

    scene: Path
    images: int
    options: tuple[str, ...]
    keep: Callable[[Names], Names] = lambda names: names
    held_out: Names | None = None
    until: float | None = None  # held-out PSNR to reach


HALF = ("--downscale", "2")
CASES = {
    "fox": Case(SCENES / "fox", 2000, HALF, until=30.0),
    "caliterra": Case(SCENES / "caliterra", 4000, HALF, until=33.0),
    "fox, 10 photos": Case(SCENES / "fox", 2000, HALF, lambda names: names[::5]),
    "caliterra, half": Case(SCENES / "caliterra", 4000, HALF, lambda names: names[::2]),
    "sceaux": Case(SCENES / "sceaux", 2000, HALF, held_out=tuple(f"100_{number}.jpg" for number in (7102, 7105, 7108))),
    "sacre_coeur": Case(SCENES / "sacre_coeur", 2000, ("--max-size", "640")),
    "demo": Case(ROOT / "data" / "demo", 2000, ()),
}


def write_case(case: Case, folder: Path) -> int:
    """The scene of a case, its photos linked under names in whose order every Nth is held out; returns N."""
    model = pycolmap.Reconstruction(str(case.scene / "sparse" / "0"))
    images = sorted(model.images.values(), key=lambda image: image.name)
    kept = list(case.keep([image.name for image in images]))
    every = 8
    if case.held_out is not None:
        held, rest = list(case.held_out), [name for name in kept if name not in case.held_out]
        every = next(n for n in range(2, len(kept) + 1) if -(-len(kept) // n) == len(held))
        kept = [held.pop(0) if k % every == 0 else rest.pop(0) for k in range(len(kept))]
    (folder / "images").mkdir(parents=True)
    for image in images:
        if image.name not in kept:
            model.deregister_frame(image.frame_id)
            continue
        name = f"{kept.index(image.name):04d}_{Path(image.name).name}"
        (folder / "images" / name).symlink_to((case.scene / "images" / image.name).resolve())
        image.name = name
    (folder / "sparse" / "0").mkdir(parents=True)
    model.write_binary(str(folder / "sparse" / "0"))
    return every


def start(
    checkout: Path, run: Path, scene: Path, case: Case, every: int, seed: int, more: list[str]
) -> subprocess.Popen[bytes]:
    words = [
        "train",
        str(scene),
        "-o",
        str(run),
        "-q",
        "--threads",
        "1",
        "--seed",
        str(seed),
        "--test-every",
        str(every),
    ]
    words += ["--iterations", str(case.images), *case.options, *more]
    if case.until is not None:
        words += ["--eval-every", str(case.images // MEASURED)]
    environment = {**environment_of(checkout), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "clm.cli", *words], cwd=checkout, env=environment)


def reached(run: Path, psnr: float) -> str:
    """After how many images and seconds of batches held-out views first had it."""
    seconds = 0.0
    for text in (run / "events.jsonl").read_text().splitlines():
        event = json.loads(text)
        if event["type"] == "batch_done":
            seconds += event["seconds"]
        elif event["type"] == "evaluated" and event["psnr"] >= psnr:
            return f"{psnr:g} dB: {event['iteration']:,} images, {seconds:.0f} s"
    return f"{psnr:g} dB: never"


def line(name: str, side: str, seed: int, run: Path, seconds: float) -> str:
    metrics = json.loads((run / "metrics.json").read_text())
    views = [view["psnr"] for view in metrics["test"]["per_view"].values()]
    until = CASES[name].until
    more = reached(run, until) if until is not None else ""
    if len(views) < 4:
        more = ", ".join(f"{psnr:.2f}" for psnr in views)
    return (
        f"| {name} | {side} | {seed} | {metrics['test']['psnr']:.2f} | {statistics.median(views):.2f} | "
        f"{metrics['test']['ssim']:.4f} | {metrics['train']['psnr']:.2f} | {metrics['num_gaussians']:,} | {seconds:.0f} | "
        f"{more} |"
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--images", type=int, help="of every run, instead of its case's own")
    parser.add_argument("--keep", type=Path, help="folder for the runs, which are kept")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    add_run_arguments(parser)
    args, more = parser.parse_known_args()
    print(header())
    print("| capture | commit | seed | PSNR | median | SSIM | training PSNR | Gaussians | seconds | views, or time |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        for name in args.cases:
            scene, case = folder / name.replace(", ", "_"), CASES[name]
            case = dataclasses.replace(case, images=args.images or case.images)
            every = write_case(case, scene)
            for seed in args.seeds:
                runs, began = {}, time.monotonic()
                for side, checkout, options in (("before", args.checkout.resolve(), []), ("now", ROOT, more)):
                    run = folder / f"{scene.name}_{side}_{seed}"
                    runs[side] = run, start(checkout, run, scene, case, every, seed, ["--batch-size", "4", *options])
                while runs:
                    for side, (run, process) in list(runs.items()):
                        if process.poll() is not None:
                            if process.returncode:
                                raise SystemExit(f"{side}, {name}: exit code {process.returncode}")
                            print(line(name, side, seed, run, time.monotonic() - began), flush=True)
                            del runs[side]
                    time.sleep(0.2)


if __name__ == "__main__":
    main()
