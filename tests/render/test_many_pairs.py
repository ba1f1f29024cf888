"""More (tile, Gaussian) pairs than 32 bits of bytes address are really listed; sizes past all memory are refused."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from clm.camera import Camera
from clm.render.cpu import CpuRasterizer

SOURCES = Path(__file__).resolve().parents[2] / "clm" / "kernels" / "src"
SIDE, TILES = 1024, 64 * 64
ROWS = 24_500  # that cover all tiles: 100,352,000 pairs


def curtains(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Nearly opaque Gaussians, each in front of the whole image, one behind the other in random order."""
    rng = np.random.default_rng(seed)
    geometry, colour = np.zeros((count, 12), np.float32), np.zeros((count, 48), np.float32)
    geometry[:, 2] = rng.permutation(count) * 1e-4 + 2.0
    geometry[:, 3], geometry[:, 7:10], geometry[:, 10] = 1.0, 3.0, 4.0
    colour[:, :3] = rng.normal(0, 1, (count, 3))
    return geometry, colour


def test_a_hundred_million_pairs_are_listed_in_order_of_depth() -> None:
    """1.2 GB of lists. Only the front rows are seen, so the image is that of the front rows alone, bit for bit."""
    geometry, colour = curtains(ROWS)
    camera = Camera(SIDE, SIDE, 600.0, 600.0, SIDE / 2, SIDE / 2, np.eye(4))
    rasterizer, slots = CpuRasterizer(), np.arange(ROWS, dtype=np.int32)
    image = rasterizer.forward(geometry, colour, slots, camera, 0, (0, 0, 0)).rgb.copy()
    assert rasterizer.pairs() == ROWS * TILES > 10**8
    front = np.flatnonzero(geometry[:, 2] < np.partition(geometry[:, 2], 60)[60]).astype(np.int32)
    few = CpuRasterizer()
    assert np.array_equal(few.forward(geometry, colour, front, camera, 0, (0, 0, 0)).rgb, image)
    assert few.pairs() == len(front) * TILES and len(front) == 60
    rasterizer.band_bytes = 200 << 20
    assert np.array_equal(rasterizer.forward(geometry, colour, slots, camera, 0, (0, 0, 0)).rgb, image)
    assert rasterizer.bands() > 10 and rasterizer.held_bytes()[1] <= 200 << 20


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_sizes_whose_bytes_wrap_around_are_refused_and_smaller_ones_are_not(tmp_path: Path) -> None:
    """Made-up sizes: of a buffer as the kernels have it, without touching its memory."""
    program = tmp_path / "sizes.cpp"
    program.write_text(
        """
        #include "raster.h"
        using namespace clm;
        template <class T> bool refused(int64_t count) {
            Buffer<T> buffer;
            try { buffer.need(count); } catch (const std::bad_alloc&) { return true; }
            return false;
        }
        int main() {
            const int64_t two31 = int64_t(1) << 31;
            for (int64_t count : {INT64_MAX, INT64_MAX / 4, INT64_MAX / 48 * 4, (int64_t(1) << 62) + 1})
                if (!refused<float>(count) || !refused<Pair>(count) || !refused<Record>(count)) return 1;
            for (int64_t count : {two31 - 1, two31, two31 + 1, 2 * two31 + 1}) {
                Buffer<uint32_t> coverage;  // 8 to 16 GiB of addresses, no page of which is touched but two
                coverage.need(count);
                coverage[count - 1] = 7;
                coverage[0] = 5;
                if (coverage[count - 1] != 7 || coverage.bytes() != 4 * count) return 2;
            }
            Buffer<int32_t> kept;
            kept.need(3)[2] = 9;
            if (kept.need(1000, 3)[2] != 9 || kept.bytes() != 4000) return 3;
            return 0;
        }
        """
    )
    binary = tmp_path / "sizes"
    command = ["c++", "-std=c++17", "-O1", "-I", str(SOURCES), str(program), "-o", str(binary)]
    subprocess.run(command, check=True, capture_output=True)
    assert subprocess.run([binary], check=False).returncode == 0
