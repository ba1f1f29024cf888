"""Prints what the plan saves: rows loaded per policy, and the milliseconds of cull, order and plan.

Points of COLMAP models stand for Gaussians. Batches are consecutive chunks of a seeded permutation of the views, as in
training (every 8th view held out), over several epochs; figures are sums over full batches. Radii are those of the
initial Gaussians. Needs no images.

    python scripts/bench_plan.py [MODEL_DIR ...]      (default: the real scenes in $CLM_SCENES or ../shared/scenes)
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import pycolmap

from clm.camera import NEAR, Camera
from clm.kernels import get_threads, variant
from clm.plan.order import order_views
from clm.plan.residency import Traffic, make_plan
from clm.plan.visibility import PAGE_ROWS, block_bounds, visible_sets
from clm.store.init import neighbour_scales
from clm.store.order import block_order

ROOT = Path(__file__).resolve().parents[1]
SCENES = Path(os.environ.get("CLM_SCENES", ROOT.parent / "shared" / "scenes"))
DEFAULT = ("caliterra", "models/street_1499cams", "models/aerial_394cams")


def read_model(path: Path) -> tuple[list[Camera], np.ndarray]:
    """Cameras (distortion ignored) and points [P, 3] f32 of a COLMAP model."""
    folder = next(p for p in (path / "sparse" / "0", path / "sparse", path) if (p / "images.bin").exists())
    model = pycolmap.Reconstruction(folder)
    cameras = []
    for image in sorted(model.images.values(), key=lambda image: image.name):
        source, pose = model.cameras[image.camera_id], np.eye(4)
        pose[:3] = image.cam_from_world().matrix()
        cameras.append(
            Camera(
                source.width,
                source.height,
                source.focal_length_x,
                source.focal_length_y,
                source.principal_point_x,
                source.principal_point_y,
                pose,
            )
        )
    return cameras, np.array([point.xyz for point in model.points3D.values()], np.float32)


def cull_entries(points: np.ndarray) -> np.ndarray:
    """Entries [P, 4] f32 as at initialisation, in store order: R = 3.33 * RMS distance to the 3 nearest points."""
    entries = np.column_stack([points, 3.33 * neighbour_scales(points)]).astype(np.float32)
    return np.ascontiguousarray(entries[block_order(entries)])


def drawn_rows(entries: np.ndarray, camera: Camera) -> int:
    """How many rows the rasteriser would draw if they were opaque balls with R = 3.33 sigma (exact rule, float64)."""
    p = entries[:, :3] @ camera.world_to_camera[:3, :3].T + camera.world_to_camera[:3, 3]
    z = np.maximum(p[:, 2], NEAR)
    drawn = p[:, 2] >= NEAR
    axes = ((camera.width, camera.fx, camera.cx), (camera.height, camera.fy, camera.cy))
    for axis, (size, focal, centre) in enumerate(axes):
        tangent = p[:, axis] / z
        outside = 0.15 * size / focal
        clamped = np.clip(tangent, -(centre / focal + outside), (size - centre) / focal + outside)
        radius = np.ceil(np.sqrt((entries[:, 3] * focal / z) ** 2 * (1 + clamped**2) + 3.33**2 * 0.3))
        mean = focal * tangent + centre
        drawn &= (mean + radius > 0) & (mean - radius < size)
    return int(drawn.sum())


def bench_batches(cameras: list[Camera], entries: np.ndarray, batch: int, whole_union: bool) -> str:
    """One row of the table: an epoch in batches of `batch` views."""
    bounds = block_bounds(entries)
    train = [v for v in range(len(cameras)) if v % 8]
    rng = np.random.default_rng(0)
    views = np.concatenate([rng.permutation(train) for _ in range(max(1, 400 // len(train)))])
    total, times, batches = Traffic(0, 0, 0, 0, 0, 0), np.zeros(3), 0
    for start in range(0, len(views) - batch + 1, batch):
        chosen = views[start : start + batch]
        begin = perf_counter()
        sets = visible_sets(entries, bounds, [cameras[v] for v in chosen])
        culled = perf_counter()
        order = order_views(sets, len(entries), PAGE_ROWS, seed=start)
        ordered = perf_counter()
        capacity = len(entries) if whole_union else 2 * max(map(len, sets))
        plan = make_plan([int(v) for v in chosen[order]], [sets[i] for i in order], capacity)
        times += np.diff([begin, culled, ordered, perf_counter()]) * 1e3
        total += plan.traffic
        batches += 1
    loads = np.array([total.consecutive_reuse, total.loaded, total.lower_bound]) / total.no_reuse
    cull, order_ms, plan_ms = times / batches
    return (
        f"{batch:5d}  {'union' if whole_union else '2x max':8s} {loads[0]:11.3f} {loads[1]:9.3f} {loads[2]:7.3f} "
        f"{loads[1] / loads[0]:9.2f} {total.loaded_partial / max(1, total.loaded):8.3f} "
        f"{cull:8.2f} {order_ms:7.2f} {plan_ms:7.2f}"
    )


def main() -> None:
    paths = [Path(arg) for arg in sys.argv[1:]] or [SCENES / name for name in DEFAULT]
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"
    print(f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, kernels {variant()}, ", end="")
    print(f"{get_threads()} threads, commit {commit}; command: python scripts/bench_plan.py {' '.join(sys.argv[1:])}")
    print("Row loads relative to loading every view's full set; times in ms per batch.")
    for path in paths:
        if not path.exists():
            print(f"\n{path}: not found, skipped (set CLM_SCENES or name a model)")
            continue
        cameras, points = read_model(path)
        entries = cull_entries(points)
        sets = visible_sets(entries, block_bounds(entries), cameras)
        drawn = sum(drawn_rows(entries, camera) for camera in cameras)
        seen = sum(map(len, sets))
        print(
            f"\n{path.name}: {len(cameras)} views, {len(points):,} points, a view sees {seen / len(sets):,.0f} ", end=""
        )
        print(f"({seen / len(sets) / len(points):.1%}); {seen / max(1, drawn):.3f}x the rows drawn if opaque")
        print("batch  capacity consecutive  next-use   bound  next/cons  partial     cull   order    plan")
        for batch in (4, 16, 64):
            for whole_union in (False, True):
                print(bench_batches(cameras, entries, batch, whole_union))


if __name__ == "__main__":
    main()
