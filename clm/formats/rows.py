"""Rows in a file of any format: what a reader has to tell, and what follows from it.

A reader decodes rows as they are in its file, a piece at a time. What nobody can use (rows that are not finite or have no
rotation) is left out here, and infinite opacities become finite, in one way for all formats; both are messages.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from clm.store.layout import CHUNK_ROWS, LOGIT_OPACITIES, QUATS

# An infinite logit opacity is read as +-20: sigmoid(20) is 1 in float32, and the logit can be trained.
INFINITE_LOGIT = 20.0

Chunk = tuple[np.ndarray, np.ndarray]  # geometry [k, 12] f32 and colour [k, 48] f32 (clm.store.layout)


class Numbered(NamedTuple):
    """Rows and their numbers in the file [k] i64, ascending."""

    numbers: np.ndarray
    geometry: np.ndarray
    colour: np.ndarray


@dataclass
class Rows(ABC):
    """A model in a file, opened. `messages` says what reading had to change; it is complete once `chunks` has run out."""

    kind: ClassVar[str]  # the format in a word or two

    path: Path
    count: int  # rows in the file; `chunks` yields fewer where rows cannot be used
    sh_degree: int
    antialiased: bool
    messages: list[str] = field(default_factory=list, kw_only=True)
    notes: list[str] = field(default_factory=list, kw_only=True)  # the messages that are known before a row is read
    unusable: int = field(default=0, kw_only=True)  # rows that the last pass left out
    clamped: int = field(default=0, kw_only=True)  # opacities that it made finite

    @property
    def seekable(self) -> bool:
        """Whether rows can be read from the middle of the file at no more than their own cost."""
        return True

    @abstractmethod
    def pieces(self, size: int, first: int = 0) -> Iterator[Chunk]:
        """All rows from `first` on as they are in the file, `size` at a time (fewer at the end), fresh arrays. Coefficients above
        the file's degree are zero; quaternions have any norm. Memory: one piece. ClmError where the file is damaged."""
        ...

    def facts(self) -> dict[str, Any]:
        """What `clm info` shows of the file, without reading a row."""
        return {
            "gaussians": self.count,
            "sh_degree": self.sh_degree,
            "antialiased": self.antialiased,
            "format": self.kind,
            "bytes": self.path.stat().st_size,
            "extra_properties": [],
            "comments": list(self.notes),
        }

    def chunks(self, size: int = CHUNK_ROWS) -> Iterator[Chunk]:
        """Rows that can be used, in file order, at most `size` at a time: geometry [k, 12] and colour [k, 48] f32, fresh arrays."""
        for piece in self.numbered(size):
            if len(piece.geometry):
                yield piece.geometry, piece.colour

    def numbered(self, size: int = CHUNK_ROWS) -> Iterator[Numbered]:
        """As `chunks`, with each row's number in the file."""
        dropped = clamped = first = 0
        for geometry, colour in self.pieces(size):
            piece, of_these = _usable(first, geometry, colour)
            first, clamped, dropped = (
                first + len(geometry),
                clamped + of_these,
                dropped + len(geometry) - len(piece.numbers),
            )
            yield piece
        self.unusable, self.clamped, self.messages = dropped, clamped, list(self.notes)
        if clamped:
            self.messages.append(
                f"{clamped} of {self.count} opacities were infinite: read as logits of +-{INFINITE_LOGIT:g}."
            )
        if dropped:
            self.messages.append(f"{dropped} of {self.count} Gaussians were not finite or had no rotation: left out.")

    def read(self, first: int, last: int) -> Numbered:
        """Rows first..last-1 of the file, those that can be used."""
        return _usable(first, *next(self.pieces(last - first, first)))[0]


def _usable(first: int, geometry: np.ndarray, colour: np.ndarray) -> tuple[Numbered, int]:
    """The rows of a piece that can be used, the first of which is `first` in the file, and how many opacities were clamped."""
    logits = geometry[:, LOGIT_OPACITIES]
    infinite = np.isinf(logits)
    np.copyto(logits, np.copysign(np.float32(INFINITE_LOGIT), logits), where=infinite)
    good = np.isfinite(geometry).all(axis=1) & np.isfinite(colour).all(axis=1) & geometry[:, QUATS].any(axis=1)
    numbers = np.arange(first, first + len(geometry))
    if not good.all():
        numbers, geometry, colour = numbers[good], geometry[good], colour[good]
    return Numbered(numbers, geometry, colour), int(infinite.sum())


def in_multiples(chunks: Iterable[Chunk], of: int) -> Iterator[Chunk]:
    """The same rows, so that only the last chunk may have a number of rows that is no multiple of `of`."""
    left: list[Chunk] = []
    for geometry, colour in chunks:
        if left:
            geometry, colour = (np.concatenate(pair) for pair in zip(left.pop(), (geometry, colour), strict=True))
        whole = len(geometry) // of * of
        if whole < len(geometry):
            left.append((geometry[whole:].copy(), colour[whole:].copy()))
        if whole:
            yield geometry[:whole], colour[:whole]
    yield from left
