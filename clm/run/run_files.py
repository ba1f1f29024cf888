"""The run directory: INRIA's layout (so that its viewers open it) plus ours. Every file appears whole or not at all."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from clm.config import Config
from clm.files import atomic_write, remove_leftovers, write_json
from clm.formats.ply_write import write_ply
from clm.run.accounts import Accounts
from clm.run.begun import read_split, write_run_config, write_split
from clm.run.checkpoint import clean_checkpoints
from clm.run.evaluate import Evaluation
from clm.run.events import Emit, Message, reporter
from clm.run.figures import in_words
from clm.run.residence import Residence
from clm.run.results import exact_rows, ply_path, write_result
from clm.run.schedule import Schedule
from clm.run.this_machine import this_machine
from clm.run.totals import report
from clm.scene import Scene, cameras_json, write_georef
from clm.units import format_bytes


class RunFiles:
    """What a run writes beside its checkpoints and evaluations."""

    def __init__(
        self,
        folder: Path,
        scene: Scene,
        schedule: Schedule,
        residence: Residence,
        accounts: Accounts,
        evaluation: Evaluation,
        emit: Emit,
    ):
        self._folder, self._scene, self._schedule, self._residence = folder, scene, schedule, residence
        self._accounts, self._evaluation, self._emit = accounts, evaluation, emit

    def start(self) -> None:
        """Files that describe the run, before its next step."""
        folder, config, scene = self._folder, self._schedule.config, self._scene
        folder.mkdir(parents=True, exist_ok=True)
        remove_run_leftovers(folder)
        begun = self._schedule.image > 0
        split = read_split(folder, config) if begun else None
        write_run_config(folder, scene.path, config)  # first: it says whose the other files are
        write_split(folder, scene, split)
        with atomic_write(folder / "cfg_args", "w") as file:
            file.write(repr(_cfg_args(config, scene, folder)))
        write_json(folder / "cameras.json", cameras_json(scene))
        if scene.offset.any():
            write_georef(folder / "georef.json", scene.offset)
        if not begun:
            with self._residence.whole() as store:
                chunks = exact_rows(store, None, "writing input.ply", reporter(self._emit))
                write_ply(folder / "input.ply", chunks, antialiased=config.antialias)

    def finish(self) -> None:
        """PLY, metrics and the receipt of a run that reached its last image."""
        self._write_ply()
        figures = self._evaluation.run()
        split = "test" if figures["test"] else "train"
        for line in in_words(split, figures[split]) if figures[split]["per_view"] else []:
            self._emit(Message(line))
        totals, residence = self._accounts.totals, self._residence
        kind, offload = residence.device.kind, residence.placement.offload
        receipt = report(totals, self._schedule.image, residence.rows, kind, offload)
        budget, host = residence.budgets()
        receipt |= {"budget": {"device_bytes": budget, "host_bytes": host}, "machine": this_machine(kind)}
        write_json(self._folder / "report.json", receipt)
        self._emit(
            Message(
                f"device peak {format_bytes(totals.device_bytes)} of a budget of {format_bytes(budget)}; everything on the "
                f"device would have needed {format_bytes(totals.in_core_bytes)}"
            )
        )

    def _write_ply(self) -> None:
        """The Gaussians as they are now, streamed to `point_cloud/iteration_N/point_cloud.ply` (georef.json beside it)."""
        config = self._schedule.config
        with self._residence.whole() as store:
            write_result(
                ply_path(self._folder, self._schedule.image), store, self._schedule.next_step(),
                antialiased=config.antialias, offset=self._scene.offset, report=reporter(self._emit),
            )  # fmt: skip


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
        eval=config.test_every > 0 or config.test_list is not None,
    )
