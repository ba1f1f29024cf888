"""How much memory an export takes at most, known before it begins: the sum of what its parts say of themselves."""

from __future__ import annotations

from clm.formats.ordered import BUCKET_ROWS
from clm.formats.registry import Format
from clm.formats.select import FILE
from clm.formats.split import Split
from clm.store.layout import COLOUR_COLUMNS, GEOMETRY_COLUMNS

PASSING_BYTES = 150 << 20  # libraries that are loaded on the way, and the chunks under way
_ROW_BYTES = 4 * (GEOMETRY_COLUMNS + COLOUR_COLUMNS)
_MAKING, _SHARING, _WRITING = (
    32,
    48,
    8,
)  # bytes a row: making an order; sharing rows out over files; following the order


def export_bytes(format: Format, rows: int, split: Split, bucket_rows: int = BUCKET_ROWS) -> int:
    """Bytes that an export of a model of so many rows takes beside the program. bucket_rows: of `in_order`."""
    if format.order == FILE and not split:
        return PASSING_BYTES
    in_file = rows if split.max_per_file is None else min(rows, split.max_per_file)
    writing = _WRITING * rows + _ROW_BYTES * min(rows, bucket_rows) + format.held(in_file)
    return PASSING_BYTES + max((_SHARING if split else _MAKING) * rows, writing)
