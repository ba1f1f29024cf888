"""The run directory: INRIA's layout (so that its viewers open it) plus ours. Every file appears whole or not at all."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clm.config import Config
from clm.files import atomic_write, remove_leftovers, write_json
from clm.formats.ply_write import write_ply
from clm.progress import counted, rows_of
from clm.run.accounts import Accounts
from clm.run.begun import read_split, write_run_config, write_split
from clm.run.checkpoint import clean_checkpoints
from clm.run.evaluate import Evaluation
from clm.run.events import Emit, Message, reporter
from clm.run.figures import in_words
from clm.run.residence import Residence
from clm.run.results import ply_path, write_result
from clm.run.schedule import Schedule
from clm.run.this_machine import this_machine
from clm.run.totals import RankTotals, of_each, report, together
from clm.scene import Scene, cameras_json, write_georef
from clm.units import format_bytes

Chunk = tuple[np.ndarray, np.ndarray]  # geometry [n, 12] and colour [n, 48] f32


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
        self._ranks, self._config = residence.ranks, schedule.config

    def start(self) -> None:
        """Files that describe the run, before its next step; rank 0 writes them."""
        begun = self._schedule.image > 0
        if self._ranks.first:
            self._describe(begun)
        if not begun:
            with self._residence.whole() as store:
                chunks = self._of_all(store.exact_chunks(None), "writing input.ply")
                self._written(
                    lambda: write_ply(self._folder / "input.ply", chunks, antialiased=self._config.antialias), chunks
                )

    def _describe(self, begun: bool) -> None:
        folder, config, scene = self._folder, self._config, self._scene
        folder.mkdir(parents=True, exist_ok=True)
        remove_run_leftovers(folder)
        split = read_split(folder, config) if begun else None
        write_run_config(folder, scene.path, config)  # first: it says whose the other files are
        write_split(folder, scene, split)
        with atomic_write(folder / "cfg_args", "w") as file:
            file.write(repr(_cfg_args(config, scene, folder)))
        write_json(folder / "cameras.json", cameras_json(scene))
        if scene.offset.any():
            write_georef(folder / "georef.json", scene.offset)

    def finish(self) -> None:
        """PLY, metrics and the receipt of a run that reached its last image."""
        self._write_ply()
        figures = self._evaluation.run()
        split = "test" if figures["test"] else "train"
        for line in in_words(split, figures[split]) if figures[split]["per_view"] else []:
            self._emit(Message(line))
        receipt = self._receipt()
        if self._ranks.first:
            write_json(self._folder / "report.json", receipt)
        peak, budget = receipt["peak"]["device_bytes"], receipt["budget"]["device_bytes"]
        self._emit(
            Message(
                f"device peak {format_bytes(peak)} of a budget of {format_bytes(budget)}; everything on the device would have "
                f"needed {format_bytes(receipt['in_core_bytes'])}"
            )
        )

    def _receipt(self) -> dict[str, Any]:
        """The content of `report.json`: traffic of all ranks together, peaks and budgets of rank 0; `ranks` says those of each."""
        residence, ranks, image = self._residence, self._ranks, self._schedule.image
        device, host = residence.budgets()
        to_each, images = residence.travelled.to_each.tolist(), residence.travelled.images
        mine = RankTotals(self._accounts.totals, residence.own_rows, device, host, to_each, images, ranks.seconds)
        each = ranks.gather(mine)
        kind, offload = residence.device.kind, residence.placement.offload
        receipt = report(together(each), image, residence.rows, kind, offload)
        receipt |= {"budget": {"device_bytes": device, "host_bytes": host}, "machine": this_machine(kind)}
        return receipt if ranks.alone else receipt | {"ranks": of_each(each)}

    def _write_ply(self) -> None:
        """The Gaussians as they are now, streamed to `point_cloud/iteration_N/point_cloud.ply` (georef.json beside it)."""
        ply, step = ply_path(self._folder, self._schedule.image), self._schedule.next_step()
        with self._residence.whole() as store:
            chunks = self._of_all(store.exact_chunks(step), "exporting point_cloud.ply")
            offset, antialiased = self._scene.offset, self._config.antialias
            self._written(lambda: write_result(ply, chunks, antialiased=antialiased, offset=offset), chunks)

    def _of_all(self, chunks: Iterable[Chunk], what: str) -> Iterator[Chunk]:
        """The rows of all ranks, in their order, at rank 0; the others send theirs, and have none."""
        there: Iterator[Chunk] = self._ranks.to_first(chunks)  # type: ignore[assignment]
        return counted(there, what, self._residence.rows, "Gaussians", reporter(self._emit), rows_of)

    def _written(self, write: Callable[[], object], chunks: Iterable[Chunk]) -> None:
        """Rank 0 writes chunks, which the others send."""
        if self._ranks.first:
            write()
        else:
            for _ in chunks:
                pass


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
