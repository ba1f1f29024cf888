"""How long it takes to begin with many rows, and what memory: COLMAP points, first rows, a PLY out and in, sorted and shuffled.

    python scripts/bench_start.py [--points 3000000] [--host-memory 512MiB] [--folder DIR]

Peaks are of the resident set, sampled 300 times a second, above what was there when a step began; so what a step leaves behind
(points, frames) counts in it alone. Rows are in host memory as far as --host-memory goes, else on disk.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from bench_common import header
from doubles.colmap_points import write_points

from clm import kernels
from clm.config import Config
from clm.formats.ply_write import write_ply
from clm.formats.start import initial_store
from clm.kernels.memory import return_freed_memory
from clm.progress import unseen
from clm.run.host_memory import resident_bytes
from clm.run.room import Room
from clm.scene import Scene
from clm.scene.points import read_points
from clm.store.init import PointRows
from clm.store.store import Store
from clm.units import format_rows, parse_bytes, parse_count


@contextmanager
def step(name: str, rows: int) -> Iterator[None]:
    before, peak, done = resident_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.003):
            peak[0] = max(peak[0], resident_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    began, cpu = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        done.set()
        thread.join()
        above = peak[0] - before
        print(
            f"{name:40} {seconds:8.1f} s {cpu:8.1f} s of CPU {above / 2**20:8.0f} MiB {above / rows:6.0f} B/row",
            flush=True,
        )


def town(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points on a bumpy ground and on walls, in no order, and some far outside."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-100, 100, (count, 3))
    points[:, 2] = 5 * np.sin(points[:, 0] / 7) * np.cos(points[:, 1] / 9) + rng.normal(0, 0.05, count)
    points[: count // 1000] *= 50
    return points, rng.integers(0, 256, (count, 3), dtype=np.uint8)


def measure(count: int, room: Room, folder: Path) -> None:
    file, rng = folder / "points3D.bin", np.random.default_rng(1)
    write_points(file, rng.permutation(2 * count)[:count].astype(np.uint64), *town(count), rng.integers(2, 9, count))
    with step("points3D.bin, ids in no order", count):
        places, colours, _ = read_points(file, unseen)
    points = places.astype(np.float32)
    del places
    file.unlink()

    def start(**options: object) -> Store:
        none = np.zeros(0, np.int32)
        scene = Scene(folder, folder, (), none, none, points, colours, np.zeros(3), 1.0, ())
        config = Config(**options)  # type: ignore[arg-type]
        return initial_store(scene, config, print, scratch=folder, make=room.empty, bucket_rows=room.bucket_rows)

    with step("first rows from points", count):
        store = start()
    print(f"{'':40} rows {'on disk' if store.disk else 'in memory'}")
    with step("a PLY of the store", count):
        write_ply(folder / "rows.ply", store.exact_chunks(None))
    store.close()
    del store
    with step("first rows from that PLY", count):
        start(init_ply=str(folder / "rows.ply")).close()
    source = PointRows(points[: min(count, 1 << 20)], colours, 0)
    order = rng.permutation(min(count, 1 << 20)).astype(np.int32)
    parts = -(-count // len(order))
    write_ply(folder / "rows.ply", (chunk for _ in range(parts) for chunk in source.chunks(order)))
    with step("first rows from a shuffled PLY", parts * len(order)):
        start(init_ply=str(folder / "rows.ply")).close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--points", default="3M")
    parser.add_argument("--host-memory", default="512MiB", help="for rows")
    parser.add_argument("--folder", type=Path, help="for the files; default: a temporary one")
    options = parser.parse_args()
    return_freed_memory()
    count = parse_count(options.points, "--points")
    print(header())
    print(f"{format_rows(count)} points, {kernels.get_threads()} threads, {options.host_memory} for rows")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(count, Room(parse_bytes(options.host_memory), Path(folder)), Path(folder))


if __name__ == "__main__":
    main()
