"""Prints how long a rebuild of a running session takes, and what one took at an earlier commit.

Rows are uniform in a flat field. Those that were drawn since the last rebuild lie in a square of it (what some views saw) or
anywhere; a part of them grows, as many leave. The number of rows that change is fixed, or a share of all. Every row had its
last gradient at some step before, as in a run: rows have moments (of up to 16 M rows; beyond, zeros in memory that nobody touched,
so that rebuilds pay for its first use) and steps to catch up.

Timed now: the rows are whole, decide, carry out the growth with entries and bounds, clear statistics, see whether the placement
holds, what tiers need to know. Timed at 08936c0, as its `rebuild` did it: write back, settle all rows, densify, sort anew where
more than 5% are new, refresh all, the pass over the visible sets of all views, tiers and lanes anew; also without that pass.

    python scripts/bench_rebuild.py flat [--millions 1 4 16] [--changed 100000]
    python scripts/bench_rebuild.py once [--millions 5] [--share 0.05] [--spread]   (--base DIR: also that checkout)
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
IMAGE_SEED = 0
VIEWS = 100  # of the session; each sees a part of the field of side 20
_MOMENTS_UP_TO = 16_000_000


def entries_of(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [N, 12], [N, 48] of a field of side 100; neighbours overlap."""
    rng = np.random.default_rng(0)
    geometry, colour = np.zeros((rows, 12), np.float32), np.zeros((rows, 48), np.float32)
    geometry[:, :2] = rng.random((rows, 2), np.float32) * 100
    geometry[:, 2] = rng.random(rows, np.float32)
    geometry[:, 3] = 1
    geometry[:, 7:10] = math.log(0.7 * 100 / math.sqrt(rows))
    geometry[:, 10] = 1
    return geometry, colour


def choose(geometry: np.ndarray, changed: int, spread: bool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows that were drawn, and those of them that change: ids, ascending. Five times as many are drawn as change."""
    if spread:
        drawn = np.sort(rng.choice(len(geometry), min(len(geometry), 5 * changed), replace=False))
    else:
        side = 100 * math.sqrt(min(1.0, 5 * changed / len(geometry)))
        corner = rng.random(2) * (100 - side)
        inside = ((geometry[:, :2] >= corner) & (geometry[:, :2] < corner + side)).all(axis=1)
        drawn = np.flatnonzero(inside)
    return drawn, np.sort(rng.choice(drawn, min(changed, len(drawn)), replace=False))


def run_on(store: Any, rows: np.ndarray | slice, rng: np.random.Generator) -> None:
    """Rows as they are in the middle of a run that reaches step 50."""
    store.stamp[rows] = rng.integers(1, 50, len(store.stamp[rows]), np.int32)


def with_moments(store: Any) -> None:
    """Rows in the first rows of the store get moments."""
    if store.rows <= _MOMENTS_UP_TO:
        for name, value in (("m_geometry", 1e-6), ("m_colour", 1e-6), ("v_geometry", 1e-6), ("v_colour", 1e-6)):
            getattr(store, name)[: store.rows] = value


def measure(rows: int, changed: int, spread: bool, repeats: int) -> list[float]:
    """Seconds of `repeats` rebuilds at so many rows, one after the other."""
    from clm.device.cpu import CpuDevice
    from clm.optim.adam import Adam, Betas
    from clm.store.order import block_order, plain_entries
    from clm.store.store import Store
    from clm.strategy.default import Thresholds, clear_statistics, decide
    from clm.stream.lanes import Lanes
    from clm.stream.tiers import Tiers

    geometry, colour = entries_of(rows)
    order = block_order(plain_entries(geometry))
    store = Store.from_rows(geometry[order], colour[order], moments="f32")
    del geometry, colour, order
    store.refresh(None)
    with_moments(store)
    step = Adam(np.full((6, 100), 1e-4), Betas.for_batch(4)).at(50)
    limits = Thresholds(screen_gradient=1.0, prune_opacity=0.005, prune_scale=None)
    tiers, rng, seconds = Tiers(CpuDevice(), store, np.ones(store.pages, bool), 1000), np.random.default_rng(1), []
    lanes = Lanes(tiers)
    for image in range(repeats):
        live = np.concatenate(list(store.live()))
        run_on(store, live, rng)
        store.refresh(step)
        drawn, change = (live[ids] for ids in choose(store.geometry[live], changed, spread, rng))
        half = change[::2], change[1::2]
        store.statistics[drawn, 0] = 1
        store.statistics[half[0], 1] = 2.0  # grow
        store.geometry[half[1], 10] = -50  # go
        store.seen[np.unique(drawn // store.page_rows)] = True
        began = perf_counter()
        lanes.publish_entries()
        tiers.write_back()
        decision = decide(store, step, limits, 2**31, image)
        store.apply(decision.growth)
        clear_statistics(store)
        assert tiers.rows_of_resident_pages <= store.rows
        tiers.update()
        seconds.append(perf_counter() - began)
        assert decision.split + decision.pruned == len(change)
    lanes.close()
    return seconds


def measure_base(rows: int, changed: int, spread: bool, repeats: int) -> list[float]:
    """The same as it was before there were pages, and how much of each the pass over visible sets took. Run in that checkout."""
    from clm.gaussians.blocks import block_order
    from clm.gaussians.densify import Thresholds, densify, resort, wants_resort
    from clm.gaussians.store import Store
    from clm.stream.cpu import CpuDevice
    from clm.train.session import sightings

    from clm.camera import Camera
    from clm.kernels import rows as row_kernels
    from clm.optim.adam import Adam, Betas
    from clm.plan.placement import resident_blocks
    from clm.stream.lanes import Lanes
    from clm.stream.tiers import Tiers

    store = Store.from_rows(*entries_of(rows), moments="f32")
    store.refresh(None)
    store.take(block_order(store.entries))
    with_moments(store)
    step = Adam(np.full((6, 100), 1e-4), Betas.for_batch(4)).at(50)
    limits = Thresholds(screen_gradient=1.0, split_scale=1e-9, prune_opacity=0.005, prune_scale=None)
    rng, seconds, new, passes = np.random.default_rng(1), [], 0, []
    cameras = []
    for place in np.random.default_rng(2).random((VIEWS, 2)) * 100:
        pose = np.diag([1.0, -1.0, -1.0, 1.0])
        pose[:3, 3] = -pose[:3, :3] @ np.array([*place, 16.0])
        cameras.append(Camera(640, 480, 500.0, 500.0, 320.0, 240.0, pose))
    device = CpuDevice()
    tiers = Tiers(device, store, np.ones(store.blocks, bool), 1000)
    lanes = Lanes(tiers)
    for image in range(repeats):
        run_on(store, slice(None), rng)
        store.refresh(step)
        drawn, change = choose(store.geometry, changed, spread, rng)
        half = change[::2], change[1::2]
        store.statistics[drawn, 0] = 1
        store.statistics[half[0], 1] = 2.0
        store.geometry[half[1], 10] = -50
        began = perf_counter()
        lanes.publish_entries()
        tiers.write_back()
        row_kernels.settle(store, step, 0, store.rows)
        result = densify(store, limits, 2**31 - 1, [IMAGE_SEED, 3, image], lambda _store, _drop: True)
        new += result.cloned + 2 * result.split
        if wants_resort(new, store.rows):
            store.refresh(step)
            resort(store)
            new = 0
        store.refresh(step)
        looked = perf_counter()
        seen = sightings(store, cameras)
        looked = perf_counter() - looked
        blocks = resident_blocks(seen, store.rows)
        lanes.close()
        del lanes, tiers
        tiers = Tiers(device, store, blocks, 1000)
        lanes = Lanes(tiers)
        seconds.append(perf_counter() - began)
        passes.append(looked)
        assert result.split + result.pruned == len(change)
    lanes.close()
    return [*seconds, *passes]


def told(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} s (" + ", ".join(f"{s:.3f}" for s in seconds) + ")"


def child(arguments: list[str], where: Path) -> list[float]:
    """Measured in a process of its own, with the code of a checkout."""
    from bench_common import environment_of

    environment = environment_of(where)
    output = subprocess.run(
        [sys.executable, __file__, *arguments], env=environment, cwd=where, check=True, capture_output=True, text=True
    ).stdout
    return [float(word) for word in output.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["flat", "once", "one", "one-base"])
    parser.add_argument("--millions", type=float, nargs="+")
    parser.add_argument("--changed", type=int, default=100_000)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--spread", action="store_true", help="drawn rows lie anywhere")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--base", type=Path, help="a checkout of an earlier commit, its kernels built")
    asked = parser.parse_args()
    if asked.what in ("one", "one-base"):
        how = measure if asked.what == "one" else measure_base
        print(*how(int(asked.millions[0] * 1e6), asked.changed, asked.spread, asked.repeats))
        return
    print(f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores")
    spread = ["--spread"] if asked.spread else []
    for millions in asked.millions or ([1, 4, 16] if asked.what == "flat" else [5]):
        changed = asked.changed if asked.what == "flat" else int(asked.share * millions * 1e6)
        common = ["--millions", str(millions), "--changed", str(changed), "--repeats", str(asked.repeats), *spread]
        print(f"{millions:g} M rows, {changed:,} change: {told(child(['one', *common], ROOT))}", flush=True)
        if asked.base:
            times = child(["one-base", *common], asked.base)
            whole, passes = times[: asked.repeats], times[asked.repeats :]
            print(f"  at {asked.base.name}: {told(whole)}")
            print(f"  without its pass over visible sets of {VIEWS} views: ", end="")
            print(told([a - b for a, b in zip(whole, passes, strict=True)]), flush=True)


if __name__ == "__main__":
    main()
