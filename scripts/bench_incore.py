"""Everything resident against a plain in-core training loop of the same kernels: batch by batch in turns, in one process.

The plain loop is what a trainer without any out-of-core machinery does: all rows in one array, every view rasterised from
all of them, gradients of all of them, dense Adam over all of them. It has no visible sets, no plan, no arena and no lanes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_common import SCENES, header

from clm.config import Config
from clm.device.interface import Arena
from clm.formats.start import initial_store
from clm.kernels import rows as row_kernels
from clm.kernels.rows import colour_columns
from clm.optim.schedules import sh_degree_at
from clm.plan.batch import batch_views
from clm.render import Target, train_view
from clm.run.loop import train_batch
from clm.run.open import Run, open_run
from clm.scene import Scene, load_scene
from clm.settings import load_config
from clm.store.layout import GRAD_DRAWN


class PlainLoop:
    """All rows in one array, in the order of the store."""

    def __init__(self, run: Run):
        self.run, self.config = run, run.schedule.config
        self.store = initial_store(run.scene, self.config, lambda _text: None, scratch=Path(tempfile.gettempdir()))
        self.rows = np.arange(self.store.rows, dtype=np.int32)
        self.arena = Arena(0)  # the rasteriser takes rows and gradients from here: the store's own arrays
        self.arena.geometry, self.arena.colour = self.store.geometry, self.store.colour
        self.arena.grad_geometry = np.zeros((self.store.rows, 16), np.float32)
        self.arena.grad_colour = np.zeros((self.store.rows, 48), np.float32)
        self.entries = np.empty((self.store.rows, 4), np.float32)
        self.iteration = self.step = 0

    def train_batch(self) -> float:
        """Seconds of one optimizer step."""
        run, config, began = self.run, self.config, time.perf_counter()
        degree = sh_degree_at(config, self.iteration)
        columns = colour_columns(degree)
        for view_id in batch_views(run.scene.train, config.seed, self.iteration, config.batch_size):
            view = run.scene.views[view_id]
            target = Target(run.photos.cache.get(view_id), None, (0.0, 0.0, 0.0))
            train_view(run.residence.rasterizer, self.arena, self.rows, view.camera, degree, target)
        self.arena.grad_geometry[:, GRAD_DRAWN] = 1  # dense: rows that no view drew take the step, too
        constants = run.schedule.adam.at(self.step + 1, config.batch_size)
        row_kernels.adam(self.store, constants, self.rows, self.arena, None, columns, None, self.entries)
        self.arena.grad_geometry[:] = 0
        self.arena.grad_colour[:, :columns] = 0
        self.iteration, self.step = self.iteration + config.batch_size, self.step + 1
        return time.perf_counter() - began


def compare(scene: Scene, batch: int, images: int, model: Path | None) -> None:
    options = {"iterations": images, "batch_size": batch, "offload": "none", "densify_until": 0}
    options |= {"init_ply": str(model)} if model else {}
    config: Config = load_config(options)
    with tempfile.TemporaryDirectory() as folder, open_run(scene, config, Path(folder), lambda _event: None) as run:
        for index in scene.train:
            run.photos.cache.get(int(index))
        plain = PlainLoop(run)
        seconds: dict[str, list[float]] = {"plain": [], "clm": []}
        while run.schedule.image + batch <= images:
            turns = [("plain", plain.train_batch), ("clm", lambda: timed(run))]
            for name, step in turns if len(seconds["clm"]) % 2 else reversed(turns):
                seconds[name].append(step())
        totals, rows = run.accounts.totals, run.residence.rows
    exposed = totals.lanes.plan_exposed / totals.batch_seconds
    warm = max(2, 33 // batch)
    plain_ms, clm_ms = (1e3 * float(np.median(seconds[name][warm:])) / batch for name in ("plain", "clm"))
    ratio = float(np.median(np.array(seconds["plain"][warm:]) / np.array(seconds["clm"][warm:])))
    print(
        f"  {rows:7,} Gaussians, batch {batch:2}: plain {plain_ms:6.2f} ms per image, everything resident {clm_ms:6.2f} ms; "
        f"speed relative to plain {ratio:.3f}; cull + order + plan exposed {100 * exposed:.1f}%",
        flush=True,
    )


def timed(run: Run) -> float:
    began = time.perf_counter()
    train_batch(run, run.batches.next())
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", nargs="+", default=["fox", "caliterra"])
    parser.add_argument("--downscale", type=int, default=2)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument(
        "--train-images", type=int, default=2000, help="also from a model trained on so many images; 0: not"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    args = parser.parse_args()
    print(header())
    for name in args.scenes:
        scene = load_scene(SCENES / name, downscale=args.downscale)
        with tempfile.TemporaryDirectory() as folder:
            for train_images in dict.fromkeys((0, args.train_images)):
                model = trained(name, args.downscale, train_images, Path(folder)) if train_images else None
                print(
                    f"{name}, 1/{args.downscale} size, {f'trained on {train_images:,} images' if model else 'initial points'}"
                )
                for batch in args.batches:
                    compare(scene, batch, args.images, model)


def trained(name: str, downscale: int, images: int, folder: Path) -> Path:
    """The PLY of a short training run."""
    options = ["--downscale", str(downscale), "--iterations", str(images), "-o", str(folder), "-q"]
    subprocess.run([sys.executable, "-m", "clm.cli", "train", str(SCENES / name), *options], check=True)
    return folder / "point_cloud" / f"iteration_{images}" / "point_cloud.ply"


if __name__ == "__main__":
    main()
