"""What exports take: seconds, peak memory against the stated bound, bytes on disk.

    python scripts/bench_export.py [--rows 1M] [--folder DIR] [--only lod-meta.json,.sog] [--options "--sh 0"] [--model FILE]

The model is made up, in the order of a run's PLY, unless --model names one. A SOG's images are held whole, so beyond 2 M rows
`.sog` is written in files of 1 M (--max-per-file); so is `.glb` beyond the 4.3 GB where the format ends. Each export is a process
of its own; its peak is the system's (ru_maxrss).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from bench_common import header

from clm.formats.bounds import export_bytes
from clm.formats.ply_write import write_ply
from clm.formats.registry import format_of, open_rows
from clm.formats.rows import Chunk
from clm.formats.split import Split
from clm.units import format_bytes, parse_count

_PROGRAM = 90 << 20  # interpreter, numpy, kernels
_FILE_ROWS = 1_000_000  # where the model is divided
_GLB_ROWS = 17_000_000  # 4.3 GB, where the format ends
_BLOCK = 1 << 16


def made_up(count: int) -> Iterator[Chunk]:
    """Rows of a hilly ground of 1 unit per 30 rows or so, in strips: near rows are near in the file, as in a run's PLY."""
    rng, side = np.random.default_rng(0), np.sqrt(count) / 30
    for first in range(0, count, _BLOCK):
        rows = min(_BLOCK, count - first)
        geometry, colour = np.zeros((rows, 12), np.float32), np.zeros((rows, 48), np.float32)
        x, y = side * (first + np.arange(rows)) / count, rng.uniform(0, side, rows)
        geometry[:, :3] = np.column_stack([x, y, np.sin(x) + np.cos(0.7 * y) + 0.02 * rng.normal(size=rows)])
        geometry[:, 3:7] = rng.normal(size=(rows, 4))
        geometry[:, 7:10] = rng.normal(-4, 0.6, (rows, 3)) + 3 * (rng.random((rows, 1)) < 0.005)
        geometry[:, 10] = rng.normal(1, 2, rows)
        colour[:, :3] = np.sin(np.outer(x, [1, 2, 3])) + 0.2 * rng.normal(size=(rows, 3))
        colour[:, 3:] = rng.normal(size=(rows, 45)) * 0.1 * rng.random((rows, 1)) ** 2
        yield geometry, colour


def measured(command: list[str]) -> tuple[float, int]:
    """Seconds and peak bytes of a process that has to succeed."""
    began = time.monotonic()
    process = os.spawnv(os.P_NOWAIT, command[0], command)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed ({status})")
    return time.monotonic() - began, usage.ru_maxrss << 10


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1M")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", default="lod-meta.json,.sog")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--host-memory", default="auto")
    parser.add_argument("--options", default="", help="more for every export, such as '--sh 0'")
    arguments = parser.parse_args()
    print(header())
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder, rows = Path(name), parse_count(arguments.rows, "--rows")
        model = arguments.model or folder / "model.ply"
        if arguments.model is None:
            write_ply(model, made_up(rows))
        else:
            rows = open_rows(model).count
        print(f"{rows:,} Gaussians, {format_bytes(model.stat().st_size)}")
        for ending in arguments.only.split(","):
            out = folder / "out" / (f"scene{ending}" if ending.startswith(".") else ending)
            command = [sys.executable, "-m", "clm", "export", str(model), str(out), "-q", "--scratch", str(folder)]
            command += ["--host-memory", arguments.host_memory, *arguments.options.split()]
            divided = (ending == ".sog" and rows > 2 * _FILE_ROWS) or (ending == ".glb" and rows > _GLB_ROWS)
            if divided:
                command += ["--max-per-file", str(_FILE_ROWS)]
            seconds, peak = measured(command)
            split = Split(max_per_file=_FILE_ROWS) if divided else Split()
            most = _PROGRAM + export_bytes(format_of(out), rows, split)
            print(
                f"{ending:14} {seconds:7.1f} s  {1e6 * seconds / rows:6.1f} s per million  peak {format_bytes(peak)} "
                f"of {format_bytes(most)} at most ({'held' if peak <= most else 'EXCEEDED'})  {format_bytes(size(out.parent))}",
                flush=True,
            )
            shutil.rmtree(out.parent)  # the next one may need the room


if __name__ == "__main__":
    main()
