"""What exports take: seconds, peak memory against the stated bound, bytes on disk.

    python scripts/bench_export.py [--rows 1M] [--folder DIR] [--only lod-meta.json,.sog] [--model FILE]

The model is made up, in the order of a run's PLY, unless --model names one. A SOG's images are held whole, so beyond 2 M rows
`.sog` is written in files of 1 M (--max-per-file). Each export is a process of its own; its peak is the system's (ru_maxrss).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from bench_common import header

from clm.formats.lod_write import FIXED_BYTES
from clm.formats.ply_write import write_ply
from clm.formats.rows import Chunk
from clm.formats.sog_write import ENCODED_BYTES
from clm.units import format_bytes, parse_count

_PROCESS = 250 << 20  # interpreter, numpy, kernels, and the chunks under way
_BUCKET = 250 << 20  # rows that are brought into order at a time
_FILE_ROWS = 1_000_000  # of a SOG, where the model is divided
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


def bound(ending: str, rows: int) -> int:
    """Bytes that an export may take, as the modules state it."""
    in_file = min(rows, _FILE_ROWS) if rows > 2 * _FILE_ROWS else rows
    beside = {"lod-meta.json": 32 * rows + FIXED_BYTES, ".sog": 48 * rows + ENCODED_BYTES * in_file + FIXED_BYTES}
    return _PROCESS + _BUCKET + beside.get(ending, 28 * rows)


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
    arguments = parser.parse_args()
    print(header())
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder, rows = Path(name), parse_count(arguments.rows, "--rows")
        model = arguments.model or folder / "model.ply"
        if arguments.model is None:
            write_ply(model, made_up(rows))
        else:
            from clm.formats.registry import open_rows

            rows = open_rows(model).count
        print(f"{rows:,} Gaussians, {format_bytes(model.stat().st_size)}")
        for ending in arguments.only.split(","):
            out = folder / "out" / (f"scene{ending}" if ending.startswith(".") else ending)
            command = [
                sys.executable,
                "-m",
                "clm",
                "export",
                str(model),
                str(out),
                "-q",
                "--host-memory",
                arguments.host_memory,
            ]
            command += ["--scratch", str(folder)]
            if ending == ".sog" and rows > 2 * _FILE_ROWS:
                command += ["--max-per-file", str(_FILE_ROWS)]
            seconds, peak = measured(command)
            most = bound(ending, rows)
            print(
                f"{ending:14} {seconds:7.1f} s  {1e6 * seconds / rows:6.1f} s per million  peak {format_bytes(peak)} "
                f"of {format_bytes(most)} at most ({'held' if peak <= most else 'EXCEEDED'})  {format_bytes(size(out.parent))}",
                flush=True,
            )


if __name__ == "__main__":
    main()
