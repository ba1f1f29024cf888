"""The run directory: INRIA's layout (so that its viewers open it) plus ours. Every file appears whole or not at all."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from clm.config import Config
from clm.files import atomic_write, remove_leftovers, write_json
from clm.formats.ply import write_ply
from clm.run.begun import read_split, write_run_config, write_split
from clm.run.checkpoint import clean_checkpoints
from clm.run.evaluate import evaluate
from clm.run.events import Message
from clm.run.results import exact_rows, ply_path, write_result
from clm.run.session import Session
from clm.run.totals import report
from clm.scene import Scene, cameras_json, write_georef
from clm.units import format_bytes


def start_run(session: Session) -> None:
    """Files that describe the run before its first step."""
    run, config, scene = session.run, session.config, session.scene
    run.mkdir(parents=True, exist_ok=True)
    remove_run_leftovers(run)
    begun = session.progress.iteration > 0
    split = read_split(run, config) if begun else None
    write_run_config(run, scene.path, config)  # first: it says whose the other files are
    write_split(run, scene, split)
    with atomic_write(run / "cfg_args", "w") as file:
        file.write(repr(_cfg_args(config, scene, run)))
    write_json(run / "cameras.json", cameras_json(scene))
    if scene.offset.any():
        write_georef(run / "georef.json", scene.offset)
    if not begun:
        session.tiers.write_back()
        chunks = exact_rows(session.store, None, "writing input.ply", session.report)
        write_ply(run / "input.ply", chunks, antialiased=config.antialias)


def remove_run_leftovers(run: Path) -> None:
    """Remove what a run that was killed while writing left where runs write."""
    for folder in (run, *run.glob("point_cloud/iteration_*"), *run.glob("eval/step_*")):
        remove_leftovers(folder)
    clean_checkpoints(run / "checkpoints")


def _cfg_args(config: Config, scene: Scene, run: Path) -> Namespace:
    """What INRIA's tools eval(): they need sh_degree and the source path."""
    return Namespace(
        sh_degree=3,  # the PLY is padded to degree 3
        source_path=str(scene.path),
        model_path=str(run),
        images=config.images or "images",
        resolution=-1,
        white_background=config.background == "white",
        data_device="cpu",
        eval=config.test_every > 0,
    )


def save_ply(session: Session) -> Path:
    """The Gaussians as they are now, streamed to `point_cloud/iteration_N/point_cloud.ply` (georef.json beside it)."""
    session.tiers.write_back()
    ply = ply_path(session.run, session.progress.iteration)
    write_result(
        ply, session.store, session.next_step(), antialiased=session.config.antialias, offset=session.scene.offset,
        report=session.report,
    )  # fmt: skip
    return ply


def finish_run(session: Session) -> None:
    """PLY, metrics and the receipt of a run that reached its last image."""
    save_ply(session)
    evaluate(session)
    write_json(
        session.run / "report.json",
        report(
            session.totals,
            session.progress.iteration,
            session.store.rows,
            session.device.kind,
            session.placement.offload,
        ),
    )
    totals, (budget, _) = session.totals, session.budgets()
    session.emit(
        Message(
            f"device peak {format_bytes(totals.device_bytes)} of a budget of {format_bytes(budget)}; everything on the device "
            f"would have needed {format_bytes(totals.in_core_bytes)}"
        )
    )
