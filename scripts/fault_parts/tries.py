"""One try of a fault: a child of a warm process, with a limit on its time and memory; whatever happens in it is a verdict.

A try is a function that breaks something and then looks; it raises one of the three findings, or returns. It runs in a
fork, so that thousands take minutes and a segfault ends only the try: the libraries are imported once, in a parent that
has started no thread. Everything random in a try comes from its name and number, so that it can be repeated alone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import shutil
import signal
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_SAID = 4000  # characters of what a try printed that are kept


class Found(Exception):
    """What a try found wrong."""

    kind = ""


class Traceback(Found):
    """An exit by uncaught exception, `bug:` line, segfault or abort."""

    kind = "traceback"


class Hang(Found):
    """A process that ran over its time."""

    kind = "hang"


class Lost(Found):
    """Work, a result or a foreign file that is gone, or is not what it has to be."""

    kind = "lost"


@dataclass(frozen=True)
class Try:
    """What one try works with; `bench` has the scene, the reference run and how `clm` is started."""

    bench: Any
    case: int
    folder: Path  # its own, the working directory of the child, gone afterwards
    rng: np.random.Generator


@dataclass(frozen=True)
class Fault:
    """A row of the table."""

    name: str
    title: str
    tries: int
    quick: int  # tries of a rehearsal
    work: Callable[[Try], None]
    seconds: float = 60.0  # over this, the try as a whole counts as a hang
    memory: int | None = None  # bytes of address space (RLIMIT_AS); None: no limit


@dataclass(frozen=True)
class Verdict:
    case: int
    kind: str  # "": nothing was wrong
    what: str = ""
    said: str = ""
    seconds: float = 0.0


class Job(NamedTuple):
    """One try to be made."""

    fault: Fault
    case: int


def seed_of(name: str, case: int) -> list[int]:
    return [zlib.crc32(name.encode()), case]


def run_tries(jobs: list[Job], bench: Any, workers: int, keep: bool) -> Iterator[tuple[Job, Verdict]]:
    """Carry out the tries, `workers` at a time, and yield their verdicts as they come. keep: folders of failures stay."""
    waiting, running = list(reversed(jobs)), dict[int, tuple[Job, float, Path]]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop()
                folder = bench.scratch / f"{job.fault.name}-{job.case}"
                folder.mkdir(parents=True)
                running[_fork(job, bench, folder)] = job, time.monotonic(), folder
            for pid, (job, began, folder) in list(running.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                seconds = time.monotonic() - began
                late = not ended and seconds > job.fault.seconds * bench.patience
                if not ended and not late:
                    continue
                _end_group(pid)
                if late:
                    os.waitpid(pid, 0)
                verdict = replace(_verdict(job, folder, None if late else status), seconds=seconds)
                del running[pid]
                if not (keep and verdict.kind):
                    shutil.rmtree(folder, ignore_errors=True)
                yield job, verdict
            time.sleep(0.002)
    finally:
        for pid in running:
            _end_group(pid)


def _end_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # and whatever the try had started


def _fork(job: Job, bench: Any, folder: Path) -> int:
    fault, case = job
    pid = os.fork()
    if pid:
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)  # both sides do it: whoever is first
        return pid
    try:
        with contextlib.suppress(PermissionError):
            os.setpgid(0, 0)
        os.chdir(folder)
        said = os.open(folder / "said", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        faulthandler.enable()
        faulthandler.dump_traceback_later(0.9 * fault.seconds * bench.patience)  # where a hang hangs
        if fault.memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (fault.memory, fault.memory))
        found = {"kind": "", "what": ""}
        try:
            fault.work(Try(bench, case, folder, np.random.default_rng(seed_of(fault.name, case))))
        except Found as error:
            found = {"kind": error.kind, "what": str(error)}
        except BaseException:
            found = {"kind": "traceback", "what": f"in the try itself: {traceback.format_exc()}"}
        (folder / "verdict.json").write_text(json.dumps(found))
    finally:
        os._exit(0)
    return 0


def _verdict(job: Job, folder: Path, status: int | None) -> Verdict:
    """status: what waitpid said; None: the try was stopped."""
    fault, case = job
    said = (folder / "said").read_bytes()[-_SAID:].decode("utf-8", "replace") if (folder / "said").exists() else ""
    if status is None:
        return Verdict(case, "hang", f"still running after {fault.seconds:g} s", said)
    if os.WIFSIGNALED(status):
        return Verdict(case, "traceback", f"ended by {signal.Signals(os.WTERMSIG(status)).name}", said)
    found = json.loads((folder / "verdict.json").read_text())
    return Verdict(case, found["kind"], found["what"], said if found["kind"] else "")
