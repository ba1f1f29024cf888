"""256 values that many numbers are rounded to: the scalar codebooks of a SOG.

The density of points that makes the squared error least is the cube root of that of the numbers (Panter and Dite 1951); a few of
Lloyd's steps settle what is left. Numbers count by the root of how many are alike: the tails, where the largest and the brightest
splats are, are seen more than they count, and the middle stays finer than a pixel shows.
"""

from __future__ import annotations

import numpy as np

SIZE = 256
_BINS, _DENSITY_BINS = 1 << 14, 1 << 9
_LLOYD_STEPS = 8


def scalar_codebook(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Ascending values [256] f32 for numbers like `values` [n] f32, all of which lie within low..high; both ends are entries, so
    that no number is moved by more than the gap that it lies in."""
    if not low < high:
        return np.full(SIZE, low, np.float32)
    counts, edges = np.histogram(values, _BINS, (low, high))
    if not counts.any():
        return np.linspace(low, high, SIZE).astype(np.float32)
    coarse = counts.reshape(_DENSITY_BINS, -1).sum(axis=1)
    share = np.append(0, np.cumsum(np.cbrt(np.sqrt(coarse))))
    targets = (np.arange(1, SIZE - 1) + 0.5) / SIZE * share[-1]
    inner = np.interp(targets, share, edges[:: _BINS // _DENSITY_BINS])
    middles, counts = (edges[:-1] + edges[1:]) / 2, np.sqrt(counts)
    total, weighted = np.append(0, np.cumsum(counts)), np.append(0, np.cumsum(counts * middles))
    for _ in range(_LLOYD_STEPS):
        points = np.concatenate([[low], inner, [high]])
        cuts = np.searchsorted(middles, (points[1:] + points[:-1]) / 2)
        held = np.diff(total[cuts])
        inner = np.where(held > 0, np.diff(weighted[cuts]) / np.maximum(held, 1), inner)
    book = np.concatenate([[low], np.sort(inner), [high]]).astype(np.float32)
    book[0], book[-1] = low, high
    return book


def nearest(book: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Numbers [...] u8 of the entries of an ascending codebook that are nearest to `values`."""
    return np.searchsorted((book[1:] + book[:-1]) / 2, values).astype(np.uint8)
