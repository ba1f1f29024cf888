"""The order of rows: by radius class, then along a Morton curve, so that a block is a compact piece of space.

Large splats (sky, background) get their own blocks: a handful of inflated rows would otherwise inflate most block boxes.
"""

from __future__ import annotations

import numpy as np

from clm.kernels.sort import sorted_rows, space_keys
from clm.store.layout import EXTENT_SIGMAS, LOG_SCALES, MEANS

CLASS_EDGES = (4.0, 16.0, 64.0)  # multiples of the median bounding radius
_SAMPLED_ROWS = 100_000  # at least, for the grid


def _grid(means: np.ndarray) -> tuple[np.ndarray, float]:
    """Corner [3] f64 of the box of the 1st to 99th percentile, and its longest edge."""
    sample = means[:: max(1, len(means) // _SAMPLED_ROWS)]
    low, high = np.percentile(sample, [1, 99], axis=0).astype(np.float64)
    return low, float((high - low).max()) or 1.0


def plain_entries(geometry: np.ndarray) -> np.ndarray:
    """Centre and bounding radius [K, 4] f32 of rows with geometry [K, 12] f32 that were never updated."""
    radii = np.float32(EXTENT_SIGMAS) * np.exp(geometry[:, LOG_SCALES].max(axis=1))
    return np.column_stack([geometry[:, MEANS], radii])


def space_keys_of(entries: np.ndarray) -> np.ndarray:
    """Keys [N] u64 in whose order rows with these cull entries [N, 4] f32 (centre, bounding radius) are laid out."""
    edges = np.median(entries[:, 3]) * np.asarray(CLASS_EDGES, np.float32)
    return space_keys(entries, *_grid(entries[:, :3]), edges.astype(np.float32))


def block_order(entries: np.ndarray) -> np.ndarray:
    """Row ids [N] i32 in store order, from cull entries [N, 4]. Stable: equal keys keep their order.

    Memory: 24 bytes per row, the result included."""
    if not len(entries):
        return np.zeros(0, np.int32)
    return sorted_rows(space_keys_of(entries))
