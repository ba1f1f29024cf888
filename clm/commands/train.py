"""`clm train`: configuration, scene, run directory, signals, consumers; the training itself is `clm.run.loop`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clm.config import Config, from_dict
from clm.errors import ClmError
from clm.run.events import Emit, Message, reporter
from clm.run.stopping import StopRequest, outlasting_output
from clm.settings import load_config

if TYPE_CHECKING:
    from clm.scene import Scene


def near_reason(near: float) -> str:
    """Why the near plane is where it is."""
    return f"near plane: {near:.3g}, 1% of the cameras' usual distance from their middle or from what they see (--near)"


def _consumers(run: Path, resume: bool, as_json: bool, quiet: bool) -> tuple[Emit, Callable[[], None]]:
    """Who is told what happens, and what to call when nothing more will."""
    from clm.run.bars import sparse
    from clm.run.console import Console, EventLog, fan_out, json_lines

    log, console = EventLog(run / "events.jsonl", append=resume), Console()

    def close() -> None:
        console.close()
        log.close()

    shown = [] if quiet else [sparse(json_lines) if as_json else console]
    return fan_out(log, *shown), close


def begun_with(run: Path, checkpoint: Path) -> tuple[Path | None, Config]:
    """Scene and configuration of a run that goes on; the checkpoint's, which names no scene, where config.yaml is gone or
    damaged."""
    from clm.run.begun import read_run_config

    try:
        return read_run_config(run)
    except ClmError as error:
        try:
            state = json.loads((checkpoint / "state.json").read_text())
            return None, from_dict(state["config"], str(checkpoint))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise error from None


def resumed_scene(run: Path, before: Path | None, data: Path | None) -> tuple[Path, str | None]:
    """Where the scene of a run that goes on is, and what to say when that is not the one it was trained on so far."""
    from clm.run.begun import scene_of_run

    if data is None:
        if before is None:
            raise ClmError(f"{run} does not say where its scene is.", f"Pass it: `clm train DATA --resume -o {run}`.")
        return scene_of_run(run, before, f"clm train DATA --resume -o {run}"), None
    if before is None or before.resolve() == data.resolve():
        return data, None
    return data, f"resumed with another DATA: {before} -> {data}"


def _needs_data(resume: bool) -> ClmError:
    if resume:
        return ClmError("`clm train --resume` needs the run or its scene.", "Pass -o RUN, or DATA.")
    return ClmError(
        "`clm train` needs DATA: COLMAP scene with images/ and sparse/0 (or sparse/, or flat).",
        "See `clm train --help`.",
    )


def run_training(
    data: Path | None,
    output: Path | None,
    flags: dict[str, Any],
    preset: str | None,
    file: Path | None,
    *,
    resume: bool,
    as_json: bool,
    quiet: bool,
) -> bool:
    """Train; returns False when stopped by a signal (state saved, and how to resume was said)."""
    if output is not None and (data is not None or resume):
        run = output
    elif data is not None:
        run = Path("runs") / data.resolve().name
    else:
        raise _needs_data(resume)
    given = partial(load_config, flags, preset=preset, file=file)

    from clm.run.lock import locked

    with outlasting_output(), locked(run):
        begin = _resumed(run, data, given) if resume else _fresh(run, data, given)
        return _train_locked(run, begin, as_json=as_json, quiet=quiet)


class _Begin(NamedTuple):
    """What a run starts from: anew, or from a checkpoint."""

    data: Path
    config: Config
    checkpoint: Path | None = None
    warning: str | None = None


def _fresh(run: Path, data: Path | None, given: Callable[..., Config]) -> _Begin:
    """given: `load_config` with what the caller stated."""
    from clm.run.begun import refuse_foreign
    from clm.run.checkpoint import checkpoints

    config = given()
    if checkpoints(run / "checkpoints"):
        raise ClmError(f"{run} already holds a run.", "Pass --resume to go on with it, or another folder with -o.")
    refuse_foreign(run)
    assert data is not None, "asked for before"
    return _Begin(data, config)


def _resumed(run: Path, data: Path | None, given: Callable[..., Config]) -> _Begin:
    from clm.run.checkpoint import latest_checkpoint

    checkpoint = latest_checkpoint(run / "checkpoints")
    before, begun = begun_with(run, checkpoint)
    config = given(resumed=begun)
    scene, warning = resumed_scene(run, before, data)
    return _Begin(scene, config, checkpoint, warning)


def _train_locked(run: Path, begin: _Begin, *, as_json: bool, quiet: bool) -> bool:
    """Train in a run directory that is ours alone."""
    from clm.run.loop import train
    from clm.scene.open import open_scene

    config, resume = begin.config, begin.checkpoint is not None
    emit, close = _consumers(run, resume, as_json, quiet)
    stop = StopRequest()
    try:
        begun = {"test_list": None} if resume else {}  # a run's own split.json says what it holds out
        scene = open_scene(begin.data, config, report=reporter(emit), **begun)
        for message in scene.messages:
            emit(Message(message))
        if config.near is None:
            emit(Message(near_reason(scene.views[0].camera.near)))
        if begin.warning:
            emit(Message(begin.warning, "warning"))
        with stop.listening():
            finished = train(scene, config, run, emit, resume=begin.checkpoint, stop=stop, saving=stop.saving)
        if finished:
            page = f", {run}/report.html" if _write_page(run, scene, emit) else ""
            ply = f"{run}/point_cloud/iteration_{config.iterations}/point_cloud.ply"
            emit(Message(f"results: {ply}, {run}/metrics.json{page}"))
        else:
            emit(Message(f"Stopped and saved. Go on with the same command and --resume (-o {run})."))
    finally:
        close()
    return finished


def _write_page(run: Path, scene: Scene, emit: Emit) -> bool:
    """`report.html`. The model is saved by now: whatever fails here costs a warning, and nothing else."""
    try:
        from clm.report.page import write_report

        write_report(run, scene)
        return True
    except Exception as error:
        why = str(error) or type(error).__name__
        emit(Message(f"report.html was not written: {why} Try again with `clm report {run}`.", "warning"))
        return False
