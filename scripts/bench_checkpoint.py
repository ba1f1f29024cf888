"""What a checkpoint costs: of the whole store, and of the pages that changed since the one before it.

    python scripts/bench_checkpoint.py [--rows 5000000] [--changed 0.05] [--repeats 3]

Seconds are medians and include the fsync of every file; a full checkpoint, one of some pages and one read back take turns. Beside
them: the same bytes written and synced as one file, which is this disk's limit.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from bench_common import header

from clm.config import Config, to_dict
from clm.optim.schedules import Leg
from clm.run.checkpoint import save_checkpoint
from clm.run.restore import load_checkpoint
from clm.run.saved import Saved
from clm.run.schedule import Progress
from clm.run.totals import Totals
from clm.store.store import Store


def some_store(rows: int) -> Store:
    rng, store = np.random.default_rng(0), Store(rows)
    for first in range(0, rows, 1 << 18):
        count = min(1 << 18, rows - first)
        store.append(rng.random((count, 12), np.float32), rng.random((count, 48), np.float32))
    for ids, held in store.sweep_rows(changing=True):
        at = held.at(ids)
        held.m_colour[at] = held.v_colour[at] = held.colour[at]
        held.m_geometry[at] = held.v_geometry[at] = held.geometry[at]
    return store


def state(image: int) -> dict[str, Any]:
    progress = asdict(Progress(Leg.of(Config(), 1.0), iteration=image, step=image))
    rest = {"config": to_dict(Config()), "scene_scale": 1.0, "totals": Totals().state()}
    return {"run": "bench", "progress": progress, **rest}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def new_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir() if file.stat().st_nlink == 1)


def write_plainly(path: Path, size: int) -> None:
    piece = np.random.default_rng(0).integers(0, 256, 1 << 24, dtype=np.uint8).data
    with open(path, "wb") as file:
        for first in range(0, size, len(piece)):
            file.write(piece[: size - first])
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--changed", type=float, default=0.05, help="share of the pages")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(header())
    store, rng = some_store(options.rows), np.random.default_rng(1)
    seconds: dict[str, list[float]] = {name: [] for name in ("full", "changed", "loaded", "plain write")}
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="bench-checkpoint-", dir=".") as scratch:
        for k in range(options.repeats):
            folder = Path(scratch) / str(k)
            took, full = timed(lambda folder=folder: save_checkpoint(folder, 1, state(1), store, 9))
            seconds["full"].append(took)
            sizes["full"] = new_bytes(full.path)
            store.changed[rng.permutation(store.pages)[: int(options.changed * store.pages)]] = True
            save = lambda folder=folder, full=full: save_checkpoint(folder, 2, state(2), store, 9, before=full)  # noqa: E731
            took, part = timed(save)
            seconds["changed"].append(took)
            sizes["changed"] = new_bytes(part.path)
            load = lambda part=part: load_checkpoint(part.path, lambda s: Saved.parse(s, "bench"))  # noqa: E731
            took, _ = timed(load)
            seconds["loaded"].append(took)
            plain = Path(scratch) / "plain"
            seconds["plain write"].append(timed(lambda plain=plain: write_plainly(plain, sizes["full"]))[0])
            plain.unlink()
            shutil.rmtree(folder)
    print(f"{options.rows:,} rows in {store.pages:,} pages, {options.changed:.0%} of them changed")
    for name, values in seconds.items():
        size = f", {sizes[name] / 2**20:,.0f} MiB written" if name in sizes else ""
        print(f"  {name:12} {np.median(values):7.2f} s{size}")
    ratios = np.array(seconds["changed"]) / np.array(seconds["full"])
    print(f"  changed/full: seconds {np.median(ratios):.3f}, bytes {sizes['changed'] / sizes['full']:.3f}")


if __name__ == "__main__":
    main()
