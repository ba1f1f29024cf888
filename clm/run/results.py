"""The newest result of a run for those who look at it: `clm render`, `clm eval`, `clm export`.

A run that has not finished has checkpoints that are newer than its PLY, or no PLY at all. The newest one is then written as
`point_cloud/iteration_N/point_cloud.ply`, exactly as the trainer would have at that image, and opened as any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from clm.errors import ClmError
from clm.formats.model import ModelFile, image_of_ply, newest_ply, open_model
from clm.formats.ply_write import write_ply
from clm.kernels.rows import AdamStep
from clm.progress import Report, counted, rows_of
from clm.run.arrays import Damaged
from clm.run.checkpoint import checkpoints, image_of_checkpoint
from clm.run.events import Emit, Message, reporter
from clm.run.room import Room
from clm.run.saved import load_saved
from clm.scene.georef import read_georef, write_georef
from clm.store.store import Store


def open_result(path: Path, emit: Emit, room: Room) -> ModelFile:
    """As `open_model`, of a run's newest state: its PLY, or its checkpoint where that is of a later image. room: for the rows of
    a checkpoint.

    Raises ClmError where there is neither, ResourceError where the disk has no room for the PLY of a checkpoint."""
    if path.is_dir():
        _export_checkpoint(path, emit, room)
    return open_model(path)


def _export_checkpoint(run: Path, emit: Emit, room: Room) -> None:
    """Write the newest checkpoint that is whole as a PLY, unless a PLY of its image or of a later one is there."""
    written, saved = _newest_image(run), checkpoints(run / "checkpoints")
    if not saved or image_of_checkpoint(saved[-1]) <= written:
        return
    try:
        path, state, store, _ = load_saved(saved[-1], emit, room)
    except Damaged as error:
        if written < 0:
            raise
        emit(Message(f"{error.message} Taking the PLY of image {written}, which is older.", "warning"))
        return
    progress = state.progress
    if progress.iteration <= written:
        return
    ply = ply_path(run, progress.iteration)
    emit(Message(f"The run is at image {progress.iteration}: taking {path}, written as {ply}."))
    step = progress.leg.adam().at(progress.leg.index(progress.step) + 1)
    offset = read_georef(run / "georef.json")
    with closing(store):
        chunks = exact_rows(store, step, "exporting point_cloud.ply", reporter(emit))
        write_result(ply, chunks, antialiased=state.config.antialias, offset=offset)


def ply_path(run: Path, image: int) -> Path:
    return run / "point_cloud" / f"iteration_{image}" / "point_cloud.ply"


def write_result(
    ply: Path, chunks: Iterable[tuple[np.ndarray, np.ndarray]], *, antialiased: bool, offset: np.ndarray
) -> None:
    """Rows as `Store.exact_chunks` gives them as a PLY, with georef.json beside it where an offset [3] f64 was subtracted."""
    write_ply(ply, chunks, antialiased=antialiased)
    if offset.any():
        write_georef(ply.parent / "georef.json", offset)


def exact_rows(
    store: Store, step: AdamStep | None, what: str, report: Report
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`Store.exact_chunks`, reported as `what`."""
    return counted(store.exact_chunks(step), what, store.rows, "Gaussians", report, rows_of)


def _newest_image(run: Path) -> int:
    """The image of the newest PLY of a run; -1 where there is none."""
    try:
        return image_of_ply(newest_ply(run))
    except ClmError:
        return -1
