"""Prints how long a rebuild takes: decide, carry out the growth, cull entries, bounds, what tiers need to know.

Rows are uniform in a flat field. Those that were drawn since the last rebuild lie in a square of it (what some views saw) or
anywhere; a part of them grows, as many leave. The number of rows that change is fixed, or a share of all.

    python scripts/bench_rebuild.py flat [--millions 1 4 16] [--changed 100000]
    python scripts/bench_rebuild.py once [--millions 5] [--share 0.05] [--spread]   (--base DIR: also another checkout)
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

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
IMAGE_SEED = 0


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


def measure(rows: int, changed: int, spread: bool, repeats: int) -> list[float]:
    """Seconds of `repeats` rebuilds at so many rows, one after the other."""
    from clm.device.cpu import CpuDevice
    from clm.optim.adam import Adam, Betas
    from clm.store.order import block_order
    from clm.store.store import Store
    from clm.strategy.default import Thresholds, clear_statistics, decide
    from clm.stream.tiers import Tiers

    store = Store.from_rows(*entries_of(rows), moments="f32")
    store.refresh(None)
    store.reorder(block_order(store.entries))
    store.refresh(None)
    step = Adam(np.full((6, 100), 1e-4), Betas.for_batch(4)).at(50)
    limits = Thresholds(screen_gradient=1.0, split_scale=0.0, prune_opacity=0.005, prune_scale=None)
    tiers, rng, seconds = Tiers(CpuDevice(), store, np.ones(store.pages, bool), 1000), np.random.default_rng(1), []
    for image in range(repeats):
        live = np.concatenate(list(store.live()))
        drawn, change = (live[ids] for ids in choose(store.geometry[live], changed, spread, rng))
        half = change[::2], change[1::2]
        store.statistics[drawn, 0] = 1
        store.statistics[half[0], 1] = 2.0  # grow
        store.geometry[half[1], 10] = -50  # go
        for page in np.unique(drawn // store.page_rows):
            store.seen[page] = True
        began = perf_counter()
        decision = decide(store, step, limits, 2**31, IMAGE_SEED, image)
        store.apply(decision.growth)
        clear_statistics(store)
        tiers.update()
        seconds.append(perf_counter() - began)
        assert decision.split + decision.pruned == len(change)
    return seconds


def measure_base(rows: int, changed: int, spread: bool, repeats: int) -> list[float]:
    """The same as it was before there were pages: settle, densify, sort, refresh, resident blocks. Run in that checkout; what
    views see (a pass over all visible sets) is left out."""
    from clm.gaussians.blocks import block_order
    from clm.gaussians.densify import Thresholds, densify, resort
    from clm.gaussians.store import Store

    from clm.kernels import rows as row_kernels
    from clm.optim.adam import Adam, Betas

    store = Store.from_rows(*entries_of(rows), moments="f32")
    store.refresh(None)
    store.take(block_order(store.entries))
    store.refresh(None)
    step = Adam(np.full((6, 100), 1e-4), Betas.for_batch(4)).at(50)
    limits = Thresholds(screen_gradient=1.0, split_scale=0.0, prune_opacity=0.005, prune_scale=None)
    rng, seconds = np.random.default_rng(1), []
    for image in range(repeats):
        drawn, change = choose(store.geometry, changed, spread, rng)
        half = change[::2], change[1::2]
        store.statistics[drawn, 0] = 1
        store.statistics[half[0], 1] = 2.0
        store.geometry[half[1], 10] = -50
        began = perf_counter()
        row_kernels.settle(store, step, 0, store.rows)
        result = densify(store, limits, 2**31 - 1, [IMAGE_SEED, 3, image], lambda _store, _drop: True)
        if result.cloned + 2 * result.split > 0.05 * store.rows:
            store.refresh(step)
            resort(store)
        store.refresh(step)
        seconds.append(perf_counter() - began)
        assert result.split + result.pruned == len(change)
    return seconds


def told(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} s (" + ", ".join(f"{s:.3f}" for s in seconds) + ")"


def child(arguments: list[str], where: Path) -> list[float]:
    """Measured in a process of its own, with the code of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(where)}
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
            print(f"  at {asked.base.name}: {told(child(['one-base', *common], asked.base))}", flush=True)


if __name__ == "__main__":
    main()
