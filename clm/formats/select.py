"""The rows that an export writes: filtered once for all formats, in the order that the format gains by, in bounded memory.

A writer gets a `Selection`, not a file: it knows how many rows there will be, so that columns and tables have their place from
the start, and may go over them as often as it needs. Memory: 4 bytes for each row that is not taken in file order, 28 while
the order is made, and a bucket (`clm.formats.ordered`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from clm.errors import ClmError
from clm.formats.options import Filters
from clm.formats.ordered import BUCKET_ROWS, in_order
from clm.formats.rows import Chunk, Numbered, Rows
from clm.formats.spool import spooled
from clm.kernels.sort import sorted_rows, space_keys
from clm.progress import Report, counted, pending, rows_of, unseen
from clm.store.layout import CHUNK_ROWS, LOG_SCALES, LOGIT_OPACITIES, MEANS
from clm.store.order import plain_entries

FILE, SPACE, IMPORTANCE = "file", "space", "importance"
_SAMPLED_ROWS = 100_000  # for the middle of the rows
_MOST_ROWS = 2**31 - 1  # that can be put into an order


@dataclass(frozen=True)
class Facts:
    """What one pass over rows tells."""

    count: int
    low: np.ndarray  # [3] f32, of centres
    high: np.ndarray


class Selection:
    """Rows of a model that are to be written, in order."""

    def __init__(
        self,
        rows: Rows,
        filters: Filters,
        numbers: np.ndarray | None,
        facts: Facts | None,
        *,
        sh_degree: int,
        scratch: Path,
        bucket_rows: int = BUCKET_ROWS,
        warn: Callable[[str], None] = lambda text: None,
        report: Report = unseen,
    ):
        """numbers [n] i32: the rows in order; None: those that pass the filters, in file order. facts: where they are known."""
        self.rows, self.filters, self.numbers, self._known = rows, filters, numbers, facts
        self.sh_degree, self.antialiased = sh_degree, rows.antialiased
        self.scratch, self.bucket_rows, self.warn, self.report = scratch, bucket_rows, warn, report

    @property
    def count(self) -> int:
        """Rows, exactly; a pass over the file where nobody has counted them yet."""
        return len(self.numbers) if self.numbers is not None else self.facts.count

    @property
    def low(self) -> np.ndarray:
        return self.facts.low

    @property
    def high(self) -> np.ndarray:
        return self.facts.high

    @cached_property
    def facts(self) -> Facts:
        if self._known is not None:
            return self._known
        count, low, high = 0, np.full(3, np.inf, np.float32), np.full(3, -np.inf, np.float32)
        for geometry, _ in self.chunks(f"measuring {self.rows.path.name}"):
            means = geometry[:, MEANS]
            low, high = np.minimum(low, means.min(axis=0)), np.maximum(high, means.max(axis=0))
            count += len(means)
        return Facts(count, low, high)

    def chunks(self, what: str = "exporting") -> Iterator[Chunk]:
        """One pass: geometry [k, 12] f32 and colour [k, 48] f32, k at most CHUNK_ROWS; arrays are valid until the next are asked
        for. Coefficients above `sh_degree` are zero. what: of the progress."""
        if self.numbers is None:
            source, total = kept(self.rows, self.filters), self.rows.count
        else:
            source, total = self._in_order(), len(self.numbers)
        cut = 3 * (self.sh_degree + 1) ** 2 if self.sh_degree < self.rows.sh_degree else None
        for geometry, colour in counted(source, what, total, "Gaussians", self.report, rows_of):
            if cut is not None:
                colour[:, cut:] = 0
            yield geometry, colour

    def _in_order(self) -> Iterator[Chunk]:
        assert self.numbers is not None
        return in_order(self.rows, self.numbers, self.scratch, self.report, bucket_rows=self.bucket_rows)

    def entries(self) -> np.ndarray:
        """Centre and bounding radius [count, 4] f32 of every row, in order; a pass."""
        entries, done = np.empty((self.count, 4), np.float32), 0
        for geometry, _ in self.chunks(f"reading places in {self.rows.path.name}"):
            entries[done : done + len(geometry)] = plain_entries(geometry)
            done += len(geometry)
        return entries

    @contextmanager
    def on_disk(self) -> Iterator[Rows]:
        """The rows, in order, in a file without a name in `scratch` (240 bytes each): any part of it can be read again and again
        at no more than its own cost."""
        chunks = self.chunks(f"sorting {self.rows.path.name}")
        with spooled(chunks, self.count, self.rows, self.sh_degree, self.scratch) as rows:
            yield rows

    def part(self, at: np.ndarray, rows: Rows | None = None) -> Selection:
        """The rows at places `at` [n] i32 of this order, in that order. rows: of `on_disk`, from where they are then taken."""
        if rows is None and self.numbers is None:
            raise ValueError("rows in file order have no places: take them from `on_disk`")
        numbers = at if rows is not None else self.numbers[at]  # type: ignore[index]
        return Selection(
            rows or self.rows, self.filters, numbers, None, sh_degree=self.sh_degree, scratch=self.scratch,
            bucket_rows=self.bucket_rows, warn=self.warn, report=self.report,
        )  # fmt: skip


def select(
    rows: Rows,
    filters: Filters,
    order: str,
    *,
    sh_degree: int,
    scratch: Path,
    bucket_rows: int = BUCKET_ROWS,
    warn: Callable[[str], None] = lambda text: None,
    report: Report = unseen,
) -> Selection:
    """The rows of a model that pass the filters: in file order (no pass is made here), along a curve through space, or by how much
    is seen of them, the most first (both a pass)."""
    numbers = facts = None
    if order != FILE:
        numbers, facts = _ordered(rows, filters, order, report)
    return Selection(
        rows, filters, numbers, facts, sh_degree=min(sh_degree, rows.sh_degree), scratch=scratch, bucket_rows=bucket_rows,
        warn=warn, report=report,
    )  # fmt: skip


# ---- which rows ----


def kept(rows: Rows, filters: Filters) -> Iterator[Chunk]:
    """Rows that pass the filters, in file order."""
    for piece in _kept(rows, filters):
        yield piece.geometry, piece.colour


def _kept(rows: Rows, filters: Filters) -> Iterator[Numbered]:
    found = seen = 0
    for piece in rows.numbered(CHUNK_ROWS):
        seen += len(piece.numbers)
        passed = _passing(piece.geometry, filters)
        if not passed.all():
            piece = Numbered(*(array[passed] for array in piece))
        found += len(piece.numbers)
        if len(piece.numbers):
            yield piece
    bad = rows.unusable + rows.clamped
    if filters.nan == "refuse" and bad:
        raise ClmError(
            f"{rows.path} holds {bad:,} values that are not finite or rotations that are none, and --nan is refuse.",
            "Use --nan drop to leave such Gaussians out.",
        )
    if not found and rows.count:
        if seen:
            raise ClmError(
                f"No Gaussian of {rows.path} is left: {filters.named()} left out all {seen:,}.", "Ask for more."
            )
        raise ClmError(
            f"{rows.path} holds no usable Gaussian: all {rows.count:,} were left out.", "Train or export it again."
        )


def _passing(geometry: np.ndarray, filters: Filters) -> np.ndarray:
    """Which rows [k] bool pass the filters."""
    passed = np.ones(len(geometry), bool)
    if filters.min_opacity > 0:
        passed &= geometry[:, LOGIT_OPACITIES] >= np.log(filters.min_opacity / (1 - filters.min_opacity))
    if filters.crop is not None:
        means = geometry[:, MEANS]
        passed &= ((means >= filters.crop[:3]) & (means <= filters.crop[3:])).all(axis=1)
    return passed


# ---- in which order ----


def _ordered(rows: Rows, filters: Filters, order: str, report: Report) -> tuple[np.ndarray, Facts]:
    """Numbers [n] i32 of the rows that pass, in order, from one pass over their geometry."""
    if rows.count > _MOST_ROWS:
        raise ClmError(
            f"{rows.path} holds {rows.count:,} Gaussians: 2^31 - 1 can be put into an order.", "Take a part of it."
        )
    numbers = np.empty(rows.count, np.int32)
    values = np.empty((rows.count, 4 if order == SPACE else 1), np.float32)
    count, low, high = 0, np.full(3, np.inf, np.float32), np.full(3, -np.inf, np.float32)
    what = f"reading places in {rows.path.name}"
    for piece in counted(_kept(rows, filters), what, rows.count, "Gaussians", report, lambda piece: len(piece.numbers)):
        means, last = piece.geometry[:, MEANS], count + len(piece.numbers)
        low, high = np.minimum(low, means.min(axis=0)), np.maximum(high, means.max(axis=0))
        numbers[count:last] = piece.numbers
        if order == SPACE:
            values[count:last, :3], values[count:last, 3] = means, 0
        else:
            values[count:last, 0] = importance(piece.geometry)
        count = last
    numbers, values = numbers[:count], values[:count]
    with pending(f"sorting {count:,} Gaussians", report):
        keys = _curve_keys(values) if order == SPACE else _descending_keys(values[:, 0])
        del values  # before sorting takes as much
        numbers = numbers[sorted_rows(keys)]
    return numbers, Facts(count, low, high)


def importance(geometry: np.ndarray) -> np.ndarray:
    """The logarithm [k] f32 of volume times opacity: what a viewer that loads rows one by one should show first."""
    logits = geometry[:, LOGIT_OPACITIES]
    return geometry[:, LOG_SCALES].sum(axis=1) - np.logaddexp(np.float32(0), -logits)


def _descending_keys(values: np.ndarray) -> np.ndarray:
    """Keys [n] u64 that rise as finite `values` [n] f32 fall."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rising = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (~rising).astype(np.uint64)


def _curve_keys(centres: np.ndarray) -> np.ndarray:
    """Keys [n] u64 along a Morton curve of centres [n, 4] f32, which are overwritten.

    Distances from the middle are taken as asinh: near it the curve's cells are cubes, and a few rows far away spoil none of
    the others' (a chunk of a compressed file is as large as the rows in it lie apart)."""
    if not len(centres):
        return np.empty(0, np.uint64)
    sample = centres[:: max(1, len(centres) // _SAMPLED_ROWS), :3]
    lower, middle, upper = np.percentile(sample, [25, 50, 75], axis=0).astype(np.float32)
    spread = np.float32(max(float((upper - lower).max()), 1e-30))
    for start in range(0, len(centres), CHUNK_ROWS):
        piece = centres[start : start + CHUNK_ROWS, :3]
        np.arcsinh((piece - middle) / spread, out=piece)
    low, high = (f(centres[:, :3], axis=0).astype(np.float64) for f in (np.min, np.max))
    return space_keys(centres, low, float((high - low).max()) or 1.0, np.full(3, np.inf, np.float32))
