"""Signals and closed pipes: real processes, interrupted where chance has it, often in the middle of a save.

The moment is a number of images done (read from `events.jsonl`) and a few milliseconds more, so that a loaded machine
changes nothing; a fifth of the tries strike at any time after the start. What may be lost: after kill -9 the work since
the last checkpoint, after any other signal nothing but the batch under way.
"""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

from fault_parts.bench import BATCH, SAVE_EVERY, Bench, Said, images_done, judge, last_saved, saved, wait_for
from fault_parts.tries import Fault, Hang, Lost, Traceback, Try

_LIMIT = 60.0  # seconds of one process


def _begin(t: Try, *more: str, **options: object) -> tuple[subprocess.Popen[bytes], Path, int]:
    """A run that saves every tenth batch, or after every batch (so that most moments are moments of a save)."""
    run, save_every = t.folder / "run", (SAVE_EVERY, BATCH)[t.case % 2]
    return t.bench.start(t.bench.train_words(run, *more, save_every=save_every), **options), run, save_every


def _moment(t: Try, process: subprocess.Popen[bytes], run: Path) -> None:
    """Wait for the moment to strike."""
    if t.case % 5 == 0:
        time.sleep(float(t.rng.uniform(0.0, 1.5)))
        return
    images = int(t.rng.integers(t.bench.images * 19 // 20))
    if wait_for(lambda: images_done(run) >= images and run.exists(), process):
        if t.case % 3 == 0:
            wait_for(lambda: _saving(run) or images_done(run) >= t.bench.images, process)
        time.sleep(float(t.rng.uniform(0, 0.01)))


def _saving(run: Path) -> bool:
    """Whether a checkpoint is being written: it has a hidden name until it is whole."""
    return any(run.glob("checkpoints/.*.tmp"))


def _nothing_lost(run: Path, before: int) -> None:
    """The checkpoints that were said to be saved are there. before: images that must be saved by now."""
    newest = max(saved(run), default=0)
    if newest < before:
        raise Lost(f"{before} images were done, the newest checkpoint is of {newest}")


def _kill(t: Try) -> None:
    process, run, save_every = _begin(t)
    _moment(t, process, run)
    process.kill()
    process.wait()
    _nothing_lost(run, last_saved(run))
    t.bench.go_on(run, save_every=save_every)


def _stop_with(number: signal.Signals, t: Try) -> None:
    """One signal: the run ends in order, with everything done saved, or goes on (SIGHUP)."""
    process, run, save_every = _begin(t)
    _moment(t, process, run)
    process.send_signal(number)
    _ended(t.bench, process, run, number)
    t.bench.go_on(run, save_every=save_every)


def _ended(bench: Bench, process: subprocess.Popen[bytes], run: Path, *numbers: signal.Signals) -> None:
    """Before training has begun a signal may simply end the process; afterwards the state must be saved."""
    done = images_done(run)
    early = (*(-n for n in numbers), *(128 + n for n in numbers))
    bench.finish(process, _LIMIT, also=early)
    _nothing_lost(run, max(done, images_done(run)))


def _interrupt_twice(t: Try) -> None:
    """Ctrl-C, and again while the state is being saved: the save is finished, or the state before it is there."""
    process, run, save_every = _begin(t)
    _moment(t, process, run)
    before = last_saved(run)
    process.send_signal(signal.SIGINT)
    if t.case % 2:
        wait_for(lambda: _saving(run), process)
    time.sleep(float(t.rng.uniform(0, 0.05)))
    process.send_signal(signal.SIGINT)
    t.bench.finish(process, _LIMIT, also=(-signal.SIGINT,))
    _nothing_lost(run, before)
    t.bench.go_on(run, save_every=save_every)


def _closed_stdout(t: Try) -> None:
    """`clm train --json | head -n N`: the reader leaves after a few lines."""
    process, run, save_every = _begin(t, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    for _ in range(int(t.rng.integers(0, 40))):
        process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read().decode(errors="replace")
    _without_reader(t, process, run, said, save_every)


def _closed_stderr(t: Try) -> None:
    """A terminal that is gone: stderr cannot be written to, or was never open."""
    if t.case % 2:
        process, run, save_every = _begin(t, stderr=subprocess.PIPE)
        assert process.stderr is not None
        process.stderr.read(int(t.rng.integers(1, 200)))
        process.stderr.close()
    else:
        run, save_every = t.folder / "run", SAVE_EVERY
        closed = (">&-", "2>&-", ">&- 2>&-", "<&-")[t.case // 2 % 4]
        words = t.bench.train_words(run)
        process = t.bench.start(words)  # only for its words and its log
        process.kill()
        process.wait()
        import sys

        from fault_parts.bench import ROOT

        shell = f'exec env PYTHONPATH={ROOT} "$0" -m clm "$@" {closed}'
        process = subprocess.Popen(["sh", "-c", shell, sys.executable, *words])
    _without_reader(t, process, run, "", save_every)


def _without_reader(t: Try, process: subprocess.Popen[bytes], run: Path, said: str, save_every: int) -> None:
    try:
        code = process.wait(_LIMIT * t.bench.patience)
    except subprocess.TimeoutExpired:
        process.kill()
        raise Hang(f"still running {_LIMIT:g} s after nobody listened any more") from None
    judge(t.bench.train_words(run), Said(code, said), also=(141, -signal.SIGPIPE))
    if code < 0 and images_done(run):
        raise Traceback(f"ended by signal {-code} after training had begun")
    _nothing_lost(run, images_done(run))
    t.bench.go_on(run, save_every=save_every)


def _named(number: signal.Signals):
    return lambda t: _stop_with(number, t)


FAULTS = [
    Fault("kill", "kill -9 at a random moment, half of them while saving", 60, 1, _kill),
    Fault("sigterm", "SIGTERM", 20, 1, _named(signal.SIGTERM)),
    Fault("sighup", "SIGHUP (the terminal is closed)", 20, 1, _named(signal.SIGHUP)),
    Fault("sigint", "Ctrl-C", 20, 1, _named(signal.SIGINT)),
    Fault("sigint-twice", "Ctrl-C twice, the second while saving", 30, 1, _interrupt_twice),
    Fault("pipe", "closed pipe: `--json \\| head`", 16, 1, _closed_stdout),
    Fault("stderr", "stdout or stderr closed, before or during the run", 16, 1, _closed_stderr),
]
