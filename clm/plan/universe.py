"""Small numbers for the rows of one batch, so that the plan's arrays grow with what is seen and not with N.

Blocks that no view touches are squeezed out: local id = row + shift[block]. The map keeps the order of rows and the
offset inside a block, so it costs one gather from a table of blocks and needs no hashing, sorting or array of N.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def localize(sets: Sequence[np.ndarray], block_rows: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Local ids (int64, below t * block_rows) of sorted int32 row sets, and the touched blocks [t], ascending."""
    if block_rows < 1:
        raise ValueError(f"block_rows must be positive, got {block_rows}")
    blocks = [(rows // np.int32(block_rows)).astype(np.int64) for rows in sets]
    touched = np.zeros(max((int(b[-1]) + 1 for b in blocks if len(b)), default=0), bool)
    for block in blocks:
        touched[block] = True
    listed = np.flatnonzero(touched)
    if len(listed) == len(touched):
        return [rows.astype(np.int64) for rows in sets], listed
    shift = np.zeros(len(touched), np.int64)
    shift[listed] = (np.arange(len(listed)) - listed) * block_rows
    return [rows + shift.take(block) for rows, block in zip(sets, blocks, strict=True)], listed


def global_rows(local: np.ndarray, touched: np.ndarray, block_rows: int) -> np.ndarray:
    """Row ids int32 of local ids: the inverse of `localize`."""
    shift = (touched - np.arange(len(touched))) * block_rows
    return (local + shift.take(local // block_rows)).astype(np.int32)
