"""The simulator against reality on the CPU device: images/s as `clm plan --machine this` predicts them, and as training
reaches them, in turns in one process, so that both see the same machine. A fixed number of Gaussians, full SH degree.

Plans are made once; each round measures this machine's rates and predicts, then trains some batches of each placement. Ratios
are predicted over measured images/s; seconds per batch are printed by lane. Rounds in which other programs were busy are told
apart.

    python scripts/bench_simulate.py --scenes CITY --preset city --offloads disk --host-memory 1GiB --downscale 1
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from bench_common import SCENES, header

from clm.config import Config
from clm.forecast.budgets import find_budgets
from clm.forecast.forecast import CPU_PROGRAM, Forecast, foresee
from clm.run.disk_account import DiskTotals
from clm.run.host_memory import resident_bytes
from clm.run.loop import train_batch
from clm.run.open import Run, open_run
from clm.scene import Scene, load_scene
from clm.settings import load_config
from clm.units import format_bytes, parse_bytes

QUIET = 0.2  # cores that other programs may take in a quiet round
AFTER_REST = 2  # batches: what was read while the run stood still has been used
WARM_UP = 100  # images: buffers grow to their sizes, rows reach the opacity of trained ones
LANES = ("load", "compute", "send_back", "update", "plan", "exposed", "plan_exposed")
DISK = ("disk MB read", "disk MB written", "disk ms", "disk ms exposed")  # per batch; as the lanes, by 10^3


class Others:
    """Cores that other programs kept busy since this was made (Linux; 0 elsewhere)."""

    def __init__(self) -> None:
        self._before = self._busy_own_wall()

    @staticmethod
    def _busy_own_wall() -> np.ndarray:
        busy = 0.0
        if Path("/proc/stat").exists():
            ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
            busy = sum(ticks[:3]) / os.sysconf("SC_CLK_TCK")  # user, nice, system
        return np.array([busy, time.process_time(), time.perf_counter()])

    def cores(self) -> float:
        busy, own, wall = self._busy_own_wall() - self._before
        return float(max(0.0, busy - own) / wall)


def predict(forecast: Forecast) -> np.ndarray:
    """Seconds of a batch, then of each of `LANES`, then what the disk does (GB and seconds), as `clm plan` would say them now."""
    timeline = forecast.on(forecast.measured()).timeline
    assert timeline is not None
    seconds = {**timeline.lanes, "exposed": timeline.exposed, "plan_exposed": timeline.plan_exposed}
    moved = [timeline.paging.bytes_read, timeline.paging.bytes_written] if timeline.paging else [0.0, 0.0]
    disk = [*(1e-9 * size for size in moved), timeline.lanes["disk"], timeline.disk_exposed]
    return np.array([timeline.seconds, *(seconds[name] for name in LANES), *disk]) / timeline.batches


def measure(run: Run, batches: int) -> np.ndarray:
    """Seconds of a batch, then of each of `LANES` and what the disk does, on average over the next `batches` batches."""
    before, began = counted(run), time.perf_counter()
    for _ in range(batches):
        train_batch(run, run.batches.next())
    return np.array([time.perf_counter() - began, *(counted(run) - before)]) / batches


def at_rest(run: Run) -> None:
    """The disk has read all that there is room for."""
    disk, moved = run.residence.tiers.store.disk, -1
    while disk is not None and moved != (moved := disk.bytes_read + disk.bytes_written):
        time.sleep(0.2)


def counted(run: Run) -> np.ndarray:
    """Seconds of each of `LANES` so far, then what the disk did: GB read and written, seconds, seconds exposed."""
    totals = run.accounts.totals
    disk = totals.disk or DiskTotals()
    moved = [1e-9 * disk.bytes_read, 1e-9 * disk.bytes_written, disk.busy_seconds, disk.exposed_seconds]
    return np.array([*(getattr(totals.lanes, name) for name in LANES), *moved])


def compare(
    scene: Scene,
    options: dict[str, object],
    preset: str | None,
    offloads: list[str],
    rounds: int,
    batches: int,
    folder: Path,
) -> None:
    configs = {offload: load_config({**options, "offload": offload}, preset=preset) for offload in offloads}
    forecasts = {
        name: foresee(scene, config, find_budgets(config, None), shared=True) for name, config in configs.items()
    }
    predicted: dict[str, list[np.ndarray]] = {name: [] for name in configs}
    measured: dict[str, list[np.ndarray]] = {name: [] for name in configs}
    taken: dict[str, list[float]] = {name: [] for name in configs}
    with ExitStack() as stack:
        runs = {
            name: stack.enter_context(open_run(scene, beside(config), folder, lambda _event: None))
            for name, config in configs.items()
        }
        for name, run in runs.items():
            for index in scene.train:
                run.photos.cache.get(int(index))  # decoded before the clock starts, as in a run's second epoch
            measure(run, max(2, WARM_UP // configs[name].batch_size))
            if (disk := run.residence.tiers.store.disk) is not None and (placement := forecasts[name].placement):
                print(f"  {name:4} {placement.frames:,} frames predicted, {disk.frames:,} in the run", flush=True)
        for turn in range(rounds):
            for name in list(runs)[:: 1 if turn % 2 else -1]:
                at_rest(runs[name])
                others = Others()
                predicted[name].append(predict(forecasts[name]))
                measure(runs[name], AFTER_REST)
                measured[name].append(measure(runs[name], batches))
                taken[name].append(others.cores())
        for name, run in runs.items():
            show(name, run, np.array(predicted[name]), np.array(measured[name]), np.array(taken[name]))


def beside(config: Config) -> Config:
    """For a run in this process: what the process holds already, but for the program, comes on top of its host memory."""
    if config.host_memory == "auto":
        return config
    return replace(config, host_memory=str(parse_bytes(config.host_memory) + max(0, resident_bytes() - CPU_PROGRAM)))


def show(name: str, run: Run, predicted: np.ndarray, measured: np.ndarray, taken: np.ndarray) -> None:
    """Of all rounds, and of the quiet ones, in which other programs took little."""
    line = f"  {name:4} {run.residence.rows:,} Gaussians, arena {format_bytes(run.residence.arena.bytes)}"
    print(f"{line}; other programs took {np.median(taken):.2f} cores (median)")
    for what, chosen in (("all", taken >= 0), ("quiet", taken <= QUIET)):
        if chosen.sum() >= 3:
            show_rounds(what, run.schedule.config.batch_size, predicted[chosen], measured[chosen])


def show_rounds(what: str, size: int, predicted: np.ndarray, measured: np.ndarray) -> None:
    ratios = measured[:, 0] / predicted[:, 0]
    low, high = np.percentile(ratios, [10, 90])
    print(
        f"       {len(ratios)} rounds ({what}): predicted {size / np.median(predicted[:, 0]):.1f} images/s, measured "
        f"{size / np.median(measured[:, 0]):.1f}; ratio round by round {np.median(ratios):.2f} (10th {low:.2f}, 90th {high:.2f})"
    )
    pairs = zip((*LANES, *DISK), *(np.median(seconds[:, 1:], axis=0) for seconds in (predicted, measured)), strict=True)
    print("         ms per batch, predicted / measured: ", end="")
    print(", ".join(f"{lane} {1e3 * a:.2f} / {1e3 * b:.2f}" for lane, a, b in pairs if a or b))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", nargs="+", default=["fox", "caliterra"], help="names in SCENES, or folders")
    parser.add_argument("--preset")
    parser.add_argument("--offloads", nargs="+", default=["none", "host"])
    parser.add_argument("--host-memory", default="auto")
    parser.add_argument("--scratch")
    parser.add_argument("--downscale", default="2")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16], help="views per batch")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--images", type=int, default=32, help="images per round and placement")
    parser.add_argument("--gpu-memory", default="1GiB", help="auto: what --host-memory leaves")
    args = parser.parse_args()
    print(header())
    for name in args.scenes:
        scene = load_scene(SCENES / name if (SCENES / name).exists() else Path(name), downscale=args.downscale)
        for size in args.batches:
            batches = max(2, args.images // size)
            options = {"batch_size": size, "gpu_memory": args.gpu_memory, "densify_until": 0, "sh_interval": 1}
            options |= {"host_memory": args.host_memory, **({"scratch": args.scratch} if args.scratch else {})}
            options |= {
                "iterations": size * ((batches + AFTER_REST) * args.rounds + 3) + WARM_UP,
                "downscale": args.downscale,
            }
            print(f"{name}, 1/{args.downscale} size, batch {size}")
            with tempfile.TemporaryDirectory() as folder:
                compare(scene, options, args.preset, args.offloads, args.rounds, batches, Path(folder))


if __name__ == "__main__":
    main()
