"""A trained model opened for rendering or export: a run directory or a file of any format, streamed into a store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clm.errors import ClmError
from clm.formats.registry import open_rows
from clm.formats.rows import Rows
from clm.formats.source import FileSource, Make, store_of
from clm.progress import Report, counted, rows_of, unseen
from clm.store.layout import CHUNK_ROWS
from clm.store.order import block_order
from clm.store.store import Store


@dataclass(frozen=True)
class ModelFile:
    """Where a model's rows are; `run` is the run directory it belongs to, if any."""

    ply: Path  # or a file of another format
    rows: Rows
    run: Path | None

    def store(self, make: Make, scratch: Path, bucket_rows: int, report: Report = unseen) -> Store:
        """All rows, without moments, culling bounds ready: in RAM in file order; over frames, where a page that is a compact piece
        of space is read for few views, in store order. scratch, bucket_rows: of `in_order`."""
        store = make(self.rows.count, None)
        if store.disk is not None and self.rows.count:
            source = FileSource(self.rows, np.zeros(3), scratch, bucket_rows, lambda text: None, report)
            return store_of(source, block_order(source.entries()), None, lambda rows, moments: store, report)
        for geometry, colour in self.chunks(f"loading {self.ply.name}", report):
            store.append(geometry, colour)
        store.refresh_bounds(np.arange(store.pages, dtype=np.int32))
        return store

    def chunks(self, what: str, report: Report) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows as `PlyRows.chunks` gives them, reported as `what`."""
        return counted(self.rows.chunks(CHUNK_ROWS), what, self.rows.count, "Gaussians", report, rows_of)


def image_of_ply(ply: Path) -> int:
    """N of `point_cloud/iteration_N/point_cloud.ply`; -1 where the folder has another name."""
    number = ply.parent.name.removeprefix("iteration_")
    return int(number) if number.isdecimal() else -1


def newest_ply(run: Path) -> Path:
    """The PLY with the highest iteration in a run directory."""
    found = [p for p in run.glob("point_cloud/iteration_*/point_cloud.ply") if image_of_ply(p) >= 0]
    if not found:
        raise ClmError(
            f"No PLY in {run}. Looked for: point_cloud/iteration_*/point_cloud.ply.",
            "Finish the training (`clm train ... --resume`) or pass a PLY file.",
        )
    return max(found, key=image_of_ply)


def open_model(path: Path) -> ModelFile:
    """A run directory, or a file of any format that is read; ClmError says what was looked for otherwise."""
    if path.is_dir():
        ply = newest_ply(path)
        return ModelFile(ply, open_rows(ply), path)
    if not path.exists():
        raise ClmError(f"No such file or directory: {path}.", "Pass a run directory or a .ply file.")
    run = path.resolve().parents[2] if len(path.resolve().parents) > 2 else None
    return ModelFile(path, open_rows(path), run if run is not None and (run / "cameras.json").exists() else None)
