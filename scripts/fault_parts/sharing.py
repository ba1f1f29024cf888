"""Two processes on one run directory, and files in it that are somebody else's: nothing foreign is changed, one run wins."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from fault_parts.bench import images_done, saved, wait_for
from fault_parts.tries import Fault, Lost, Try


def _two(t: Try) -> None:
    """The second starts at a random moment of the first; in every third try the first is killed, and leaves its lock."""
    run = t.folder / "run"
    first = t.bench.start(t.bench.train_words(run))
    if t.case % 4:
        images = int(t.rng.integers(1, t.bench.images // 2))
        wait_for(lambda: images_done(run) >= images, first)
    resume = ["--resume"] if saved(run) and t.case % 2 else []
    second = t.bench.start(t.bench.train_words(run, *resume))
    if t.case % 3 == 2:
        time.sleep(float(t.rng.uniform(0, 1)))
        first.kill()
        first.wait()
        t.bench.finish(second, 60)
        t.bench.go_on(run)
        return
    ends = [t.bench.finish(process, 60) for process in (first, second)]
    if not any(end.code == 0 for end in ends):
        raise Lost(f"neither finished: {[(end.code, end.sentence) for end in ends]}")
    t.bench.same_model(run)
    t.bench.go_on(run)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _notes(t: Try, run: Path) -> None:
    (run / "notes.txt").write_text("mine")
    (run / "point_cloud" / "iteration_7").mkdir(parents=True)
    shutil.copy(t.bench.ply, run / "point_cloud" / "iteration_7" / "point_cloud.ply")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "README").write_text("mine")


def _ply_of_the_same_name(t: Try, run: Path) -> None:
    target = run / t.bench.ply.relative_to(t.bench.reference)
    target.parent.mkdir(parents=True)
    target.write_bytes(b"ply\nmine\n")


def _input_ply(t: Try, run: Path) -> None:
    (run / "input.ply").write_bytes(b"ply\nmine\n")


def _hidden(t: Try, run: Path) -> None:
    (run / ".draft.tmp").write_text("mine")
    (run / "figures").mkdir()
    (run / "figures" / ".sketch.tmp").write_text("mine")


def _hidden_in_checkpoints(t: Try, run: Path) -> None:
    (run / "checkpoints" / ".backup.tmp").mkdir(parents=True)
    (run / "checkpoints" / ".backup.tmp" / "data").write_text("mine")


def _other_checkpoint(t: Try, run: Path) -> None:
    """Checkpoints of another run, copied here by hand."""
    shutil.copytree(t.bench.halfway / "checkpoints", run / "checkpoints")


def _other_run(t: Try, run: Path) -> None:
    shutil.copytree(t.bench.reference, run, dirs_exist_ok=True)
    (run / "metrics.json").write_text("{}")


def _other_run_without_checkpoints(t: Try, run: Path) -> None:
    _other_run(t, run)
    shutil.rmtree(run / "checkpoints")


def _step_folder_of_a_user(t: Try, run: Path) -> None:
    (run / "checkpoints" / "step_40").mkdir(parents=True)
    (run / "checkpoints" / "step_40" / "thoughts").write_text("mine")


def _pictures(t: Try, run: Path) -> None:
    (run / "eval" / f"step_{t.bench.images}").mkdir(parents=True)
    (run / "eval" / f"step_{t.bench.images}" / "000.png").write_text("mine")


def _json(t: Try, run: Path) -> None:
    (run / "cameras.json").write_text("[]")
    (run / "metrics.json").write_text('{"mine": 1}')


def _a_file(t: Try, run: Path) -> None:
    run.rmdir()
    run.write_text("mine")


_FOREIGN: list[Callable[[Try, Path], None]] = [
    *(_notes, _ply_of_the_same_name, _input_ply, _hidden, _hidden_in_checkpoints, _other_checkpoint, _other_run),
    *(_other_run_without_checkpoints, _step_folder_of_a_user, _pictures, _json, _a_file),
]


def _foreign(t: Try) -> None:
    run = t.folder / "run"
    run.mkdir()
    make = _FOREIGN[t.case % len(_FOREIGN)]
    make(t, run)
    before = _contents(t.folder) if run.is_file() else _contents(run)
    said = t.bench.clm(*t.bench.train_words(run))
    after = _contents(t.folder) if run.is_file() else _contents(run)
    changed = [name for name, data in before.items() if name != "said" and after.get(name) != data]
    if changed:
        raise Lost(f"{make.__name__.strip('_')}: changed or deleted: {', '.join(changed[:5])} (exit code {said.code})")
    if said.code == 0:
        t.bench.same_model(run)


FAULTS = [
    Fault("two-processes", "two processes on one run directory", 24, 1, _two, seconds=120),
    Fault("foreign-files", "files of somebody else in the run directory", len(_FOREIGN), 2, _foreign),
]
