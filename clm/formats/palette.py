"""Vector quantisation of spherical harmonics: a palette of at most 65,536 rows, and for each row the entry nearest to it.

Lloyd's algorithm in two storeys: a few hundred coarse cells, each divided into as many entries as its rows and their spread
earn. A row is compared with the entries of the few cells nearest to it, not with all: a thousand products instead of 65,536,
all of them matrix products. Fitted on a sample, assigned by chunk; random numbers have fixed seeds, so that the same rows
give the same palette on the same machine. Batches and cells are shared out over threads here: products as small as these are
slower, and on a busy machine ten times so, when the library behind numpy divides each (`clm export` tells it not to).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

MOST_ENTRIES = 1 << 16
SAMPLE_ROWS = 1 << 19  # that a palette is fitted on, at most
_COARSE_ROWS = 1 << 15  # that the coarse cells are fitted on
_PROBES = 3  # coarse cells that a row looks into
_COARSE_STEPS, _CELL_STEPS, _REFINEMENTS = 8, 5, 1
_BATCH = 1 << 14  # rows that look for their cells at a time
_PRODUCTS = 1 << 22  # distances held at once: 16 MiB
_MOST_THREADS = 8
_MOST_OF_MEAN = 2  # entries of a cell, relative to what cells have on average


@dataclass(frozen=True)
class Palette:
    """entries [k, d] f32; those of coarse cell c, with centre coarse[c] [d] f32, are first[c]..first[c + 1]."""

    coarse: np.ndarray
    first: np.ndarray
    entries: np.ndarray

    def assign(self, rows: np.ndarray) -> np.ndarray:
        """Numbers [n] i64 of the entries nearest to rows [n, d] f32, among those of the cells nearest to each.

        Memory: 20 MiB per thread beside the rows."""
        batches = [rows[begin : begin + _BATCH] for begin in range(0, len(rows), _BATCH)]
        return np.concatenate(_shared_out(self._assign_batch, batches)) if batches else np.zeros(0, np.int64)

    def _assign_batch(self, batch: np.ndarray) -> np.ndarray:
        labels, best = np.zeros(len(batch), np.int64), np.full(len(batch), np.inf, np.float32)
        for cells in self._nearest_cells(batch):
            order = np.argsort(cells, kind="stable")
            cuts = np.searchsorted(cells[order], np.arange(len(self.coarse) + 1))
            for cell in np.flatnonzero(np.diff(cuts)).tolist():
                mine, start = order[cuts[cell] : cuts[cell + 1]], int(self.first[cell])
                found, least = _nearest(batch[mine], self.entries[start : int(self.first[cell + 1])])
                closer = least < best[mine]
                best[mine[closer]] = least[closer]
                labels[mine[closer]] = start + found[closer]
        return labels

    def _nearest_cells(self, batch: np.ndarray) -> list[np.ndarray]:
        distance = _distances(batch, self.coarse)
        found = []
        for _ in range(min(_PROBES, len(self.coarse))):
            cells = distance.argmin(axis=1)
            distance[np.arange(len(batch)), cells] = np.inf
            found.append(cells)
        return found


def palette_size(rows: int) -> int:
    """Entries for so many rows: a quarter, rounded down to a power of two, at most 65,536. (As many as rows would be twice the file
    for 2 dB, where a viewer loses more than that.)"""
    return min(MOST_ENTRIES, 1 << max(0, (rows // 4).bit_length() - 1))


def fit_palette(sample: np.ndarray, size: int) -> Palette:
    """A palette of at most `size` entries for rows like those of a sample [n, d] f32, n > 0.

    Memory: twice the sample."""
    few = _drawn(sample, _COARSE_ROWS, 0)
    coarse = _lloyd(few, max(1, round(size**0.5)), _COARSE_STEPS)
    cells = _nearest(sample, coarse)[0]
    order = np.argsort(cells, kind="stable")
    cuts = np.searchsorted(cells[order], np.arange(len(coarse) + 1))
    members = [sample[order[a:b]] for a, b in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True) if a < b]
    coarse = coarse[np.diff(cuts) > 0]
    shares = _shares(members, coarse, size)
    entries = _shared_out(partial(_lloyd, steps=_CELL_STEPS), members, shares.tolist())
    palette = Palette(coarse, np.append(0, np.cumsum(shares)), np.concatenate(entries))
    for _ in range(_REFINEMENTS):
        palette = Palette(coarse, palette.first, _means(sample, palette.assign(sample), palette.entries))
    return palette


def _nearest(rows: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers [n] i64 of the nearest of centres [k, d], k > 0, and `_distances` to them [n] f32."""
    found, least = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
    step = max(1, _PRODUCTS // len(centres))
    for begin in range(0, len(rows), step):
        distance = _distances(rows[begin : begin + step], centres)
        labels = distance.argmin(axis=1)
        found[begin : begin + step] = labels
        least[begin : begin + step] = distance[np.arange(len(labels)), labels]
    return found, least


def _distances(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distances [n, k] f32 of rows [n, d] to centres [k, d], less each row's own square."""
    distance = rows @ (-2 * centres.T)
    distance += (centres * centres).sum(axis=1)
    return distance


def _means(rows: np.ndarray, labels: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Centres [k, d] moved to the mean of the rows that are labelled with them; those without rows stay."""
    order = np.argsort(labels, kind="stable")
    present, begins, counts = np.unique(labels[order], return_index=True, return_counts=True)
    moved = centres.copy()
    moved[present] = np.add.reduceat(rows[order], begins, axis=0) / counts[:, None].astype(np.float32)
    return moved


def _shared_out(work: Callable[..., np.ndarray], *items: Iterable[Any]) -> list[np.ndarray]:
    """`map`, by as many threads as the machine has cores (8 at most); results in order."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS)) as pool:
        return list(pool.map(work, *items))


def _drawn(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` of the rows in their order, or all."""
    if len(rows) <= count:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), count, replace=False))]


def _lloyd(rows: np.ndarray, k: int, steps: int) -> np.ndarray:
    """Centres [min(k, n), d] of rows [n, d] f32, begun with as many of the rows."""
    if len(rows) <= k:
        return rows.copy()
    centres = _drawn(rows, k, len(rows))
    for _ in range(steps):
        centres = _means(rows, _nearest(rows, centres)[0], centres)
    return centres


def _shares(members: list[np.ndarray], coarse: np.ndarray, size: int) -> np.ndarray:
    """How many of `size` entries each cell gets [K] i64: by the root of rows times spread, none more than its rows,
    one at least."""
    counts = np.array([len(rows) for rows in members])  # none is zero
    most = np.minimum(counts, _MOST_OF_MEAN * max(1, size // len(members)))
    spread = [((rows - centre) ** 2).sum() for rows, centre in zip(members, coarse, strict=True)]
    earned = np.sqrt(counts * np.asarray(spread, np.float64)) + 1e-12 * counts
    shares = np.ones_like(counts)
    while (left := size - int(shares.sum())) > 0 and (wanting := shares < most).any():
        more = np.floor(left * np.where(wanting, earned, 0) / earned[wanting].sum()).astype(np.int64)
        if not more.any():
            more[np.argsort(np.where(wanting, -earned, 0), kind="stable")[: min(left, int(wanting.sum()))]] = 1
        shares = np.minimum(most, shares + more)
    return shares
