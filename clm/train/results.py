"""The newest result of a run for those who look at it: `clm render`, `clm eval`, `clm export`.

A run that has not finished has checkpoints that are newer than its PLY, or no PLY at all. The newest one is then written as
`point_cloud/iteration_N/point_cloud.ply`, exactly as the trainer would have at that image, and opened as any other.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from clm.errors import ClmError
from clm.files import atomic_write
from clm.gaussians.layout import CHUNK_ROWS
from clm.gaussians.model import ModelFile, newest_ply, open_model
from clm.gaussians.ply import write_ply
from clm.progress import counted, rows_of
from clm.train.arrays import Damaged
from clm.train.checkpoint import checkpoints, load_sound_checkpoint
from clm.train.events import Emit, Message, reporter
from clm.train.session import Saved


def open_result(path: Path, emit: Emit = lambda event: None) -> ModelFile:
    """As `open_model`, of a run's newest state: its PLY, or its checkpoint where that is of a later image.

    Raises ClmError where there is neither, ResourceError where the disk has no room for the PLY of a checkpoint."""
    if path.is_dir():
        _export_checkpoint(path, emit)
    return open_model(path)


def _export_checkpoint(run: Path, emit: Emit) -> None:
    """Write the newest checkpoint that is whole as a PLY, unless a PLY of its image or of a later one is there."""
    written, saved = _image_of_ply(run), checkpoints(run / "checkpoints")
    if not saved or int(saved[-1].name.rpartition("_")[2]) <= written:
        return
    try:
        path, state, store = load_sound_checkpoint(
            saved[-1],
            partial(Saved.parse, source=str(saved[-1])),
            lambda text: emit(Message(text, "warning")),
            reporter(emit),
        )
    except Damaged as error:
        if written < 0:
            raise
        emit(Message(f"{error.message} Taking the PLY of image {written}, which is older.", "warning"))
        return
    progress = state.progress
    if progress.iteration <= written:
        return
    folder = run / "point_cloud" / f"iteration_{progress.iteration}"
    emit(Message(f"The run is at image {progress.iteration}: taking {path}, written as {folder / 'point_cloud.ply'}."))
    rows = store.exact_chunks(progress.leg.adam().at(progress.leg.index(progress.step) + 1), CHUNK_ROWS)
    chunks = counted(rows, "exporting point_cloud.ply", store.rows, "Gaussians", reporter(emit), rows_of)
    write_ply(folder / "point_cloud.ply", chunks, antialiased=state.config.antialias)
    if (run / "georef.json").exists():
        with atomic_write(folder / "georef.json") as file, open(run / "georef.json", "rb") as offset:
            shutil.copyfileobj(offset, file)


def _image_of_ply(run: Path) -> int:
    """The image of the newest PLY of a run; -1 where there is none."""
    try:
        return int(newest_ply(run).parent.name.rpartition("_")[2])
    except ClmError:
        return -1
