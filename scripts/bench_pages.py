"""Prints what a hundred rebuilds do to pages, and what a view costs as the scene grows around it.

python scripts/bench_pages.py rot [--rows 400000] [--rebuilds 100]     pages against freshly sorted ones
python scripts/bench_pages.py views [--millions 1 8 32]                 cull, order, plan of a batch, the same rows in view
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import statistics
from time import perf_counter

import numpy as np

from clm import kernels
from clm.camera import Camera
from clm.plan.order import order_views
from clm.plan.residency import make_plan
from clm.plan.visibility import block_bounds, visible_sets
from clm.store.growth import Growth
from clm.store.identity import child_keys
from clm.store.layout import LOG_SCALES, MEANS, PAGE_ROWS
from clm.store.order import block_order, plain_entries
from clm.store.store import Store

SIDE = 100.0


def looking_down(x: float, y: float, height: float) -> Camera:
    pose = np.diag([1.0, -1.0, -1.0, 1.0])
    pose[:3, 3] = -pose[:3, :3] @ np.array([x, y, height])
    return Camera(640, 480, 500.0, 500.0, 320.0, 240.0, pose)


def field(rows: int, side: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a field; scales spread over a decade, one in two thousand is thirty times as large."""
    geometry, colour = np.zeros((rows, 12), np.float32), np.zeros((rows, 48), np.float32)
    geometry[:, :2], geometry[:, 2], geometry[:, 3] = rng.random((rows, 2)) * side, rng.random(rows), 1
    scale = np.exp(rng.normal(0, 0.7, rows)) * np.where(rng.random(rows) < 5e-4, 30, 1) * 0.3 * side / math.sqrt(rows)
    geometry[:, LOG_SCALES] = np.log(scale)[:, None]
    return geometry, colour


def sorted_store(geometry: np.ndarray, colour: np.ndarray) -> Store:
    order = block_order(plain_entries(geometry))
    store = Store.from_rows(geometry[order], colour[order])
    store.refresh(None)
    return store


def rot(rows: int, rebuilds: int) -> None:
    """Rebuilds that each change 2% of the rows, most of them in a part of the scene, as views would see it."""
    rng = np.random.default_rng(0)
    store = sorted_store(*field(rows, SIDE, rng))
    cameras = [looking_down(*(rng.random(2) * SIDE), 12.0) for _ in range(48)]
    for image in range(rebuilds):
        live = np.concatenate(list(store.live()))
        centre = rng.random(2) * SIDE
        near = live[(np.abs(store.geometry[live, :2] - centre) < SIDE / 4).all(axis=1)]
        leave = near[rng.random(len(near)) < 0.04]
        parents = np.sort(rng.choice(near, int(1.3 * len(leave))))
        geometry = store.geometry[parents].copy()
        geometry[:, MEANS] += rng.normal(size=(len(parents), 3)) * np.exp(geometry[:, LOG_SCALES])
        geometry[:, LOG_SCALES] -= np.float32(np.log(1.6)) * (rng.random((len(parents), 1)) < 0.5)
        keys = child_keys(store.keys[parents] + np.arange(len(parents), dtype=np.uint64), image, 0)
        store.apply(Growth.of(leave, parents, keys, geometry, store.colour[parents]))
    live = np.concatenate(list(store.live()))
    entries = np.ascontiguousarray(store.entries[live])
    entries = np.ascontiguousarray(entries[block_order(entries)])
    bounds = block_bounds(entries)
    print(f"{rebuilds} rebuilds: {rows:,} rows became {store.rows:,} in {(store.fill > 0).sum():,} pages, ", end="")
    print(
        f"{store.rows / (store.fill > 0).sum() / PAGE_ROWS:.0%} full ({np.ceil(store.rows / PAGE_ROWS):,.0f} if sorted anew)"
    )
    ours = visible_sets(store.entries, store.bounds, cameras, page_rows=PAGE_ROWS, fill=store.fill)
    fresh = visible_sets(entries, bounds, cameras)
    print(f"visible rows of {len(cameras)} views: {sum(map(len, ours)):,}, sorted anew {sum(map(len, fresh)):,}")
    tested = (
        tested_rows(store.entries, store.bounds, store.fill, cameras),
        tested_rows(entries, bounds, np.full(len(bounds), PAGE_ROWS, np.int32), cameras),
    )
    print(
        f"rows of the pages that views touch: {tested[0]:,}, sorted anew {tested[1]:,} ({tested[0] / tested[1] - 1:+.1%})"
    )
    for name, sets in (("pages", ours), ("sorted anew", fresh)):
        traffic = [
            make_plan(range(8), sets[first : first + 8], max(map(len, sets)) * 2).traffic for first in range(0, 48, 8)
        ]
        print(
            f"  {name}: loads {sum(t.loaded for t in traffic):,}, lower bound {sum(t.lower_bound for t in traffic):,}"
        )


def tested_rows(entries: np.ndarray, bounds: np.ndarray, fill: np.ndarray, cameras: list[Camera]) -> int:
    """Live rows of pages that hold a visible one, summed over views: what is read at the granularity of pages."""
    sets = visible_sets(
        entries, bounds, cameras, page_rows=PAGE_ROWS, fill=None if len(fill) * PAGE_ROWS > len(entries) else fill
    )
    if len(fill) * PAGE_ROWS > len(entries):
        fill = np.minimum(fill, len(entries) - np.arange(len(fill)) * PAGE_ROWS)
    return int(sum(fill[np.unique(rows // PAGE_ROWS)].sum() for rows in sets))


def views(millions: list[float], repeats: int) -> None:
    """A batch of 8 views over the same ground; more rows lie around it."""
    rng = np.random.default_rng(0)
    for m in millions:
        rows, side = int(m * 1e6), SIDE * math.sqrt(m)
        entries = np.empty((rows, 4), np.float32)
        entries[:, :2], entries[:, 2] = (
            rng.random((rows, 2), np.float32) * np.float32(side),
            rng.random(rows, np.float32),
        )
        entries[:, 3] = 0.05
        entries = entries[block_order(entries)]
        bounds, seconds, seen = block_bounds(entries), [], 0
        places = side / 2 + np.random.default_rng(1).uniform(-8, 8, (8, 2))
        cameras = [looking_down(x, y, 20.0) for x, y in places]
        for _ in range(repeats):
            began = perf_counter()
            sets = visible_sets(entries, bounds, cameras)
            order = order_views(sets, rows, PAGE_ROWS, 0)
            make_plan(order.tolist(), [sets[k] for k in order], max(map(len, sets)) * 2)
            seconds.append(perf_counter() - began)
            seen = sum(map(len, sets)) // len(sets)
        milliseconds = 1e3 * statistics.median(seconds) / len(cameras)
        print(f"{m:g} M rows, {seen:,} in a view: {milliseconds:.2f} ms a view (median of {repeats})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["rot", "views"])
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--rebuilds", type=int, default=100)
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=9)
    asked = parser.parse_args()
    print(f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, {kernels.get_threads()} threads")
    if asked.what == "rot":
        rot(asked.rows, asked.rebuilds)
    else:
        views(asked.millions, asked.repeats)


if __name__ == "__main__":
    main()
