"""The disk tier against what a user would try instead, on one scene.

    python scripts/bench_disk.py SCENE [--images 200] [--host-memory 4GiB] [--limit SCRIPT] [--parts disk,ram,mmap,replay]

`disk`: rows on disk under --host-memory. `ram`: the same images with everything in memory. `mmap`: the same with the arrays of
the store in files that are mapped, the whole process under a memory limit of --host-memory. `replay`: the pages that `disk`
asked for, in their order, without computing: through frames that know it, through a mapped file, and through one that is told one
view ahead what will be needed (MADV_WILLNEED), all touching every byte; misses beside those of LRU. SCRIPT runs a command
under a memory limit that counts the page cache (`SCRIPT BYTES command ...`); without it the parts that need one are skipped, and
that is said. The bandwidth of mixed random requests is that of `fio` in the same minute, where it is installed.
"""

from __future__ import annotations

import argparse
import json
import mmap
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from bench_common import header

from clm.config import load_config
from clm.kernels.rows import touch
from clm.plan.budget import page_file_bytes
from clm.plan.replay import replay
from clm.run.accounts import Accounts
from clm.run.loop import train
from clm.run.saver import Saver
from clm.scene.open import open_scene
from clm.store import arrays
from clm.store.frames import Frames
from clm.store.layout import PAGE_ROWS
from clm.units import format_bytes, parse_bytes

HERE = Path(__file__).resolve()


# ---- one run, in a process of its own ----


class MappedPages:
    """Stands in for `RowPages`: rows in a mapped file, zero until they are written."""

    folder: Path

    def __init__(self, rows: int, width: int, dtype: Any = np.float32):
        self._width, self._dtype = width, np.dtype(dtype)
        self._file = tempfile.NamedTemporaryFile(dir=self.folder)  # noqa: SIM115 - as long as the store
        self.array = np.empty((0, width), dtype)
        self.grow(rows)

    def grow(self, rows: int) -> None:
        self.array = np.empty((0, self._width), self._dtype)
        self._file.truncate(max(1, rows) * self._width * self._dtype.itemsize)
        self.array = np.memmap(self._file.name, self._dtype, "r+", shape=(max(1, rows), self._width))[:rows]

    def release(self, first: int, last: int) -> None:
        """Files stay as long as they are."""


def one(part: str, scene: Path, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Train, and say what it took; `folder` keeps the trace of `disk`."""
    uses: list[np.ndarray] = []
    if part == "mmap":
        MappedPages.folder = folder
        arrays.RowPages = MappedPages  # type: ignore[assignment, misc]
    options = {**options, "offload": "disk" if part == "disk" else "host"}
    if part != "disk":
        options["host_memory"] = "1TiB"
    config = load_config({**options, "device": "cpu", "densify_until": 0, "scratch": str(folder)})
    begin, began = Accounts.begin, [0.0]
    measured: dict[str, Any] = {}

    def watched(self: Accounts) -> None:
        begin(self)
        disk = self._residence.tiers.store.disk
        if disk is not None:
            disk.trace = uses.append
            disk.drain([])
            measured.update(bytes_read=-disk.bytes_read, bytes_written=-disk.bytes_written, reads=-disk.reads)
            measured.update(uses=-disk.uses, busy=-disk.busy_seconds, exposed=-disk.exposed_seconds)
        began[0] = time.perf_counter()

    closing = Accounts.close

    def done(self: Accounts) -> None:
        measured["seconds"] = time.perf_counter() - began[0]
        disk, totals = self._residence.tiers.store.disk, self.totals
        measured.update(rows=self._residence.rows, compute=totals.lanes.compute, batches=totals.batch_seconds)
        if disk is not None:
            disk.trace = None
            for name in ("bytes_read", "bytes_written", "reads", "uses"):
                measured[name] += getattr(disk, name)
            measured["busy"] += disk.busy_seconds
            measured["exposed"] += disk.exposed_seconds
            measured.update(frames=disk.frames, pages=self._residence.tiers.store.pages)
        closing(self)
        raise _Enough  # evaluating and saving are other measurements

    Accounts.begin, Accounts.close = watched, done  # type: ignore[method-assign]
    Saver.save = lambda self: None  # type: ignore[method-assign]
    opened = open_scene(scene, config)
    with suppress(_Enough):
        train(opened, config, folder / f"run_{part}", lambda event: None)
    status = Path("/proc/self/status").read_text().splitlines()
    measured["peak_rss"] = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
    if uses:
        np.savez(folder / "trace.npz", pages=np.concatenate(uses), ends=np.cumsum([len(u) for u in uses]))
    return measured


class _Enough(Exception):
    pass


# ---- the trace, without computing ----


def ticks_of(folder: Path) -> list[np.ndarray]:
    trace = np.load(folder / "trace.npz")
    return [np.unique(tick).astype(np.int32) for tick in np.split(trace["pages"], trace["ends"][:-1])]


def replay_frames(ticks: list[np.ndarray], frames: int, folder: Path) -> dict[str, Any]:
    """The uses through frames that know them, every page changed."""
    pages = int(max(tick.max() for tick in ticks if len(tick))) + 1
    tier = Frames(frames, "f32", PAGE_ROWS, folder)
    fill = np.full(pages, PAGE_ROWS, np.int32)
    tier.set_fill(np.arange(pages), fill)
    step = tier.most_pages
    for first in range(0, pages, step):  # the file has them all
        with tier.hold(np.arange(first, min(first + step, pages)), True):
            pass
    tier.expect(ticks)
    before, began = (tier.reads, tier.bytes_read, tier.bytes_written), time.perf_counter()
    for k, tick in enumerate(ticks):
        with tier.hold(tick, True):
            for frame in tier.frames_of(tick).tolist():
                for array in tier.arrays:
                    rows = array[frame * PAGE_ROWS : (frame + 1) * PAGE_ROWS].reshape(-1)
                    touch(rows.view(np.float32))
        tier.passed(k)
    seconds = time.perf_counter() - began
    moved = tier.bytes_read - before[1] + tier.bytes_written - before[2]
    result = {"seconds": seconds, "reads": tier.reads - before[0], "gb_s": 1e-9 * moved / seconds}
    tier.close()
    return result


def replay_mapped(ticks: list[np.ndarray], folder: Path, ahead: int) -> dict[str, Any]:
    """The same through a mapped file, told `ahead` ticks before what will be needed."""
    pages, size = int(max(tick.max() for tick in ticks if len(tick))) + 1, page_file_bytes()
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        zeros = bytes(size)
        for _ in range(pages):
            file.write(zeros)
        file.flush()
        with mmap.mmap(file.fileno(), 0) as mapped:
            mapped.madvise(mmap.MADV_RANDOM)
            whole, began = np.frombuffer(mapped, np.float32), time.perf_counter()
            for k, tick in enumerate(ticks):
                if ahead and k + ahead < len(ticks):
                    for page in ticks[k + ahead].tolist():
                        mapped.madvise(mmap.MADV_WILLNEED, page * size, size)
                for page in tick.tolist():
                    touch(whole[page * size // 4 : (page + 1) * size // 4])
            seconds = time.perf_counter() - began
            del whole
    return {"seconds": seconds}


def fio(folder: Path) -> str:
    """Bandwidth of random reads and writes of a page each, four at a time, past the page cache."""
    if shutil.which("fio") is None:
        return "fio is not installed: not measured"
    command = (
        f"fio --name=pages --directory={folder} --size=4g --bs={page_file_bytes()} --rw=randrw --direct=1 --numjobs=4 "
        "--iodepth=1 --ioengine=psync --group_reporting --runtime=15 --time_based --output-format=json --unlink=1"
    )
    run = subprocess.run(command.split(), capture_output=True, text=True, check=True)
    job = json.loads(run.stdout[run.stdout.index("{") :])["jobs"][0]
    both = [1024e-9 * job[kind]["bw"] for kind in ("read", "write")]
    return f"fio, {page_file_bytes():,} byte requests: {both[0]:.2f} GB/s read + {both[1]:.2f} GB/s written = {sum(both):.2f}"


# ---- all of it ----


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--host-memory", default="4GiB")
    parser.add_argument("--init-ply", type=Path)
    parser.add_argument("--frames", type=int, help="of the replays; those of the run where it is not given")
    parser.add_argument("--limit", type=Path, help="script that runs a command under a memory limit")
    parser.add_argument("--parts", default="disk,ram,mmap,replay")
    parser.add_argument(
        "--folder", type=Path, help="for scratch files; where they are made by default: beside the scene"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(dir=options.scene.parent))
    folder.mkdir(parents=True, exist_ok=True)
    if options.one:
        return part(options, folder)
    print(header())
    results: dict[str, Any] = {}
    for name in options.parts.split(","):
        for each in ("frames", "mapped", "willneed") if name == "replay" else (name,):
            results[each] = in_a_process(each, options, folder)
            print(f"{each:9} {json.dumps(results[each])}", flush=True)
    if "replay" in options.parts:
        print(fio(folder))
        ticks = ticks_of(folder)
        frames = options.frames or results["disk"]["frames"]
        best, lru = (replay(ticks, frames, by_next_use=by) for by in (True, False))
        print(
            f"trace: {len(ticks):,} ticks, {best.uses:,} uses of pages over {frames:,} frames; misses by next use of all of it "
            f"{best.misses:,}, LRU {lru.misses:,}, the run {results.get('disk', {}).get('reads', 'unknown')}"
        )
    return 0


def in_a_process(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    command = [sys.executable, str(HERE), str(options.scene), "--one", name, "--folder", str(folder)]
    for flag in ("images", "batch_size", "host_memory", "init_ply", "frames"):
        if getattr(options, flag) is not None:
            command += [f"--{flag.replace('_', '-')}", str(getattr(options, flag))]
    if name in ("mmap", "mapped", "willneed"):
        if options.limit is None:
            return {"skipped": "no --limit: without one the page cache takes all of the memory"}
        command = ["bash", str(options.limit), str(parse_bytes(options.host_memory)), *command]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr[-600:]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def part(options: argparse.Namespace, folder: Path) -> int:
    if options.one in ("disk", "ram", "mmap"):
        settings = {"iterations": options.images, "batch_size": options.batch_size, "host_memory": options.host_memory}
        if options.init_ply:
            settings["init_ply"] = str(options.init_ply)
        result = one(options.one, options.scene, folder, settings)
    else:
        ticks = ticks_of(folder)
        frames = options.frames or (parse_bytes(options.host_memory) - (400 << 20)) // page_file_bytes()
        result = (
            replay_frames(ticks, frames, folder)
            if options.one == "frames"
            else replay_mapped(ticks, folder, 4 if options.one == "willneed" else 0)
        )
        result["memory"] = format_bytes(frames * page_file_bytes())
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
