"""PSNR and SSIM of the held-out views after so many training images on the real scenes, each from a run of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_common import SCENES, header

RUNS = (
    *(("fox", images, batch) for images in (300, 1000, 2000) for batch in (1, 4)),
    ("sceaux", 2000, 4),
    ("sceaux_distorted", 2000, 4),
    ("sacre_coeur", 1000, 4),
    ("fox", 7000, 4),
    ("fox", 7000, 1),
    ("caliterra", 7000, 4),
)


def measure(scene: str, images: int, batch: int, folder: Path) -> str:
    """Train at half size and report one line of the table."""
    run = folder / f"{scene}-{images}-{batch}"
    options = ["--downscale", "2", "--iterations", str(images), "--batch-size", str(batch), "-o", str(run), "-q"]
    subprocess.run([sys.executable, "-m", "clm.cli", "train", str(SCENES / scene), *options], check=True)
    metrics = json.loads((run / "metrics.json").read_text())
    report = json.loads((run / "report.json").read_text())
    return (
        f"| {scene} | {images:,} | {batch} | {metrics['test']['psnr']:.2f} | {metrics['test']['ssim']:.4f} | "
        f"{metrics['train']['psnr']:.2f} | {metrics['num_gaussians']:,} | {report['images_per_second']:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", nargs="+", default=sorted({run[0] for run in RUNS}))
    args = parser.parse_args()
    print(header())
    print(
        "| scene | images | batch | test PSNR | test SSIM | train PSNR | Gaussians | images/s |\n|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for run in RUNS:
            if run[0] in args.scenes:
                print(measure(*run, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
