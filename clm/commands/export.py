"""`clm export`: a model rewritten as a PLY, streamed."""

from __future__ import annotations

from pathlib import Path

from clm.errors import ClmError
from clm.formats.ply_write import write_ply
from clm.run.events import Emit, Message, reporter
from clm.run.viewing import Budgets


def export_model(model: Path, out: Path, sh_degree: int, budgets: Budgets, emit: Emit = lambda event: None) -> int:
    """Write `out` with spherical harmonics up to `sh_degree`; returns the number of rows."""
    if out.suffix != ".ply" or out.name.endswith(".compressed.ply"):
        raise ClmError(f"Cannot write {out.name}: this version writes .ply only.", "Name the output OUT.ply.")
    opened = budgets.open(model, emit)
    if out.exists() and out.samefile(opened.ply):
        raise ClmError(f"{out} is the model itself.", "Choose another name for the output.")
    chunks = opened.chunks(f"exporting {out.name}", reporter(emit))
    count = write_ply(out, chunks, sh_degree=sh_degree, antialiased=opened.rows.antialiased)
    for text in opened.rows.messages:
        emit(Message(text, "warning"))
    return count
