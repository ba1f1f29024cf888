"""Breaks `clm` in every way that a user's machine can, and counts: tries, tracebacks, hangs, lost work. All must be 0.

    python scripts/fault_table.py [--ranks] [--quick] [--only NAME [--case K]] [--output FILE]

Signals and kills at random moments, full disks, two processes in one run, photos that vanish, damaged checkpoints, and
thousands of mutated COLMAP models, PLYs, cameras and configurations. Prints a markdown table, and of every failure what
it takes to see it again: `--only NAME --case K` repeats one try exactly. Exit code 1 if anything was found. Under 15
minutes on two cores; --quick rehearses every part in seconds. Needs Linux; root, for full disks that are mounted. --ranks: the
faults of runs over several ranks instead, an hour on two cores, because each try starts torch several times.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fault_parts  # noqa: F401  (first: it keeps libraries from starting threads)
from bench_common import header
from fault_parts import checkpoints, disk, inputs, ranks, settings, sharing, signals, vanish
from fault_parts.bench import Bench
from fault_parts.tries import Fault, Job, Verdict, run_tries

PARTS = (signals, disk, sharing, vanish, checkpoints, inputs, settings)
FAULTS: dict[str, Fault] = {fault.name: fault for part in (*PARTS, ranks) for fault in part.FAULTS}
KINDS = ("traceback", "hang", "lost")
_IDLE_SECONDS = 5.0  # that the undisturbed run and half of another take on two idle cores
_SHOWN = 12  # failures of one fault that are printed in full


@dataclass
class Tally:
    """A row of the table."""

    fault: Fault
    tries: int = 0
    seconds: float = 0.0  # of all tries, though they ran beside each other
    failures: list[Verdict] = field(default_factory=list)

    def count(self, kind: str) -> int:
        return sum(verdict.kind == kind for verdict in self.failures)

    def line(self) -> str:
        counts = ", ".join(f"{kind} {self.count(kind)}" for kind in KINDS)
        return f"{self.fault.name:18} {self.tries:5} tries {self.seconds:7.1f} s  {counts}"


def warm_up() -> None:
    """Import here, once, what the forks would import each for itself. Must start no thread."""
    import contextlib
    import io

    import pycolmap  # noqa: F401
    from PIL import Image

    import clm.commands.evaluate
    import clm.commands.export
    import clm.commands.info
    import clm.commands.render
    import clm.run.loop  # noqa: F401
    from clm.cli import main

    Image.init()
    before = sys.argv
    for words in (
        ["info", "nosuch"],
        ["train", "nosuch"],
        ["render", "nosuch", "-o", "x"],
        ["export", "nosuch", "x.ply"],
    ):
        sys.argv = ["clm", *words]
        with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
            main()
    sys.argv = before
    assert len(os.listdir("/proc/self/task")) == 1, "a thread was started before the forks"


def prepare(bench: Bench) -> None:
    """In a fork: making the scene starts threads. The time it takes says how busy the machine is: limits follow."""
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            bench.prepare()
            code = 0
        finally:
            if code:
                import traceback

                traceback.print_exc()
            os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise SystemExit("the undisturbed run failed: there is nothing to disturb")
    bench.patience = max(1.0, (time.monotonic() - began) / _IDLE_SECONDS)


def run_faults(jobs: list[Job], bench: Bench, options: argparse.Namespace) -> dict[str, Tally]:
    """All tries, and a line about each fault when its last one has ended."""
    tallies = {job.fault.name: Tally(job.fault) for job in jobs}
    left = Counter(job.fault.name for job in jobs)
    for job, verdict in run_tries(jobs, bench, options.workers, options.keep):
        tally = tallies[job.fault.name]
        tally.tries += 1
        tally.seconds += verdict.seconds
        if verdict.kind:
            tally.failures.append(verdict)
        left[job.fault.name] -= 1
        if not left[job.fault.name]:
            tally.failures.sort(key=lambda v: v.case)
            print(tally.line(), file=sys.stderr)
            for failure in tally.failures[:_SHOWN]:
                print(describe(job.fault, failure, full=options.case is not None), file=sys.stderr)
            sys.stderr.flush()
    return tallies


def describe(fault: Fault, verdict: Verdict, full: bool) -> str:
    again = f"python scripts/fault_table.py --only {fault.name} --case {verdict.case}"
    text = verdict.what + (f"\n{verdict.said}" if verdict.said and (full or not verdict.what) else "")
    lines = text.strip().splitlines()
    lines = lines if full or len(lines) < 7 else [*lines[:2], "...", *lines[-4:]]
    return f"  {verdict.kind}: {again}\n" + "\n".join(f"    {line[:400]}" for line in lines)


def table(tallies: list[Tally]) -> str:
    lines = ["| fault | tries | tracebacks | hangs | lost |", "|---|---:|---:|---:|---:|"]
    for tally in tallies:
        lines.append(f"| {tally.fault.title} | {tally.tries:,} | {' | '.join(str(tally.count(k)) for k in KINDS)} |")
    total = " | ".join(f"**{sum(tally.count(kind) for tally in tallies)}**" for kind in KINDS)
    lines.append(f"| **all** | **{sum(tally.tries for tally in tallies):,}** | {total} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few tries of each fault")
    parser.add_argument("--ranks", action="store_true", help="the faults of several ranks instead of the others")
    parser.add_argument("--only", action="append", choices=FAULTS, metavar="NAME", help=f"one of {', '.join(FAULTS)}")
    parser.add_argument("--case", type=int, help="one try of the fault given with --only, shown in full")
    parser.add_argument("--tries", type=int, help="so many tries of each fault")
    parser.add_argument("--output", type=Path, help="also write the table and the failures to this markdown file")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="tries at a time")
    parser.add_argument("--scratch", type=Path, help="folder for what the tries need (default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help="keep the folders of failures, and say where")
    options = parser.parse_args()
    if options.case is not None and len(options.only or ()) != 1:
        parser.error("--case belongs to one --only NAME")
    return options


def chosen(options: argparse.Namespace) -> list[Fault]:
    parts = (ranks,) if options.ranks else PARTS
    return [FAULTS[name] for name in options.only or [fault.name for part in parts for fault in part.FAULTS]]


def cases_of(fault: Fault, options: argparse.Namespace) -> list[int]:
    if options.case is not None:
        return [options.case]
    return list(range(options.tries or (fault.quick if options.quick else fault.tries)))


def main() -> int:
    options = parse()
    if not hasattr(os, "fork") or not Path("/proc/self/task").exists():
        raise SystemExit("This script needs Linux.")
    began = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="clm-faults-", dir=options.scratch))
    bench = Bench(scratch, images=160 if options.quick else 640, debug=options.case is not None)
    try:
        warm_up()
        prepare(bench)
        jobs = [Job(fault, case) for fault in chosen(options) for case in cases_of(fault, options)]
        tallies = list(run_faults(jobs, bench, options).values())
    finally:
        if options.keep:
            print(f"kept: {scratch}", file=sys.stderr)
        else:
            shutil.rmtree(scratch, ignore_errors=True)
    text = table(tallies)
    print(text)
    said = [describe(tally.fault, verdict, full=False) for tally in tallies for verdict in tally.failures]
    if options.output is not None:
        report = [
            "# Faults",
            "```\n" + header() + "```",
            text,
            f"{time.monotonic() - began:.0f} seconds, {options.workers} at a time.",
        ]
        report += ["```\n" + "\n".join(said) + "\n```"] if said else []
        options.output.write_text("\n\n".join(report) + "\n")
    return int(bool(said))


if __name__ == "__main__":
    sys.exit(main())
