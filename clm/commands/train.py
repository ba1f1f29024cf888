"""`clm train`: ranks, configuration, scene, run directory, signals, consumers; the training itself is `clm.run.loop`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clm.config import Config, from_dict
from clm.errors import ClmError
from clm.ranks import Ranks
from clm.ranks.handshake import agree, together
from clm.ranks.place import restarts
from clm.ranks.start import TIMEOUT, ranks_of_environment
from clm.run.events import Emit, Message, reporter
from clm.run.stopping import StopRequest, outlasting_output
from clm.settings import load_config

if TYPE_CHECKING:
    from clm.run.loop import Visitor
    from clm.scene import Scene


def near_reason(near: float) -> str:
    """Why the near plane is where it is."""
    return f"near plane: {near:.3g}, 1% of the cameras' usual distance from their middle or from what they see (--near)"


# What ranks may have each for itself: where things are on their hosts, and what never changes the model.
_EACH_ITS_OWN = {
    *("device", "threads", "offload", "scratch", "gpu_memory", "host_memory", "image_cache", "trace", "rank_timeout"),
    *("images", "masks", "test_list", "init_ply"),
}


def _consumers(run: Path, resume: bool, as_json: bool, quiet: bool, ranks: Ranks) -> tuple[Emit, Callable[[], None]]:
    """Who is told what happens, and what to call when nothing more will. Rank 0 speaks; the others keep it in a file."""
    from clm.run.bars import sparse
    from clm.run.console import Console, EventLog, fan_out, json_lines

    file = run / "events.jsonl" if ranks.first else run / "ranks" / f"{ranks.rank}.jsonl"
    log, console = EventLog(file, append=resume), Console()

    def close() -> None:
        console.close()
        log.close()

    shown = [] if quiet or not ranks.first else [sparse(json_lines) if as_json else console]
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
    viewer: bool = False,
    port: int | None = None,
) -> bool:
    """Train; returns False when stopped by a signal (state saved, and how to resume was said). viewer: in the browser, at `port`
    (None: a free one)."""
    if output is not None and (data is not None or resume):
        run = output
    elif data is not None:
        run = Path("runs") / data.resolve().name
    else:
        raise _needs_data(resume)
    given = partial(load_config, flags, preset=preset, file=file)
    at = _viewer_port(viewer, port)
    with outlasting_output(), ranks_of_environment(*_patience(given)) as ranks, _owned(run, ranks):
        again = ranks.any(restarts() > 0) and together(ranks, lambda: _has_checkpoints(run, ranks))
        begin = (_resumed if resume or again else _fresh)(run, data, given, ranks)
        return _train_owned(run, begin, ranks, as_json=as_json, quiet=quiet, port=at)


def _patience(given: Callable[..., Config]) -> tuple[float, str]:
    """How long ranks wait for each other, and what they compute on. What is wrong with the options, all ranks say together."""
    try:
        config = given()
    except ClmError:
        return TIMEOUT, "auto"
    return config.rank_timeout, config.device


@contextmanager
def _owned(run: Path, ranks: Ranks) -> Iterator[None]:
    """The run directory is this run's alone: rank 0 has it for all."""
    from clm.run.lock import locked

    with ExitStack() as held:
        together(ranks, lambda: held.enter_context(locked(run)) if ranks.first else None)
        yield


def _has_checkpoints(run: Path, ranks: Ranks) -> bool:
    """Whether rank 0 finds any: ranks that torchrun starts again go on by themselves."""
    from clm.run.checkpoint import checkpoints

    return ranks.of_first(bool(checkpoints(run / "checkpoints")))


class _Begin(NamedTuple):
    """What a run starts from: anew, or from a checkpoint."""

    data: Path
    config: Config
    checkpoint: Path | None = None
    warning: str | None = None


def _fresh(run: Path, data: Path | None, given: Callable[..., Config], ranks: Ranks) -> _Begin:
    """given: `load_config` with what the caller stated."""
    from clm.run.begun import refuse_foreign
    from clm.run.checkpoint import checkpoints

    def refuse_other_runs() -> None:
        if ranks.first and checkpoints(run / "checkpoints"):
            raise ClmError(f"{run} already holds a run.", "Pass --resume to go on with it, or another folder with -o.")
        if ranks.first:
            refuse_foreign(run)

    config = together(ranks, given)
    together(ranks, refuse_other_runs)
    if data is None:
        raise _needs_data(False)
    return _Begin(data, config)


def _resumed(run: Path, data: Path | None, given: Callable[..., Config], ranks: Ranks) -> _Begin:
    """Rank 0 reads what the run says of itself: it may have it alone."""
    from clm.run.checkpoint import latest_checkpoint

    def read() -> tuple[Path, Path | None, Config] | None:
        if not ranks.first:
            return None
        checkpoint = latest_checkpoint(run / "checkpoints")
        return checkpoint, *begun_with(run, checkpoint)

    told = ranks.of_first(together(ranks, read))
    assert told is not None, "rank 0 has read it"
    newest, before, begun = told
    checkpoint = run / "checkpoints" / newest.name  # where this rank has its run
    config = together(ranks, lambda: given(resumed=begun))
    scene, warning = together(ranks, lambda: resumed_scene(run, before, data))
    return _Begin(scene, config, checkpoint, warning)


def _train_owned(run: Path, begin: _Begin, ranks: Ranks, *, as_json: bool, quiet: bool, port: int | None) -> bool:
    """Train in a run directory that is ours alone. port: of a viewer; None: there is none."""
    from clm.run.console import fan_out
    from clm.run.loop import train
    from clm.scene.open import open_scene

    config, resume = begin.config, begin.checkpoint is not None
    emit, close = _consumers(run, resume, as_json, quiet, ranks)
    stop = StopRequest() if ranks.first else StopRequest("", "")  # one rank speaks
    try:
        begun = {"test_list": None} if resume else {}  # a run's own split.json says what it holds out
        scene = together(ranks, lambda: open_scene(begin.data, config, report=reporter(emit), **begun))
        _agree(scene, config, ranks)
        for message in scene.messages:
            emit(Message(message))
        if config.near is None:
            emit(Message(near_reason(scene.views[0].camera.near)))
        if begin.warning:
            emit(Message(begin.warning, "warning"))
        with stop.listening(), _visited(scene, run, stop, emit, port, resume) as (visitor, hear):
            finished = train(
                scene,
                config,
                run,
                fan_out(emit, *hear),
                resume=begin.checkpoint,
                stop=stop,
                saving=stop.saving,
                ranks=ranks,
                visitor=visitor,
            )
        if finished and ranks.first:
            page = f", {run}/report.html" if _write_page(run, scene, emit) else ""
            ply = f"{run}/point_cloud/iteration_{config.iterations}/point_cloud.ply"
            emit(Message(f"results: {ply}, {run}/metrics.json{page}"))
        elif not finished:
            emit(Message(f"Stopped and saved. Go on with the same command and --resume (-o {run})."))
    finally:
        close()
    return finished


def _agree(scene: Scene, config: Config, ranks: Ranks) -> None:
    """All ranks are about to train the same, or none does."""
    if ranks.alone:
        return
    from clm.config import to_dict
    from clm.program import program
    from clm.scene.fingerprint import fingerprint

    shared = {key: value for key, value in to_dict(config).items() if key not in _EACH_ITS_OWN}
    agree(
        ranks, {"the version": program(), "the configuration": shared, "the scene": fingerprint(scene)}
    )  # the kind of device: `clm.run.open`


def _viewer_port(wanted: bool, port: int | None) -> int | None:
    """Where a viewer of the run will be; None: nobody wants one. Raises ClmError where there can be none."""
    if not wanted:
        if port is not None:
            raise ClmError("--port is of the viewer, and none is asked for.", "Add --viewer.")
        return None
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise ClmError("--viewer shows runs of one rank.", "Leave it out: `clm view RUN` shows the newest checkpoint.")
    from clm.view.server import HOST, free_port, load_viser

    load_viser()  # before anything is read
    return free_port(HOST, port)


@contextmanager
def _visited(
    scene: Scene, run: Path, stop: StopRequest, emit: Emit, port: int | None, resume: bool
) -> Iterator[tuple[Visitor | None, list[Emit]]]:
    """Who visits the run while it trains, and what of it hears the run's events: a viewer at `port`, or nobody."""
    if port is None:
        yield None, []
        return
    from clm.view.live import visited

    with visited(scene, run, stop, emit, port, resume) as visit:
        yield visit, [visit]


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
