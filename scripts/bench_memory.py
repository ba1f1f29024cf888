"""Peak memory of a run that grows: RSS by phase beside what the receipt says, and how long a rebuild takes.

    python scripts/bench_memory.py [--rows 1000000] [--grow-to 2500000] [--seen 0.1] [--host-memory auto] [--images 160]

A flat field of Gaussians (a PLY) under a grid of cameras with small photos; thresholds so low that whatever was seen grows at
every densification until --grow-to. RSS is read 500 times a second by a thread; what was running then names the peak.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_common import header
from scene_parts.field import PLY, write_field

from clm.run import loop
from clm.run import open as opening
from clm.run.evaluate import Evaluation
from clm.run.grow import Growth
from clm.run.host_memory import resident_bytes
from clm.run.loop import train
from clm.run.residence import Residence
from clm.run.run_files import RunFiles
from clm.run.saver import Saver
from clm.scene.open import open_scene
from clm.settings import load_config
from clm.strategy import default

PHASES: dict[Any, tuple[str, ...]] = {  # what is watched, by whose it is
    opening: ("initial_store",),
    loop: ("train_batch",),
    default: ("decide", "reset_opacity"),
    RunFiles: ("start", "finish"),
    Residence: ("_refresh", "_place", "_move_in"),
    Growth: ("rebuild",),
    Evaluation: ("run",),
    Saver: ("save",),
}


class Watch:
    """A thread that reads RSS; the phases that the main thread is in; peak and seconds of each."""

    def __init__(self) -> None:
        self.stack: list[str] = ["start"]
        self.peaks: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self.done.wait(0.002):
            phase, now = " > ".join(self.stack), resident_bytes()
            self.peaks[phase] = max(self.peaks.get(phase, 0), now)

    def phase(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*arguments: Any, **named: Any) -> Any:
            self.stack.append(name)
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.stack.pop()
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

        return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--grow-to", type=int, default=2_500_000)
    parser.add_argument("--seen", type=float, default=0.1, help="share of the field that a view sees")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--host-memory", default="auto")
    parser.add_argument("--offload", default="auto")
    parser.add_argument("--json", action="store_true", help="one line of JSON, nothing else")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-memory-") as scratch:
        result = measure(Path(scratch), options)
    print(json.dumps(result) if options.json else "\n".join([header(), *table(result)]))


def measure(scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One run: what it held, what it says it held, and what took how long."""
    field, run, events = scratch / "field", scratch / "run", list[Any]()
    write_field(field, options.rows, options.seen)
    gc.collect()
    config = load_config(
        {
            "iterations": options.images, "init_ply": str(field / PLY), "grow_screen_gradient": 1e-12,
            "max_gaussians": options.grow_to, "densify_from": 10, "densify_every": 20, "densify_until": options.images - 20,
            "opacity_reset_every": 0, "prune_scale": 1e6, "save_every": 60, "host_memory": options.host_memory,
            "offload": options.offload, "device": "cpu", "keep_checkpoints": 1,
        }
    )  # fmt: skip
    watch = Watch()
    for owner, names in PHASES.items():
        for name in names:
            label = f"{owner.__name__}.{name}" if isinstance(owner, type) else name
            setattr(owner, name, watch.phase(label, getattr(owner, name)))
    scene = open_scene(field, config)
    base = resident_bytes()
    watch.thread.start()
    began = time.perf_counter()
    train(scene, config, run, events.append)
    watch.done.set()
    report = json.loads((run / "report.json").read_text())
    shutil.rmtree(run)
    texts = [event.text for event in events if type(event).__name__ == "Message"]
    return {
        "seconds": time.perf_counter() - began, "base": base, "peaks": watch.peaks, "phase_seconds": watch.seconds,
        "rows": report["num_gaussians"], "peak": report["peak"], "messages": texts,
    }  # fmt: skip


def table(result: dict[str, Any]) -> list[str]:
    """The result as text."""
    mib, base, peak = 2.0**20, result["base"], result["peak"]
    base = peak.get("base_bytes", base)
    phase = max(result["peaks"], key=lambda name: result["peaks"][name])
    above = peak["rss_bytes"] - base
    # Receipts before this benchmark counted what stands in for a device on the CPU apart, and knew no base.
    receipt = peak["host_bytes"] + (0 if "base_bytes" in peak else peak["device_bytes"])
    lines = [*result["messages"], ""]
    lines.append(f"rows at the end     {result['rows']:,} in {result['seconds']:.0f} s")
    lines.append(f"RSS at the start    {base / mib:8.0f} MiB")
    lines.append(f"peak RSS            {peak['rss_bytes'] / mib:8.0f} MiB, above the start {above / mib:.0f} MiB")
    lines.append(f"receipt             {receipt / mib:8.0f} MiB")
    lines.append(f"RSS against receipt {100 * (above / receipt - 1):+8.1f} %, peak in: {phase}")
    lines += ["", "peak above the start, by phase (MiB)"]
    for name, value in sorted(result["peaks"].items(), key=lambda item: -item[1])[:12]:
        lines.append(f"  {(value - base) / mib:8.0f}  {name}")
    lines += ["", "seconds, by phase"]
    lines += [f"  {value:8.2f}  {name}" for name, value in sorted(result["phase_seconds"].items(), key=lambda x: -x[1])]
    return lines


if __name__ == "__main__":
    main()
