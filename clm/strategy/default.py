"""Default densification (clone, split, prune, opacity reset) as pure decisions and operations on the store.

Thresholds and formulas: gsplat's DefaultStrategy and Kerbl et al. 2023, section 5. New rows start with zero moments. The
rows must be settled (exact parameters in the store) before any function here is called. Works on columns, never on the
device; memory beyond the store is a few bytes per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from clm.store.identity import child_keys, normals
from clm.store.layout import LOG_SCALES, LOGIT_OPACITIES, QUATS
from clm.store.order import block_order
from clm.store.store import Store

SPLIT_SHRINK = 1.6  # children of a split are this much smaller (gsplat)
_PIECE_ROWS = 1 << 14
_RESORT_FRACTION = 0.05  # new rows at the tail before blocks are cut anew


@dataclass(frozen=True)
class Thresholds:
    """Units: screen gradient in half image sizes, scales in world units, opacity in [0, 1]."""

    screen_gradient: float
    split_scale: float
    prune_opacity: float
    prune_scale: float | None  # None: large rows are kept


@dataclass(frozen=True)
class DensifyResult:
    """What one densification did, in rows."""

    cloned: int
    split: int
    pruned: int
    refused: int  # wanted to grow, but the budget said no
    rows: int


def quats_to_rotations(quats: np.ndarray) -> np.ndarray:
    """Rotation matrices [N, 3, 3] of quaternions wxyz [N, 4] of any norm."""
    w, x, y, z = (quats / np.maximum(np.linalg.norm(quats, axis=1, keepdims=True), 1e-12)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def choose_growth(store: Store, thresholds: Thresholds, max_new: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows to clone and rows to split (sorted ids), and how many candidates the budget refused (weakest gradient first)."""
    drawn, screen = store.statistics[:, 0], store.statistics[:, 1]
    gradient = screen / np.maximum(drawn, 1.0)
    candidates = np.flatnonzero(gradient > thresholds.screen_gradient)
    refused = max(0, len(candidates) - max(max_new, 0))
    if refused:
        strongest = np.lexsort((store.keys[candidates], -gradient[candidates]))[: max(max_new, 0)]
        candidates = np.sort(candidates[strongest])
    small, limit = np.empty(len(candidates), bool), np.log(thresholds.split_scale)
    for piece in _pieces(len(candidates)):
        small[piece] = store.geometry[candidates[piece], LOG_SCALES].max(axis=1, initial=-np.inf) <= limit
    return candidates[small], candidates[~small], refused


def _pieces(count: int) -> Iterator[slice]:
    """Parts of a list of rows that are copied one at a time, so that growing takes little beside what it adds."""
    for first in range(0, count, _PIECE_ROWS):
        yield slice(first, min(first + _PIECE_ROWS, count))


def append_grown(store: Store, clones: np.ndarray, splits: np.ndarray, seed: int, image: int) -> None:
    """Copies of the rows `clones` and children of the rows `splits`, at the store's tail."""
    store.reserve(store.rows + len(clones) + 2 * len(splits))
    for piece in _pieces(len(clones)):
        rows = clones[piece]
        store.append(store.geometry[rows], store.colour[rows], child_keys(store.keys[rows], image, 0))
    for piece in _pieces(len(splits)):
        rows = splits[piece]
        store.append(*split_rows(store.geometry[rows], store.colour[rows], store.keys[rows], seed, image))


def split_rows(
    geometry: np.ndarray, colour: np.ndarray, keys: np.ndarray, seed: int, image: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two children per row [2 K], each 1.6 times smaller: geometry, colour, keys.

    Their centres are drawn from the row's own Gaussian: a function of (seed, image, the row, which child)."""
    children, colours = np.repeat(geometry, 2, axis=0), np.repeat(colour, 2, axis=0)
    theirs = np.stack([child_keys(keys, image, child) for child in (0, 1)], axis=1).reshape(-1)
    offsets = normals(theirs, seed, image) * np.exp(children[:, LOG_SCALES].astype(np.float64))
    turn = quats_to_rotations(children[:, QUATS].astype(np.float64))
    for axis in range(3):  # written out: the same bits whatever rows are beside it
        moved = turn[:, axis, 0] * offsets[:, 0] + turn[:, axis, 1] * offsets[:, 1] + turn[:, axis, 2] * offsets[:, 2]
        children[:, axis] = (children[:, axis] + moved).astype(np.float32)
    children[:, LOG_SCALES] -= np.float32(np.log(SPLIT_SHRINK))
    return children, colours, theirs


def prune_mask(geometry: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """Rows [N] bool that are too transparent, or (with prune_scale) too large."""
    limit = np.log(thresholds.prune_opacity / (1.0 - thresholds.prune_opacity))
    mask = geometry[:, LOGIT_OPACITIES] < limit
    if thresholds.prune_scale is not None:
        for piece in _pieces(len(geometry)):
            mask[piece] |= geometry[piece, LOG_SCALES].max(axis=1) > np.log(thresholds.prune_scale)
    return mask


def densify(
    store: Store,
    thresholds: Thresholds,
    max_rows: int,
    seed: int,
    image: int,
    admits: Callable[[Store, np.ndarray], bool],
) -> DensifyResult:
    """Clone, split and prune once; clear the statistics. Entries and bounds must be refreshed afterwards.

    image: the training image after which it happens.
    At most `max_rows` rows remain, and `admits(store, drop [N] bool)` is asked before anything is final: it sees the store
    with the new rows at its tail and which rows would go. Whenever it refuses, a smaller growth is tried, down to none.
    """
    before = store.rows
    allowed, refused = max_rows - before, 0
    while True:
        clones, splits, refused = choose_growth(store, thresholds, allowed)
        append_grown(store, clones, splits, seed, image)
        drop = prune_mask(store.geometry, thresholds)
        pruned = int(drop.sum())
        drop[splits] = True
        grown = len(clones) + len(splits)
        if grown == 0 or admits(store, drop):
            break
        store.rows, allowed = before, grown * 3 // 4
    store.take(np.flatnonzero(~drop))
    store.statistics[:] = 0
    return DensifyResult(len(clones), len(splits), pruned, refused, store.rows)


def reset_opacity(store: Store, ceiling: float) -> None:
    """Opacities above `ceiling` are set to it; the opacity moments of every row start anew."""
    column = store.geometry[:, LOGIT_OPACITIES]
    np.minimum(column, np.float32(np.log(ceiling / (1.0 - ceiling))), out=column)
    store.m_geometry[:, LOGIT_OPACITIES] = 0
    store.v_geometry[:, LOGIT_OPACITIES] = 0


def resort(store: Store) -> None:
    """Sort rows into blocks anew; cull entries must be fresh, bounds must be refreshed afterwards."""
    store.take(block_order(store.entries))


def wants_resort(new_rows_since_sort: int, rows: int) -> bool:
    """Blocks are cut anew when the tail of new rows has grown past a fraction of the store."""
    return new_rows_since_sort > _RESORT_FRACTION * rows
