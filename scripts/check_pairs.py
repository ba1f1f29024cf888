"""Lists, blends and differentiates a view of so many (tile, Gaussian) pairs, whole and in bands, and compares the bits.

60 bytes per pair: beyond 179 million pairs the moments number more than 2^31 floats. Prints date, hardware, commit.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clm.camera import Camera
from clm.render.cpu import CpuRasterizer
from clm.units import parse_count
from scripts.bench_raster import commit, hardware

SIDE, TILES = 1024, 64 * 64


def view(rasterizer: CpuRasterizer, rows: int) -> list[np.ndarray]:
    """Image and gradients of Gaussians in random order of depth that all cover the whole image."""
    rng = np.random.default_rng(0)
    geometry, colour = np.zeros((rows, 12), np.float32), np.zeros((rows, 48), np.float32)
    geometry[:, 2], geometry[:, 3], geometry[:, 7:10] = rng.permutation(rows) * 1e-4 + 2.0, 1.0, 3.0
    geometry[:, 10] = -2.0  # some seventy are seen through, and their moments lie anywhere among all
    colour[:, :3] = rng.normal(0, 1, (rows, 3))
    camera, slots = Camera(SIDE, SIDE, 600.0, 600.0, SIDE / 2, SIDE / 2, np.eye(4)), np.arange(rows, dtype=np.int32)
    image = rasterizer.forward(geometry, colour, slots, camera, 0, (0, 0, 0)).rgb
    rasterizer.rasterize_backward(np.ones_like(image))
    gradients = np.zeros((rows, 16), np.float32), np.zeros((rows, 48), np.float32)
    rasterizer.project_backward(geometry, colour, slots, 0, *gradients)
    return [image.copy(), *gradients]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", default="180M", help="(tile, Gaussian) pairs")
    rows = -(-parse_count(parser.parse_args().pairs, "--pairs") // TILES)
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {hardware()}, commit {commit()}; {' '.join(sys.argv)}")
    results = []
    for band_bytes in (None, 1 << 30):
        rasterizer, began = CpuRasterizer(band_bytes=band_bytes), time.perf_counter()
        results.append(view(rasterizer, rows))
        held = sum(rasterizer.held_bytes()) / 2**30
        seconds = time.perf_counter() - began
        print(f"{rasterizer.pairs():,} pairs in {rasterizer.bands()} bands: {seconds:.1f} s, {held:.2f} GiB")
    same = all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
    print(f"image and gradients {'are equal, bit for bit' if same else 'DIFFER'}")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
