"""`clm export`: a model rewritten in any format, filtered, in bounded memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from clm.errors import ClmError
from clm.files import refuse_unwritable
from clm.formats.bounds import export_bytes
from clm.formats.options import Filters, Options
from clm.formats.registry import check_options, format_of
from clm.formats.select import select
from clm.formats.split import Split, folder_of, write_split
from clm.formats.spz import SpzRows
from clm.plan.budget import AUTO
from clm.run.events import Emit, Message, reporter
from clm.run.host_memory import resident_bytes
from clm.run.viewing import Budgets
from clm.units import format_bytes

_AXES = ("rdf", "rub")


def export_model(
    model: Path,
    out: Path,
    filters: Filters,
    options: Options,
    budgets: Budgets,
    emit: Emit = lambda event: None,
    *,
    spz_axes: str | None = None,
    split: Split = Split(),  # noqa: B008 (frozen)
) -> int:
    """Write `out` in the format that its name says, or as several files (`clm.formats.split`); returns the number of rows.

    spz_axes: of an SPZ that is read; `rub` where its writer turned it."""
    format = format_of(out)
    if "lod" in format.options:
        options, split = replace(options, lod=split.lod), replace(split, lod=None)
        if split:
            raise ClmError(f"{format.ending} is divided already.", "Leave out --tile and --max-per-file.")
    check_options(format, filters, options)
    refuse_unwritable(folder_of(out, format.ending) / format.ending if split else out)

    def warn(text: str) -> None:
        emit(Message(text, "warning"))

    opened, memory = budgets.open(model, emit), budgets.host(emit)
    rows, room = opened.rows, memory.room(AUTO, budgets.folder(model))
    _set_axes(opened.ply, rows, spz_axes)
    if out.exists() and out.samefile(opened.ply):
        raise ClmError(f"{out} is the model itself.", "Choose another name for the output.")
    if filters.sh is None and rows.sh_degree > format.most_sh:
        warn(f"{format.ending} holds spherical harmonics up to degree {format.most_sh}: those above are left out.")
    if rows.antialiased and not format.antialiased:
        warn(f"{format.ending} cannot say that the model was trained with antialiasing: set it in the viewer.")
    most = resident_bytes() + export_bytes(format, rows.count, split, room.bucket_rows)
    emit(Message(f"{rows.count:,} Gaussians as {format.ending}: at most {format_bytes(most)} of memory"))
    if memory.stated is not None and most > memory.stated:
        warn(f"That is more than --host-memory {budgets.host_memory}: --max-per-file divides the model.")
    degree = min(format.most_sh, 3 if filters.sh is None else filters.sh)
    selection = select(
        rows, filters, format.order, sh_degree=degree, scratch=budgets.folder(model), bucket_rows=room.bucket_rows, warn=warn,
        report=reporter(emit),
    )  # fmt: skip
    if split:
        count = write_split(
            out, format.ending, format.order, selection, split, lambda path, part: format.write(path, part, options)
        )
    else:
        count = format.write(out, selection, options)
    for text in rows.messages:
        warn(text)
    return count


def _set_axes(path: Path, rows: object, spz_axes: str | None) -> None:
    if spz_axes is None:
        return
    if spz_axes not in _AXES:
        raise ClmError(f"--spz-axes is `{spz_axes}`.", "Use rdf (as in a PLY), or rub (older writers).")
    if not isinstance(rows, SpzRows):
        raise ClmError(f"--spz-axes is for models in .spz, and {path.name} is none.", "Leave it out.")
    rows.axes = spz_axes
