"""Writes a synthetic capture of a city, flown over for mapping: photos, ray traced here, and a COLMAP model of any size.

    python scripts/make_city.py OUT [--views 1200] [--points 30M] [--width 400] [--height 300] [--seed 0]

The city grows with the flight: `--views` photos of one footprint each, overlapping as in a mapping flight, so that a view sees
a share of about 1 / (views * (1 - forward) * (1 - side)) of it. Points lie where rays from straight above and from four
sides meet the city, with their true colours, 2 cm of noise and no tracks. Surfaces look the same from everywhere. The same
arguments give the same bytes with the same versions of numpy and Pillow. Memory: some 300 MiB a worker, whatever the
number of points.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scene_parts.capture import QUALITY, Z_UP_TO_Y_DOWN, Lens, encoded, model_of, photo
from scene_parts.city import City, build_city
from scene_parts.city_light import Daylight, daylight, first_met, in_picture, scanned
from scene_parts.city_paint import radiance
from scene_parts.flight import Flight, fly
from tqdm import tqdm

from clm.camera import Camera
from clm.extent import near_plane
from clm.plan.visibility import block_bounds, visible_sets
from clm.store.init import neighbour_scales
from clm.store.order import block_order
from clm.units import parse_count

FOCAL = 1.1  # times the width of a photo
MARGIN = 45.0  # metres of city beyond what upright photos cover, for those that look aside
LEANS = (
    (0.0, 0.0),
    (1.2, 0.0),
    (-1.2, 0.0),
    (0.0, 1.2),
    (0.0, -1.2),
)  # of the scans that points are from, a fifth each
POINT_NOISE = 0.02
BAND = 1 << 17  # points that are scanned at a time, about
CHECKED = 1_000_000  # points that the share of a view is measured on
RECORD = np.dtype([("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("track", "<u8")])


@dataclass(frozen=True, eq=False)
class Capture:
    """Everything that photos and points are computed from."""

    out: Path
    lens: Lens
    seed: int
    points: int
    flight: Flight
    city: City
    light: Daylight


class Band(NamedTuple):
    """Rows of one scan: points from `first` on."""

    scan: int
    top: int  # first row
    rows: int
    columns: int
    step: np.ndarray  # [2] f64, metres
    first: int
    count: int  # at most rows * columns; the rest of the last row is not used


def plan_capture(
    out: Path, views: int, points: int, lens: Lens, height: float, overlap: tuple[float, float], seed: int
) -> Capture:
    np.seterr(divide="ignore", invalid="ignore")  # rays that miss
    flight = fly(lens, views, height, *overlap, seed)
    low, high = flight.low - MARGIN, flight.high + MARGIN
    city = build_city(tuple(low), tuple(high), seed)
    return Capture(out, lens, seed, points, flight, city, daylight(city, low, high))


# ---- photos ----


def photo_name(view: int) -> str:
    return f"flight_{view:05d}.jpg"


def take_photo(capture: Capture, view: int) -> np.ndarray:
    """[H, W, 3] uint8."""
    city, lens, pose = capture.city, capture.lens, capture.flight.poses[view]
    rectangles, grid = in_picture(city, lens, pose), (3, lens.height, lens.width)

    def shade(origin: np.ndarray, direction: np.ndarray, share: int) -> np.ndarray:
        distance, which = first_met(city, rectangles, origin.reshape(grid), direction.reshape(grid))
        return radiance(city, capture.light, origin + direction * distance.reshape(-1), which.reshape(-1))

    return photo(lens, pose, shade, lens.height)


def write_photo(capture: Capture, view: int) -> None:
    image = Image.fromarray(take_photo(capture, view))
    image.save(capture.out / "images" / photo_name(view), quality=QUALITY, subsampling=0)


# ---- points ----


def bands(capture: Capture) -> list[Band]:
    """All points, shared out over scans and rows of them."""
    sides, result, first = capture.flight.high - capture.flight.low, [], 0
    for scan in range(len(LEANS)):
        total = capture.points // len(LEANS) + (scan < capture.points % len(LEANS))
        columns = max(1, round(np.sqrt(total * sides[0] / sides[1])))
        lines = -(-total // columns)
        step, height = sides / [columns, max(lines, 1)], max(1, BAND // columns)
        for top in range(0, lines, height):
            rows = min(height, lines - top)
            count = min(rows * columns, total - top * columns)
            result.append(Band(scan, top, rows, columns, step, first, count))
            first += count
    return result


def find_points(capture: Capture, band: Band) -> tuple[np.ndarray, np.ndarray]:
    """(places [count, 3] f64 in the model's world, RGB [count, 3] u8)."""
    rng = np.random.default_rng([capture.seed, 2, band.scan, band.top])
    jitter = rng.random((2, band.rows, band.columns), np.float32)
    low = capture.flight.low + band.step * [0, band.top]
    p, which = scanned(capture.city, np.array(LEANS[band.scan]), low, band.step, jitter)
    p, which = p.reshape(3, -1)[:, : band.count], which.reshape(-1)[: band.count]
    color = encoded(radiance(capture.city, capture.light, p, which))
    noisy = p + rng.normal(0, POINT_NOISE, p.shape)
    return noisy.T @ Z_UP_TO_Y_DOWN.T, np.round(color * 255).astype(np.uint8)


def points_file(capture: Capture) -> Path:
    return capture.out / "sparse" / "0" / "points3D.bin"


def write_points(capture: Capture, band: Band) -> None:
    """The records of one band, at their place in the file."""
    records = np.zeros(band.count, RECORD)
    records["id"] = np.arange(band.first + 1, band.first + band.count + 1)
    records["xyz"], records["rgb"] = find_points(capture, band)
    records["error"] = -1.0  # not known
    with open(points_file(capture), "r+b") as file:
        file.seek(8 + band.first * RECORD.itemsize)
        file.write(records.tobytes())


# ---- the whole ----

_CAPTURE: Capture | None = None  # a worker's, inherited


def _run(task: int | Band) -> None:
    assert _CAPTURE is not None
    np.seterr(divide="ignore", invalid="ignore")
    if isinstance(task, Band):
        write_points(_CAPTURE, task)
    else:
        write_photo(_CAPTURE, task)


def write_capture(capture: Capture, workers: int) -> None:
    """Photos and model into `capture.out`; what was there under these names goes."""
    global _CAPTURE
    for part in ("images", "sparse"):
        shutil.rmtree(capture.out / part, ignore_errors=True)
    (capture.out / "images").mkdir(parents=True)
    points_file(capture).parent.mkdir(parents=True)
    poses = capture.flight.poses
    model_of(capture.lens, poses, [photo_name(k) for k in range(len(poses))]).write_binary(
        str(points_file(capture).parent)
    )
    with open(points_file(capture), "wb") as file:
        file.write(capture.points.to_bytes(8, "little"))
        file.truncate(8 + capture.points * RECORD.itemsize)
    _CAPTURE = capture
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        for what, tasks in (("points", bands(capture)), ("photos", range(len(poses)))):
            running = [pool.submit(_run, task) for task in tasks]
            for done in tqdm(as_completed(running), what, len(running)):
                done.result()


def shares_seen(capture: Capture) -> np.ndarray:
    """[V] f64: the share of points that may touch each view, by the culling of a training run that starts from them."""
    every, chosen = max(1, capture.points // CHECKED), []
    with open(points_file(capture), "rb") as file:
        file.seek(8)
        for first in range(0, capture.points, CHECKED):
            records = np.fromfile(file, RECORD, min(CHECKED, capture.points - first))
            chosen.append(records["xyz"][-first % every :: every].astype(np.float32))
    places = np.concatenate(chosen)
    scales = neighbour_scales(places) * np.sqrt(len(places) / capture.points)  # all of them lie closer, on surfaces
    entries = np.column_stack([places, 3.33 * scales]).astype(np.float32)
    entries = entries[block_order(entries)]
    lens, poses = capture.lens, [pose.copy() for pose in capture.flight.poses]
    for pose in poses:
        pose[:3, :3] = pose[:3, :3] @ Z_UP_TO_Y_DOWN.T
    centres = np.array([-pose[:3, :3].T @ pose[:3, 3] for pose in poses])
    near, bounds = near_plane(centres, places.astype(np.float64)), block_bounds(entries)
    inner = (lens.width, lens.height, lens.focal, lens.focal, lens.width / 2, lens.height / 2)
    sizes = [len(visible_sets(entries, bounds, [Camera(*inner, pose, near)])[0]) for pose in poses]
    return np.array(sizes) / len(entries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder for images/ and sparse/0/")
    parser.add_argument("--views", type=int, default=1200)
    parser.add_argument(
        "--points", type=lambda text: parse_count(text, "--points"), default=30_000_000, help="30M, 300k"
    )
    parser.add_argument("--width", type=int, default=400, help="of a photo, pixels")
    parser.add_argument("--height", type=int, default=300)
    parser.add_argument("--altitude", type=float, default=80.0, help="metres")
    parser.add_argument("--forward", type=float, default=0.75, help="overlap with the next photo of a strip")
    parser.add_argument("--side", type=float, default=0.65, help="overlap with the next strip")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    asked = parser.parse_args()
    began = time.monotonic()
    lens = Lens(asked.width, asked.height, FOCAL * asked.width)
    overlap = (asked.forward, asked.side)
    capture = plan_capture(asked.out, asked.views, asked.points, lens, asked.altitude, overlap, asked.seed)
    sides = capture.flight.high - capture.flight.low
    print(f"{sides[0]:.0f} m x {sides[1]:.0f} m, {len(capture.city.solids):,} solids, {time.monotonic() - began:.0f} s")
    write_capture(capture, asked.workers)
    print(f"{asked.views:,} photos, {asked.points:,} points in {time.monotonic() - began:.0f} s: {asked.out}")
    shares = shares_seen(capture) * 100
    print(
        f"a view sees {shares.mean():.2f}% of the points (median {np.median(shares):.2f}%, at most {shares.max():.2f}%)"
    )


if __name__ == "__main__":
    main()
