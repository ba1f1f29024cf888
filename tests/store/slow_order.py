"""Slow twin of `clm.store.order`: the same keys in numpy, sorted by numpy."""

from __future__ import annotations

import numpy as np

CHUNK_ROWS = 1 << 16

_CLASS_EDGES = (4.0, 16.0, 64.0)  # multiples of the median bounding radius
_BITS = 20  # per axis


def _spread_bits(x: np.ndarray) -> np.ndarray:
    """Insert two zero bits between the bits of 20-bit integers (uint64)."""
    x = (x | (x << np.uint64(32))) & np.uint64(0x001F00000000FFFF)
    x = (x | (x << np.uint64(16))) & np.uint64(0x001F0000FF0000FF)
    x = (x | (x << np.uint64(8))) & np.uint64(0x100F00F00F00F00F)
    x = (x | (x << np.uint64(4))) & np.uint64(0x10C30C30C30C30C3)
    return (x | (x << np.uint64(2))) & np.uint64(0x1249249249249249)


def _grid(means: np.ndarray) -> tuple[np.ndarray, float]:
    """Corner [3] f64 of the box of the 1st to 99th percentile, and its longest edge: cells are cubes."""
    sample = means[:: max(1, len(means) // 100_000)]
    low, high = np.percentile(sample, [1, 99], axis=0)
    return low, float((high - low).max()) or 1.0


def _codes(means: np.ndarray, low: np.ndarray, edge: float) -> np.ndarray:
    cells = np.clip((means - low) / edge, 0.0, 1.0) * ((1 << _BITS) - 1)
    x, y, z = (_spread_bits(cells[:, axis].astype(np.uint64)) for axis in range(3))
    return x | (y << np.uint64(1)) | (z << np.uint64(2))


def morton_codes(means: np.ndarray) -> np.ndarray:
    """Morton codes [N] u64 of positions [N, 3], on the grid of the 1st to 99th percentile box (outliers clamp to its faces)."""
    low, edge = _grid(means)
    codes = np.empty(len(means), np.uint64)
    for first in range(0, len(means), CHUNK_ROWS):
        piece = slice(first, first + CHUNK_ROWS)
        codes[piece] = _codes(means[piece], low, edge)
    return codes


def slow_block_order(entries: np.ndarray) -> np.ndarray:
    """Row ids [N] in store order, from cull entries [N, 4] (centre, bounding radius). Stable: equal keys keep their order.

    Memory: 20 bytes per row, the result included."""
    if not len(entries):
        return np.zeros(0, np.int64)
    keys = morton_codes(entries[:, :3])
    edges = np.median(entries[:, 3]) * np.asarray(_CLASS_EDGES, np.float32)
    for first in range(0, len(entries), CHUNK_ROWS):
        piece = slice(first, first + CHUNK_ROWS)
        radius_class = np.searchsorted(edges, entries[piece, 3]).astype(np.uint64)
        keys[piece] |= radius_class << np.uint64(3 * _BITS)
    return np.argsort(keys, kind="stable")
