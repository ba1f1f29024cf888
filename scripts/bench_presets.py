#!/usr/bin/env python
"""What each preset does on a capture of the kind that it is for, against defaults.

    python scripts/bench_presets.py [--presets object ...] [--seeds 0 1] [--keep DIR]

Both runs of a preset go at the same time, one thread each. `object`: the bundled scene, its room cut away, and both models measured
as what is before white; `indoor`: the bundled scene, each photo made brighter or darker at random, with a slight tint; `street`:
sceaux; `internet`: sacre_coeur; `aerial`: caliterra. Colour-corrected: each picture after the affine map of colours that fits it
best. Loads: of an image, where Gaussians live in host memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_demo_scene
import numpy as np
from bench_common import environment_of, header
from bench_quality import CASES, ROOT, Case, add_run_arguments, start, write_case
from PIL import Image
from scene_parts.capture import rays

Edit = Callable[[list[Path]], None]
"""Puts photos of its own in the place of links to those of a capture."""


def cut_out(photos: list[Path]) -> None:
    """Everything but the room stays opaque."""
    things, poses, lens = make_demo_scene.things(), make_demo_scene.poses(), make_demo_scene.LENS
    y, x = np.divmod(np.arange(lens.width * lens.height), lens.width)
    places = [(a, b) for a in (0.25, 0.75) for b in (0.25, 0.75)]
    for photo, pose in zip(photos, poses, strict=True):
        origins = (rays(lens, pose, x + a, y + b) for a, b in places)
        with np.errstate(invalid="ignore"):  # a ray that misses
            seen = sum((make_demo_scene.nearest_hit(things, *each)[1] > 0).astype(np.float64) for each in origins)
        opacity = np.round(255 * seen / len(places)).astype(np.uint8).reshape(lens.height, lens.width)
        with Image.open(photo) as image:
            rgba = np.dstack([np.asarray(image.convert("RGB")), opacity])
        photo.unlink()
        Image.fromarray(rgba).save(photo, format="png")  # whatever its name ends with


def unevenly_exposed(photos: list[Path]) -> None:
    rng = np.random.default_rng(0)
    for photo in photos:
        gains = np.exp(rng.normal(0, 0.25) + rng.normal(0, 0.04, 3))
        with Image.open(photo) as image:
            pixels = np.asarray(image.convert("RGB")) * gains
        photo.unlink()
        Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8)).save(photo, format="jpeg", quality=95)


def as_they_are(photos: list[Path]) -> None:
    """Nothing is done to them."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A capture of the kind that a preset is for. edit: what is done to its photos first. measured: the options under which both
    models are measured, if not their own."""

    case: str
    edit: Edit = as_they_are
    options: tuple[str, ...] = ()
    measured: str = ""


KINDS = {
    "object": Kind("demo", cut_out, measured="{mask_mode: transparent, background: white}"),
    "indoor": Kind("demo", unevenly_exposed),
    "street": Kind("sceaux", options=("--offload", "host")),
    "internet": Kind("sacre_coeur"),
    "aerial": Kind("caliterra", options=("--offload", "host")),
}


def write_capture(kind: Kind, folder: Path) -> tuple[Case, int]:
    """Its case, and that every Nth photo is held out."""
    case = CASES[kind.case]
    every = write_case(case, folder)
    kind.edit(sorted((folder / "images").iterdir()))
    return case, every


def measure(kind: Kind, run: Path, scene: Path, every: int) -> dict[str, Any]:
    """Figures of the held-out views."""
    if not kind.measured:
        return dict(json.loads((run / "metrics.json").read_text())["test"])
    options = run.with_suffix(".yaml")
    options.write_text(kind.measured)
    (ply,) = run.glob("point_cloud/*/point_cloud.ply")
    words = ["eval", ply, "--data", scene, "--test-every", every, "--config", options, "--json", "-q"]
    command = [sys.executable, "-m", "clm.cli", *map(str, words)]
    said = subprocess.run(command, cwd=ROOT, env=environment_of(ROOT), check=True, capture_output=True, text=True)
    return dict(json.loads(said.stdout)["test"])


def line(preset: str, seed: int, side: str, run: Path, test: dict[str, Any]) -> str:
    report = json.loads((run / "report.json").read_text())
    loads = report["traffic"]["rows_loaded"] / report["iterations"]
    return (
        f"| {preset} | {seed} | {side} | {test['psnr']:.2f} | {test['psnr_colour_corrected']:.2f} | {test['ssim']:.4f} | "
        f"{report['num_gaussians']:,} | {loads:,.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=list(KINDS), choices=list(KINDS))
    add_run_arguments(parser)
    args = parser.parse_args()
    print(header())
    print("| preset | seed | options | PSNR | colour-corrected | SSIM | Gaussians | rows loaded per image |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        for preset in args.presets:
            kind = KINDS[preset]
            case, every = write_capture(kind, folder / preset)
            case = dataclasses.replace(case, images=args.images or case.images, until=None)
            for seed in args.seeds:
                processes = {}
                for side, more in (("defaults", []), ("preset", ["--preset", preset])):
                    run = folder / f"{preset}_{side}_{seed}"
                    processes[side] = run, start(ROOT, run, folder / preset, case, every, seed, [*kind.options, *more])
                for side, (run, process) in processes.items():
                    if process.wait():
                        raise SystemExit(f"{preset}, {side}: exit code {process.returncode}")
                    test = measure(kind, run, folder / preset, every)
                    print(line(preset, seed, side, run, test), flush=True)


if __name__ == "__main__":
    main()
