"""The disk tier against memory, against what a user would try instead, and against the disk itself, on one scene.

    python scripts/bench_disk.py SCENE [--images 96] [--host-memory 4GiB] [--limit SCRIPT] [--parts disk,fio,ram,mmap,replay]
    python scripts/bench_disk.py --field 6M --view-ms 150 [--share 0.25] [--parts disk,fio,ram,disk,ram,frames]

A scene, or a field that is made for it: so many Gaussians, 324 views that see 1.5% of them each, photos of the size at which
this machine computes a view for --view-ms. Parts:
  disk      rows on disk under --host-memory, or with memory for --share of the pages
  fio       what random requests for pages, reads and writes, get of the same disk in the same minute, where it is installed
  ram       the same images with everything in memory, which was touched before
  mmap      the same with the arrays of the store in files that are mapped, the whole process under a memory limit of --host-memory
  replay    the pages that `disk` asked for, in their order, without computing: through `frames` that know it, through a `mapped`
            file, and through one that is told one view ahead what will be needed (`willneed`, MADV_WILLNEED), all touching every
            byte; misses beside those of LRU
SCRIPT runs a command under a memory limit that counts the page cache (`SCRIPT BYTES command ...`); without it the parts that need
one are skipped, and that is said. Clocks begin after a quarter as many images more, which fill the frames.
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_common import header
from scene_parts.field import PLY, SIDE, above, field_rows, write_field

from clm.config import Config
from clm.forecast.measure import render_model
from clm.kernels.rows import touch
from clm.plan.budget import page_file_bytes
from clm.plan.replay import replay
from clm.run.loop import train_batch
from clm.run.open import Run, open_run
from clm.scene.open import open_scene
from clm.settings import load_config
from clm.store import arrays
from clm.store.frames import LEAST_FRAMES, Frames
from clm.store.layout import PAGE_ROWS
from clm.store.store import Store
from clm.units import format_bytes, parse_bytes, parse_count

HERE = Path(__file__).resolve()
SEEN = 0.015  # of a field, by a view of it
ASPECT = 1.5
COUNTED = ("bytes_read", "bytes_written", "reads", "uses", "busy_seconds", "exposed_seconds")


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


def hold_share(share: float) -> None:
    """From now on stores on disk have frames for this share of their pages."""
    keep = Store.keep_on_disk

    def kept(self: Store, frames: int, scratch: Path) -> None:
        keep(self, max(LEAST_FRAMES, int(share * self.pages)), scratch)

    Store.keep_on_disk = kept  # type: ignore[method-assign]


def one(part: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train, and say what it took; `folder` keeps the trace of `disk`."""
    if part == "mmap":
        MappedPages.folder = folder
        arrays.RowPages = MappedPages  # type: ignore[assignment, misc]
    if part == "disk" and options.share:
        hold_share(options.share)
    warm = max(1, options.images // 4 // options.batch_size)
    batches = max(1, options.images // options.batch_size)
    settings = {
        "iterations": (warm + batches + 2) * options.batch_size, "batch_size": options.batch_size, "device": "cpu",
        "densify_until": 0, "sh_interval": 1, "scratch": str(folder), "offload": "disk" if part == "disk" else "host",
        "host_memory": options.host_memory if part == "disk" and not options.share else "1TiB",
    }  # fmt: skip
    if options.init_ply:
        settings["init_ply"] = str(options.init_ply)
    config = load_config(settings)
    scene = open_scene(options.scene, config)
    with open_run(scene, config, folder / f"run_{part}", lambda event: None, keep_points=False) as run:
        return measured(run, config, part, warm, batches, folder)


def measured(run: Run, config: Config, part: str, warm: int, batches: int, folder: Path) -> dict[str, Any]:
    store, totals, uses = run.residence.tiers.store, run.accounts.totals, list[np.ndarray]()
    if part == "ram":
        for name in ("m_geometry", "v_geometry", "m_colour", "v_colour"):
            getattr(store, name)[...] = 0  # the same zeros, in memory that is there
    disk, before = store.disk, {}
    if disk is not None:
        disk.trace = uses.append
    for _ in range(warm):
        train_batch(run, run.batches.next())
    first, computing = len(uses), totals.lanes.compute
    if disk is not None:
        before = {name: getattr(disk, name) for name in COUNTED}
    began = time.perf_counter()
    for _ in range(batches):
        train_batch(run, run.batches.next())
    seconds, images = time.perf_counter() - began, batches * config.batch_size
    result: dict[str, Any] = {"images": images, "seconds": seconds, "images_per_second": images / seconds}
    result["compute_ms_per_view"] = 1e3 * (totals.lanes.compute - computing) / images
    result["rows"] = run.residence.rows
    if disk is not None:
        disk.trace = None
        result |= {name: getattr(disk, name) - before[name] for name in COUNTED}
        result |= {"frames": disk.frames, "pages": store.pages}
        result["gb_s"] = 1e-9 * (result["bytes_read"] + result["bytes_written"]) / result["busy_seconds"]
        np.savez(folder / "trace.npz", pages=np.concatenate(uses), ends=np.cumsum([len(u) for u in uses]), first=first)
    status = Path("/proc/self/status").read_text().splitlines()
    result["peak_rss"] = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
    return result


# ---- the trace, without computing ----


def ticks_of(folder: Path) -> tuple[list[np.ndarray], int]:
    """The pages of each tick of `disk`, and the tick at which its clock began."""
    trace = np.load(folder / "trace.npz")
    ticks = [np.unique(tick).astype(np.int32) for tick in np.split(trace["pages"], trace["ends"][:-1])]
    return ticks, int(trace["first"])


def misses(ticks: list[np.ndarray], first: int, frames: int, by_next_use: bool) -> int:
    """Pages that are read from tick `first` on, by frames that have seen all ticks before."""
    return sum(map(len, replay(ticks, frames, by_next_use=by_next_use).reads[first:]))


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


def fio(folder: Path, size: int) -> dict[str, Any]:
    """Bandwidth of random reads and writes of a page each, four at a time, past the page cache, in files of together `size`."""
    if shutil.which("fio") is None:
        return {"skipped": "fio is not installed"}
    command = (
        f"fio --name=pages --directory={folder} --size={size // 4} --bs={page_file_bytes()} --rw=randrw --direct=1 "
        "--numjobs=4 --iodepth=1 --ioengine=psync --group_reporting --runtime=15 --time_based --output-format=json --unlink=1"
    )
    run = subprocess.run(command.split(), capture_output=True, text=True)
    if run.returncode:
        return {"failed": (run.stderr or run.stdout)[-600:]}
    job = json.loads(run.stdout[run.stdout.index("{") :])["jobs"][0]
    read, written = (1024e-9 * job[kind]["bw"] for kind in ("read", "write"))
    return {"read_gb_s": read, "written_gb_s": written, "gb_s": read + written}


# ---- all of it ----


def make_field(folder: Path, rows: int, view_ms: float) -> Path:
    """A field with photos of the size at which a view takes so long here."""
    part = round(4 * SEEN * rows)  # as dense, and larger than a view
    geometry, colour = (
        np.concatenate(each) for each in zip(*field_rows(part, SIDE * math.sqrt(4 * SEEN)), strict=True)
    )
    store = Store.from_rows(geometry, colour, moments=None)
    store.refresh(None)
    model = render_model(store, [above(SEEN, 960, 640)], 3)
    by_rows = model["render_ms_per_view"] + 1e-6 * model["render_ns_per_row"] * SEEN * rows
    pixels = max(96 * 64, 1e6 * (view_ms - by_rows) / model["render_ns_per_pixel"])
    width, height = (
        max(16, 16 * round(side / 16)) for side in (math.sqrt(ASPECT * pixels), math.sqrt(pixels / ASPECT))
    )
    print(
        f"field of {rows:,} Gaussians, photos of {width}x{height}: {by_rows:.0f} ms of {view_ms:.0f} follow rows",
        flush=True,
    )
    scene = folder / "field"
    write_field(scene, rows, SEEN, width, height)
    return scene


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path, nargs="?")
    parser.add_argument("--field", type=lambda text: parse_count(text, "--field"), help="Gaussians of a field to make")
    parser.add_argument("--view-ms", type=float, default=150.0, help="of computing, for a view of the field")
    parser.add_argument("--share", type=float, help="of the pages in memory, whatever --host-memory is")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--host-memory", default="4GiB")
    parser.add_argument("--init-ply", type=Path)
    parser.add_argument("--frames", type=int, help="of the replays; those of the run where it is not given")
    parser.add_argument("--limit", type=Path, help="script that runs a command under a memory limit")
    parser.add_argument("--parts", default="disk,fio,ram,mmap,replay")
    parser.add_argument(
        "--folder", type=Path, help="for scratch files; where it is not given: one beside the scene, or here"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(part(options, options.folder)))
        return 0
    if (options.scene is None) == (options.field is None):
        parser.error("name a scene, or --field")
    print(header())
    given = options.folder or (options.scene.parent if options.scene else Path())
    given.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given, prefix="bench-disk-") as folder:
        if options.field:
            options.scene = make_field(Path(folder), options.field, options.view_ms)
            options.init_ply, options.share = options.scene / PLY, options.share or 0.25
        run_parts(options, Path(folder))
    return 0


def run_parts(options: argparse.Namespace, folder: Path) -> None:
    results: dict[str, list[dict[str, Any]]] = {}
    for name in options.parts.replace("replay", "frames,mapped,willneed").split(","):
        if name == "fio":
            pages = results["disk"][-1].get("pages", 3000) if "disk" in results else 3000
            result = fio(folder, pages * page_file_bytes())
        else:
            if name == "frames" and not options.frames and "disk" in results:
                options.frames = results["disk"][-1].get("frames")
            result = in_a_process(name, options, folder)
        results.setdefault(name, []).append(result)
        print(f"{name:9} {json.dumps(result)}", flush=True)
    print(*summary(results), sep="\n")
    if "reads" in results.get("disk", [{}])[-1]:
        run, (ticks, first) = results["disk"][-1], ticks_of(folder)
        best, lru = (misses(ticks, first, run["frames"], by) for by in (True, False))
        print(
            f"trace: {run['uses']:,} uses of pages over {run['frames']:,} frames; misses by next use of all of it {best:,}, "
            f"LRU {lru:,}, the run {run['reads']:,}: {run['reads'] / lru:.3f} of LRU's (all three from the start of training on; "
            "counted, like everything, behind its first quarter)"
        )


def summary(results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What the parts say of each other; of parts that ran more than once, means."""

    def mean(name: str, key: str) -> float:
        values = [result[key] for result in results.get(name, []) if key in result]
        return sum(values) / len(values) if values else math.nan

    lines, speed = [], {name: mean(name, "images_per_second") for name in ("disk", "ram", "mmap")}
    if not math.isnan(speed["disk"]):
        lines.append(
            f"disk: {speed['disk']:.2f} images/s, computing a view takes {mean('disk', 'compute_ms_per_view'):.0f} ms"
        )
        if not math.isnan(speed["ram"]):
            own = f"computing a view takes {mean('ram', 'compute_ms_per_view'):.0f} ms there"
            lines.append(
                f"of everything in memory ({speed['ram']:.2f} images/s, {own}): {speed['disk'] / speed['ram']:.2f}"
            )
        if not math.isnan(speed["mmap"]) and not math.isnan(speed["ram"]):
            exposed = [1 / speed[name] - 1 / speed["ram"] for name in ("disk", "mmap")]
            lines.append(f"beyond memory, of mapped files' seconds: {exposed[0] / exposed[1]:.2f}")
    for name, when in (("disk", "while something moved"), ("frames", "without computing")):
        if not math.isnan(moved := mean(name, "gb_s")) and not math.isnan(disk := mean("fio", "gb_s")):
            lines.append(f"pages moved at {moved:.2f} GB/s {when}: {moved / disk:.2f} of fio's {disk:.2f}")
    return lines


def in_a_process(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    command = [sys.executable, str(HERE), str(options.scene), "--one", name, "--folder", str(folder)]
    for flag in ("images", "batch_size", "host_memory", "init_ply", "frames", "share"):
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


def part(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    if options.one in ("disk", "ram", "mmap"):
        return one(options.one, options, folder)
    ticks, first = ticks_of(folder)
    ticks = ticks[first:]
    frames = options.frames or (parse_bytes(options.host_memory) - (400 << 20)) // page_file_bytes()
    if options.one == "frames":
        result = replay_frames(ticks, frames, folder)
    else:
        result = replay_mapped(ticks, folder, 4 if options.one == "willneed" else 0)
    return result | {"memory": format_bytes(frames * page_file_bytes())}


if __name__ == "__main__":
    sys.exit(main())
