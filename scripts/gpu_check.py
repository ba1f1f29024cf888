"""Proves the CUDA path on a machine that has a GPU, in eight minutes, and writes a dated report (markdown and JSON).

Each part runs in a process of its own with a limit on its time: one that fails, hangs or breaks the device is reported so,
and the others go on; the report is written after every part. Exit code 1 unless all passed. `--double` runs the same parts
on tiny sizes with doubles in place of CUDA and gsplat's kernels: that proves this script, measures nothing, and
is never written into docs/.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # clm itself, and scripts.doubles

from bench_common import ROOT, header
from gpu_parts import kernels, speed, training
from gpu_parts.check import Check, Findings, use_doubles


class Part(NamedTuple):
    title: str
    seconds: int  # its limit
    work: Callable[[Check, Findings], None]


PARTS = {
    "facts": Part("The machine", 40, kernels.facts),
    "compile": Part("gsplat compiles or loads", 240, kernels.compile_gsplat),
    "parity": Part("CPU backend, gsplat and twin agree", 60, kernels.parity),
    "loss": Part("Loss on the device", 30, kernels.image_loss),
    "adam": Part("Adam on the device", 40, kernels.device_adam),
    "placements": Part("none, host and partly resident train the same", 60, training.placements),
    "resume": Part("A resumed run equals an uninterrupted one", 60, training.resume),
    "memory": Part("Out of device memory", 60, training.out_of_memory),
    "speed": Part("In-core loop, everything resident, host offload", 120, speed.speed),
    "predicted": Part("Predicted and measured", 40, speed.predicted),
    "ramp": Part("Capacity", 200, speed.ramp),
}
TOTAL_SECONDS = 480.0  # of all parts: what is left is what the last ones get


def carry_out(name: str, check: Check, pipe: Connection) -> None:
    """One part, in its own process: findings as they come, then None or the last line of a traceback."""
    try:
        check.folder.mkdir(parents=True)
        if check.double:
            use_doubles()
        PARTS[name].work(check, Findings(pipe.send))
        pipe.send(None)
    except BaseException as error:
        traceback.print_exc()
        pipe.send("".join(traceback.format_exception_only(error)).strip().splitlines()[-1])


def run_part(name: str, check: Check) -> dict[str, Any]:
    """What became of a part. A fork, so that libraries are imported once; nothing here has touched the device or started
    a thread, which would not survive it."""
    began = time.monotonic()
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=carry_out, args=(name, check, there), daemon=True)
    process.start()
    there.close()
    found: dict[str, Any] = {"figures": {}, "expectations": [], "lines": []}
    error: str | None = "stopped: its time was over"
    while here.poll(max(0.0, check.deadline - time.monotonic())):
        try:
            message = here.recv()
        except EOFError:
            process.join()
            error = f"its process ended with code {process.exitcode}"
            break
        if not isinstance(message, dict):
            error = message
            break
        found = message
    if error is not None:
        process.kill()  # it may be stuck in the driver
    process.join()
    passed = error is None and all(each["met"] for each in found["expectations"])
    return {"title": PARTS[name].title, "passed": passed, "error": error, "seconds": time.monotonic() - began, **found}


def run_all(
    names: list[str], options: argparse.Namespace, folder: Path, write: Callable[[dict[str, dict[str, Any]]], None]
) -> dict[str, dict[str, Any]]:
    """What became of each part; `write` gets what is known after every one."""
    results: dict[str, dict[str, Any]] = {}
    end = time.monotonic() + TOTAL_SECONDS
    for name in names:
        deadline = min(time.monotonic() + PARTS[name].seconds, end)
        check = Check(
            options.double,
            options.quick,
            Path(options.scene),
            folder / name,
            options.gpu_memory,
            options.machine,
            deadline,
        )
        results[name] = run_part(name, check)
        print(f"{verdict(results[name]):6} {name:10} {results[name]['seconds']:6.1f} s", flush=True)
        for each in results[name]["expectations"]:
            if not each["met"]:
                print(f"         not met: {each['what']} ({each['seen']})", flush=True)
        if results[name]["error"]:
            print(f"         {results[name]['error']}", flush=True)
        write(results)
    return results


def verdict(result: dict[str, Any]) -> str:
    return "passed" if result["passed"] else "FAILED"


def document(results: dict[str, dict[str, Any]], double: bool) -> str:
    """The report as markdown."""
    title = "DOUBLE: the script with doubles, no GPU, no figure means anything" if double else "GPU check"
    lines = [f"# {title}, {time.strftime('%Y-%m-%d')}", "", "```", header().rstrip(), "```", ""]
    lines += ["| part | result | seconds |", "|---|---|---|"]
    lines += [f"| {result['title']} | {verdict(result)} | {result['seconds']:.1f} |" for result in results.values()]
    for name, result in results.items():
        lines += ["", f"## {result['title']} (`--only {name}`)", "", *result["lines"]]
        if result["error"]:
            lines += ["", f"**Failed**: `{result['error']}`"]
        if result["expectations"]:
            lines += ["", "| expected | met | seen |", "|---|---|---|"]
        for each in result["expectations"]:
            lines.append(
                f"| {each['what']} | {'yes' if each['met'] else '**no**'} | {each['seen'].replace('|', ',')} |"
            )
    return "\n".join(lines) + "\n"


def output_folder(options: argparse.Namespace) -> Path:
    """Where the report goes; doubles never write into docs/."""
    default = Path(tempfile.gettempdir()) if options.double else ROOT / "docs" / "benchmarks"
    folder = Path(options.output or default).resolve()
    if options.double and folder.is_relative_to(ROOT / "docs"):
        raise SystemExit("What --double finds is never written into docs/: pass another --output.")
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="run this part (may be repeated)")
    parser.add_argument("--quick", action="store_true", help="small sizes, few repeats")
    parser.add_argument("--scene", default=str(ROOT / "data" / "demo"), help="folder of a COLMAP scene with photos")
    parser.add_argument("--gpu-memory", default="24GiB", help="device budget of the timed runs")
    parser.add_argument("--machine", default="rtx4090", help="machine file that predictions are made for")
    parser.add_argument("--output", help="folder of the report (default: docs/benchmarks)")
    parser.add_argument("--double", action="store_true", help="doubles in place of CUDA and gsplat")
    options = parser.parse_args()
    folder = output_folder(options)
    import torch  # noqa: F401  # once, before the parts' processes are made

    name = f"{time.strftime('%Y-%m-%d')}-gpu{'-DOUBLE' if options.double else ''}"

    def write(results: dict[str, dict[str, Any]]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text(document(results, options.double))
        facts = {"double": options.double, "header": header().splitlines(), "parts": results}
        (folder / f"{name}.json").write_text(json.dumps(facts, indent=1))

    with tempfile.TemporaryDirectory() as scratch:
        results = run_all(options.only or list(PARTS), options, Path(scratch), write)
    print(f"{folder / name}.md")
    return 0 if all(result["passed"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
