"""Times the CPU rasteriser stage by stage, beside its plain-torch twin, in one run: medians in milliseconds.

The scene: 50,000 visible Gaussians of a few pixels at 480x270. Prints date, hardware, commit and the ratio.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clm import kernels
from clm.camera import Camera
from clm.image.losses import l1_ssim
from clm.render.cpu import CpuRasterizer


def scene(count: int, width: int, height: int, pixels: float, seed: int) -> tuple[np.ndarray, np.ndarray, Camera]:
    """Gaussians spread evenly over the image between depths 2 and 10, about `pixels` px of standard deviation."""
    rng = np.random.default_rng(seed)
    focal = 0.9 * width
    z = rng.uniform(2, 10, count)
    geometry = np.zeros((count, 12), np.float32)
    geometry[:, 0] = (rng.uniform(0, width, count) - width / 2) / focal * z
    geometry[:, 1] = (rng.uniform(0, height, count) - height / 2) / focal * z
    geometry[:, 2] = z
    geometry[:, 3:7] = rng.normal(0, 1, (count, 4))
    geometry[:, 7:10] = np.log(pixels / focal * z)[:, None] + rng.normal(0, 0.5, (count, 3))
    geometry[:, 10] = rng.normal(-1, 1.5, count)
    colour = np.zeros((count, 48), np.float32)
    colour[:, :3] = rng.normal(0, 1, (count, 3))
    colour[:, 3:] = rng.normal(0, 0.1, (count, 45))
    return geometry, colour, Camera(width, height, focal, focal, width / 2, height / 2, np.eye(4))


def run_kernels(
    geometry: np.ndarray, colour: np.ndarray, camera: Camera, target: np.ndarray, runs: int
) -> tuple[dict[str, float], int, int]:
    """Median milliseconds per stage, pairs, rows drawn."""
    rasterizer = CpuRasterizer()
    slots = np.arange(len(geometry), dtype=np.int32)
    grad_geometry = np.zeros((len(geometry), 16), np.float32)
    grad_colour = np.zeros((len(geometry), 48), np.float32)
    rows: list[dict[str, float]] = []
    drawn = 0
    for _ in range(runs + 2):
        start = time.perf_counter()
        render = rasterizer.forward(geometry, colour, slots, camera, 3, (0.0, 0.0, 0.0))
        middle = time.perf_counter()
        loss = l1_ssim(render.rgb, target)
        after = time.perf_counter()
        rasterizer.rasterize_backward(loss.v_rgb)
        rasterizer.project_backward(geometry, colour, slots, 0, grad_geometry, grad_colour)
        end = time.perf_counter()
        stages = rasterizer.seconds()
        total = {"loss": after - middle, "all forward": middle - start, "all backward": end - after, "sum": end - start}
        rows.append(stages | total)
        drawn = render.drawn
    medians = {name: 1e3 * statistics.median(row[name] for row in rows[2:]) for name in rows[0]}
    return medians, rasterizer.pairs(), drawn


def run_twin(geometry: np.ndarray, colour: np.ndarray, camera: Camera, target: np.ndarray) -> dict[str, float]:
    """Milliseconds of one pass of the torch twin."""
    import torch

    from clm.image import torch_losses as torch_loss
    from clm.render import twin

    torch.set_num_threads(kernels.get_threads())
    rows = torch.tensor(geometry, requires_grad=True), torch.tensor(colour, requires_grad=True)
    start = time.perf_counter()
    rgb, _, _ = twin.rasterize(*rows, camera, 3, torch.zeros(3))
    middle = time.perf_counter()
    leaf = rgb.detach().requires_grad_()
    torch_loss.loss_terms(leaf, torch.tensor(target)).total.backward()
    after = time.perf_counter()
    rgb.backward(leaf.grad)
    end = time.perf_counter()
    seconds = {"loss": after - middle, "all forward": middle - start, "all backward": end - after, "sum": end - start}
    return {name: 1e3 * value for name, value in seconds.items()}


def hardware() -> str:
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return f"{model}, {os.cpu_count()} cores"


def commit() -> str:
    try:
        command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50_000, help="Gaussians")
    parser.add_argument("--size", default="480x270", help="image size, WxH")
    parser.add_argument("--pixels", type=float, default=2.1, help="typical standard deviation on screen, px")
    parser.add_argument("--runs", type=int, default=15, help="runs to take the median of")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--no-twin", action="store_true", help="skip the torch twin (it takes seconds)")
    options = parser.parse_args()
    width, height = (int(n) for n in options.size.split("x"))
    kernels.set_threads(options.threads)
    geometry, colour, camera = scene(options.count, width, height, options.pixels, seed=0)
    target = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    medians, pairs, drawn = run_kernels(geometry, colour, camera, target, options.runs)
    slow = {} if options.no_twin else run_twin(geometry, colour, camera, target)
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {hardware()}, commit {commit()}")
    print(f"command: {' '.join(sys.argv)}; kernels: {kernels.variant()}, {options.threads} threads")
    print(
        f"{width}x{height}, {drawn} Gaussians drawn, {pairs} (tile, Gaussian) pairs; median of {options.runs} runs, ms"
    )
    print(f"{'stage':18}{'kernels':>10}{'twin':>10}{'ratio':>8}")
    for name, value in medians.items():
        tail = f"{slow[name]:10.1f}{slow[name] / value:7.0f}x" if name in slow else ""
        print(f"{name:18}{value:10.2f}{tail}")


if __name__ == "__main__":
    main()
