"""A binary tree over rows in space: who is drawn at which level of detail is decided leaf by leaf.

Rows lie in the order of `clm.store.order`: by radius class, then along a Morton curve. Classes part first, so that a leaf of small
rows is not as large as the sky that one of them happens to lie near. A range is cut at the border of the largest cell of the
curve that is near its middle: leaves are compact, and none has fewer than a quarter of the rows that it might have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from clm.formats.decimate import covariances
from clm.formats.rows import Chunk
from clm.store.layout import EXTENT_SIGMAS, MEANS

_CLASS_BIT = 60  # of a key: above are the radius classes


@dataclass(frozen=True)
class Node:
    """Rows first..last-1 in order; `children` cut them in two, a leaf has none."""

    first: int
    last: int
    children: tuple[Node, Node] | None = None

    def leaves(self) -> Iterator[Node]:
        if self.children is None:
            yield self
        else:
            for child in self.children:
                yield from child.leaves()

    def described(self, leaf: Callable[[Node], dict[str, Any]], bounds: Iterator[np.ndarray]) -> dict[str, Any]:
        """As lod-meta.json has it; bounds: [2, 3] of each leaf, in order."""
        if self.children is None:
            return _bound(next(bounds)) | leaf(self)
        children = [child.described(leaf, bounds) for child in self.children]
        corners = np.array([[child["bound"]["min"], child["bound"]["max"]] for child in children])
        return _bound(np.array([corners[:, 0].min(axis=0), corners[:, 1].max(axis=0)])) | {"children": children}


def _bound(corners: np.ndarray) -> dict[str, Any]:
    low, high = ([float(f"{value:.7g}") for value in corner] for corner in corners)
    return {"bound": {"min": low, "max": high}}


def tree_of(keys: np.ndarray, most: int) -> Node:
    """The tree of rows with ascending keys [N] u64, N > 0, of leaves with at most so many rows."""
    classes = np.flatnonzero(np.diff(keys >> np.uint64(_CLASS_BIT))) + 1
    return _by_class(keys, most, [0, *classes.tolist(), len(keys)])


def _by_class(keys: np.ndarray, most: int, cuts: list[int]) -> Node:
    first = _divided(keys, most, cuts[0], cuts[1])
    if len(cuts) == 2:
        return first
    return Node(cuts[0], cuts[-1], (first, _by_class(keys, most, cuts[1:])))


def _divided(keys: np.ndarray, most: int, first: int, last: int) -> Node:
    if last - first <= most:
        return Node(first, last)
    cut = border_near_middle(keys, first, last)
    return Node(first, last, (_divided(keys, most, first, cut), _divided(keys, most, cut, last)))


def border_near_middle(keys: np.ndarray, first: int, last: int) -> int:
    """Where the largest cell of the curve ends that ends in the middle half of a range of ascending keys; where none does, its
    middle."""
    quarter = (last - first) // 4
    low, high = first + quarter, last - quarter - 1
    differing = int(keys[low] ^ keys[high])
    if not differing:
        return (first + last) // 2
    bit = np.uint64(differing.bit_length() - 1)
    return low + int(np.searchsorted(keys[low : high + 1], (keys[high] >> bit) << bit))


def extents(geometry: np.ndarray) -> np.ndarray:
    """Box [2, 3] f64 of what is drawn of rows with geometry [k, 12], k > 0."""
    reach = EXTENT_SIGMAS * np.sqrt(covariances(geometry)[:, [0, 3, 5]])
    means = geometry[:, MEANS].astype(np.float64)
    return np.array([(means - reach).min(axis=0), (means + reach).max(axis=0)])


def in_parts(chunks: Iterable[Chunk], counts: Iterable[int]) -> Iterator[Chunk]:
    """Rows of a stream in parts of so many, each whole in arrays of its own. Memory: a part and a chunk."""
    source = iter(chunks)
    geometry, colour = next(source, (np.empty((0, 0)),) * 2)
    used = 0
    for count in counts:
        part: Chunk | None = None
        done = 0
        while done < count:
            if used == len(geometry):
                geometry, colour = next(source)
                used = 0
            some = min(count - done, len(geometry) - used)
            if part is None:
                part = tuple(np.empty((count, array.shape[1]), array.dtype) for array in (geometry, colour))  # type: ignore[assignment]
            assert part is not None
            for mine, theirs in zip(part, (geometry, colour), strict=True):
                mine[done : done + some] = theirs[used : used + some]
            done, used = done + some, used + some
        if part is not None:
            yield part
