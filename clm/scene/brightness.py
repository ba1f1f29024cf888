"""How differently photos were exposed, from the colours of the points that they saw.

A point's colour in a COLMAP model is the mean over the images that saw it. The affine map (least squares) that brings the colours
of a photo's points nearest to what the photo shows at them is therefore its exposure, relative to the other photos'. That is far
better evidence than the brightness of whole photos, which differ in what they show.
Cost: a few photos, decoded small (JPEG decoders shrink for nothing), as many as `_BYTES` of files hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from clm.scene.decode import CorruptImage, decode_small
from clm.scene.observed import Observed
from clm.scene.scene import Scene, View

FEWEST_PHOTOS = 3
_FEWEST_POINTS = 32  # that a photo is judged by
_SIDE = 600  # px, of the longer side that is decoded at least
_BYTES = 32 << 20  # of photos as files; beyond them at least eight
_LEAST = 8
_RIDGE = (
    1e-3  # the square of the contrast beneath which colours say little: channels alike (walls, snow) share a change
)
_DARKEST, _BRIGHTEST = 12, 243  # beyond them a value is noise or cut off


@dataclass(frozen=True, eq=False)
class Judged:
    """A photo, by the points that it saw."""

    matrix: np.ndarray = field(repr=False)  # [3, 4] f64: from the points' colours (of 255, over 255) to the photo's
    moments: np.ndarray = field(repr=False)  # [4, 4] f64: means over the points of products of their colours and 1
    points: int
    explained: float  # share of the squared differences between photo and points that the map takes away

    @property
    def likely(self) -> np.ndarray:
        """[3, 4]: the map as far as it is to be believed. What it leaves unexplained (people, shadows, other weather) has had its
        say in it, too: it is shrunk towards no change by the share that it explains."""
        return np.eye(3, 4) + self.explained * (self.matrix - np.eye(3, 4))

    def differs(self, other: np.ndarray) -> float:
        """Root mean square, over the points and channels, of what the map [3, 4] `other` makes of them otherwise; of 1."""
        change = self.matrix - other
        return float(np.sqrt(np.einsum("ci,ij,cj->", change, self.moments, change) / 3))


def judged_photos(scene: Scene) -> Mapping[int, Judged]:
    """Training photos by view id, some of them where there are many; those that cannot be decoded or show too few points are left
    out."""
    numbers = {view.name: k for k, view in enumerate(scene.views)}
    train = set(scene.train.tolist())
    some = [(numbers[o.name], o) for o in scene.observed if len(o.places) >= _FEWEST_POINTS and o.name in numbers]
    some = _affordable([(k, o) for k, o in some if k in train], scene)
    with ThreadPoolExecutor(4) as pool:
        judged = list(pool.map(lambda pair: _judged(scene.views[pair[0]], pair[1]), some))
    return {k: photo for (k, _), photo in zip(some, judged, strict=True) if photo is not None}


def mean_difference(judged: Mapping[int, Judged]) -> float:
    """What the exposure of a photo changes in its colours, against the mean exposure of all: the mean over photos, of 1."""
    mean = np.mean([photo.matrix for photo in judged.values()], axis=0)
    return float(np.mean([photo.differs(mean) for photo in judged.values()]))


def _affordable(some: list[tuple[int, Observed]], scene: Scene) -> list[tuple[int, Observed]]:
    """As many as `_BYTES` of files hold, evenly over all."""
    total = sum(_file_bytes(scene.views[k]) for k, _ in some)
    count = len(some) if total <= _BYTES else max(_LEAST, len(some) * _BYTES // total)
    at = np.unique(np.linspace(0, len(some) - 1, min(count, len(some))).astype(int)).tolist() if some else []
    return [some[k] for k in at]


def _file_bytes(view: View) -> int:
    try:
        return view.image_path.stat().st_size if view.image_path is not None else 0
    except OSError:
        return 0


def _judged(view: View, observed: Observed) -> Judged | None:
    """None: too few points, or no photo."""
    if view.image_path is None:
        return None
    try:
        pixels = decode_small(view.image_path, _SIDE)
    except CorruptImage:
        return None
    size = np.array([pixels.shape[1], pixels.shape[0]])
    x, y = np.clip((observed.places * size).astype(np.int64), 0, size - 1).T
    photo, points = pixels[y, x], observed.colours
    usable = ((np.minimum(photo, points) >= _DARKEST) & (np.maximum(photo, points) <= _BRIGHTEST)).all(axis=1)
    if usable.sum() < _FEWEST_POINTS:
        return None
    seen, known = photo[usable] / 255.0, points[usable] / 255.0
    system = np.column_stack([known, np.ones(len(known))])
    moments = np.einsum("ni,nj->ij", system, system) / len(seen)
    sides = np.einsum("ni,nc->ic", system, seen - known) / len(seen)
    change = np.linalg.solve(moments + _RIDGE * np.eye(4), sides)
    before, left = (np.square(d).mean() for d in (seen - known, seen - known - np.einsum("ni,ic->nc", system, change)))
    return Judged(change.T + np.eye(3, 4), moments, len(seen), float(1.0 - left / before) if before > 0 else 0.0)
