"""Which blocks are resident: those that most views see, as far as the budget reaches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Sightings:
    """What the views of a scene see, as far as placement needs it: one pass over their visible sets."""

    largest_view: int  # rows
    per_block: np.ndarray  # [blocks] i64: rows of the block, summed over the views that may see them

    @staticmethod
    def of(sets: Iterable[np.ndarray], rows: int, block_rows: int) -> Sightings:
        """From visible sets (int32 ids, ascending), consumed one by one."""
        blocks = -(-rows // block_rows)
        per_block, largest = np.zeros(blocks, np.int64), 0
        edges = np.arange(1, blocks) * block_rows
        for seen in sets:
            largest = max(largest, len(seen))
            per_block += np.diff(np.searchsorted(seen, edges), prepend=0, append=len(seen))
        return Sightings(largest, per_block)


def resident_blocks(sightings: Sightings, rows: int, block_rows: int, resident_rows: int) -> np.ndarray:
    """[blocks] bool: whole blocks of together at most `resident_rows` rows, those first whose rows most views see.

    A row that is resident saves one load per batch that sees it, whatever block it is in, so the mean number of views per
    row ranks blocks; equal ones in order. Blocks that no view sees stay on the host while others are wanted.
    """
    blocks = len(sightings.per_block)
    sizes = np.full(blocks, block_rows)
    if blocks:
        sizes[-1] = rows - (blocks - 1) * block_rows
    order = np.argsort(-sightings.per_block / np.maximum(sizes, 1), kind="stable")
    chosen = np.zeros(blocks, bool)
    chosen[order[np.cumsum(sizes[order]) <= resident_rows]] = True
    return chosen
