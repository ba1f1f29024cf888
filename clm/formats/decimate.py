"""Fewer rows that look alike from farther away: neighbours are merged, those first whose merging is seen least.

A row's ink is its optical depth, -ln(1 - opacity), times the area that it shows on average. Two rows become the one with their
ink, mean, covariance and colour (moments weighted by ink), as faint rows are absorbed by what stands next to them and opaque
surfaces stay opaque. The cost of a pair is the ink that has to move, times how far and through how different colours (Ward's
criterion, ink with an exponent); pairs are mutually nearest among neighbours along a Morton curve, and rounds of them follow until
few enough are left. A group is drawn somewhat larger than its covariance says, or gaps would open between groups. How that
compares with dropping rows by importance: docs/log.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clm.kernels.sort import sorted_rows, space_keys
from clm.store.layout import COLOUR_COLUMNS, GEOMETRY_COLUMNS, LOG_SCALES, LOGIT_OPACITIES, MEANS, QUATS, SH0, SH_C0

_NEIGHBOURS = 8  # along the curve, on either side
_MOST_DEPTH = 9.2  # of a row: opacity 0.9999
_COLOUR_SCALE = 0.2  # a difference of colour that weighs as much as the distance between rows that are left
_INK_EXPONENT = 0.7  # below 1 rows that are nearly transparent do not all go before the first visible pair
_GROWTH = (
    1 / 6
)  # a group of n has its covariance times n to this; measured: 0.15 to 0.2 are alike, 0 is 2 to 3 dB worse
_FARTHEST = 1e12  # of a row that others are merged with; its square is a float32
_MOST_LOG_SCALE = 20.0  # either way: what is beyond is no size, and its fourth power no float32
_TINY, _HUGE = 1e-30, 1e30  # costs
_UPPER = ([0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2])  # of a symmetric matrix


@dataclass
class _Blobs:
    """What a pair is judged by, of the rows that are left: float32, ink and areas relative to one another."""

    means: np.ndarray  # [n, 3]
    spreads: np.ndarray  # [n, 6] covariances, upper triangle
    ink: np.ndarray  # [n]
    colours: np.ndarray  # [n, 3] in 0..1, mostly

    def take(self, rows: np.ndarray) -> _Blobs:
        return _Blobs(self.means[rows], self.spreads[rows], self.ink[rows], self.colours[rows])


def decimated(geometry: np.ndarray, colour: np.ndarray, target: int) -> tuple[np.ndarray, np.ndarray]:
    """`target` rows, or all where there are no more, of rows with geometry [n, 12] and colour [n, 48] f32, finite and with
    rotations; fresh arrays, in the order of each one's first row. Rows that nothing was merged with stay as they are.

    Memory: 1 KiB a row."""
    if len(geometry) <= target:
        return geometry.copy(), colour.copy()
    blobs = _blobs(geometry, colour)
    ink = blobs.ink.astype(np.float64)
    group = np.arange(len(geometry))  # of each row, by the number of a row
    heads = np.arange(len(geometry))  # the rows that groups are called after
    round_ = 0
    while len(heads) > target:
        kept, gone = _pairs(blobs, len(heads) - target, round_)
        round_ += 1
        _merge(blobs, kept, gone)
        group = _renamed(group, heads[gone], heads[kept])
        left = np.ones(len(heads), bool)
        left[gone] = False
        heads, blobs = heads[left], blobs.take(np.flatnonzero(left))
    return _rows(geometry, colour, ink, group, blobs, heads)


def _renamed(group: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    names = np.arange(len(group))
    names[old] = new
    return names[group]


def rotations(quats: np.ndarray) -> np.ndarray:
    """Matrices [n, 3, 3] f64 whose columns are the axes of rotations [n, 4] wxyz of any length but zero."""
    w, x, y, z = (quats.astype(np.float64) / np.linalg.norm(quats.astype(np.float64), axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def quaternions(matrices: np.ndarray) -> np.ndarray:
    """Unit quaternions [n, 4] f64 wxyz of rotation matrices [n, 3, 3], by way of whichever component is largest (Shepperd 1978)."""
    m = matrices
    trace = m[:, 0, 0] + m[:, 1, 1] + m[:, 2, 2]
    squares = np.stack([trace, m[:, 0, 0], m[:, 1, 1], m[:, 2, 2]], axis=1)
    a, b, c = m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]
    d, e, f = m[:, 0, 1] + m[:, 1, 0], m[:, 0, 2] + m[:, 2, 0], m[:, 1, 2] + m[:, 2, 1]
    whole = 1 - trace
    table = np.stack(
        [
            np.stack([1 + trace, a, b, c], axis=1),
            np.stack([a, whole + 2 * m[:, 0, 0], d, e], axis=1),
            np.stack([b, d, whole + 2 * m[:, 1, 1], f], axis=1),
            np.stack([c, e, f, whole + 2 * m[:, 2, 2]], axis=1),
        ],
        axis=1,
    )
    quats = table[np.arange(len(m)), squares.argmax(axis=1)]
    return quats / np.linalg.norm(quats, axis=1, keepdims=True)


def covariances(geometry: np.ndarray) -> np.ndarray:
    """Covariances [n, 6] f64 of rows, upper triangle: xx, xy, xz, yy, yz, zz."""
    scales = np.exp(np.clip(geometry[:, None, LOG_SCALES].astype(np.float64), -_MOST_LOG_SCALE, _MOST_LOG_SCALE))
    axes = rotations(geometry[:, QUATS]) * scales
    full = axes @ axes.transpose(0, 2, 1)
    return full[:, _UPPER[0], _UPPER[1]]


def areas(spreads: np.ndarray) -> np.ndarray:
    """Areas [n] that blobs with covariances [n, 6] show on average over all directions, up to one factor: the root of the second
    invariant (the sum of products of two variances), Thomsen's formula for an ellipsoid with exponent 2."""
    xx, xy, xz, yy, yz, zz = spreads.T
    return np.sqrt(np.maximum(xx * yy - xy * xy + xx * zz - xz * xz + yy * zz - yz * yz, 1e-30))


def _blobs(geometry: np.ndarray, colour: np.ndarray) -> _Blobs:
    spreads = covariances(geometry)
    depth = np.minimum(np.logaddexp(0, geometry[:, LOGIT_OPACITIES].astype(np.float64)), _MOST_DEPTH)
    ink = depth * areas(spreads)
    colours = 0.5 + SH_C0 * colour[:, SH0]
    means = np.clip(geometry[:, MEANS], -_FARTHEST, _FARTHEST)
    return _Blobs(means, spreads.astype(np.float32), ink.astype(np.float32), colours)


def _pairs(blobs: _Blobs, most: int, round_: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` pairs (row that stays, row that goes into it), no row twice: mutually nearest ones, the cheapest."""
    count = len(blobs.ink)
    low, high = blobs.means.min(axis=0).astype(np.float64), blobs.means.max(axis=0).astype(np.float64)
    edge = float((high - low).max()) or 1.0
    # The curve's jumps lie elsewhere in every round.
    shift = edge * (0.37 * round_ % 0.5)
    points = np.zeros((count, 4), np.float32)
    points[:, :3] = blobs.means
    order = sorted_rows(space_keys(points, low - shift, 1.5 * edge, np.full(3, np.inf, np.float32)))
    near = blobs.take(order)
    # As far apart as rows of a surface that fills the box are, once there are few enough.
    distance = np.linalg.norm(blobs.means.std(axis=0)) / np.sqrt(count)
    scale = np.float32(1 / max(float(distance) ** 2, 1e-20)), np.float32(1 / _COLOUR_SCALE**2)
    best, partner = np.full(count, np.inf, np.float32), np.zeros(count, np.int64)
    # Rows that are alike are all each other's nearest; by chance half of them agree.
    chance = np.random.default_rng(round_).random(count, np.float32)
    for step in range(1, min(_NEIGHBOURS, count - 1) + 1):
        cost = np.nan_to_num(_costs(near, step, scale), nan=_HUGE, posinf=_HUGE).clip(_TINY, _HUGE)
        cost *= 1 + np.float32(0.01) * ((chance[step:] + chance[:-step]) % 1)
        for here, there in ((slice(None, -step), step), (slice(step, None), -step)):
            closer = cost < best[here]
            best[here][closer] = cost[closer]
            partner[here][closer] = (np.arange(count)[here] + there)[closer]
    mutual = np.flatnonzero((partner[partner] == np.arange(count)) & (partner > np.arange(count)))
    mutual = mutual[np.argsort(best[mutual], kind="stable")[:most]]
    if len(mutual) < min(most, count // 64 + 1):  # hardly anybody agrees: whoever is next along the curve
        mutual = np.arange(0, count - 1, 2)[:most]
        partner[mutual] = mutual + 1
    first, second = order[mutual], order[partner[mutual]]
    return np.minimum(first, second), np.maximum(first, second)


def _costs(blobs: _Blobs, step: int, scale: tuple[np.float32, np.float32]) -> np.ndarray:
    """Cost [n - step] f32 of merging each blob with the one `step` places on."""
    ink, other = blobs.ink[:-step], blobs.ink[step:]
    apart = ((blobs.means[step:] - blobs.means[:-step]) ** 2).sum(axis=1) * scale[0]
    apart += ((blobs.colours[step:] - blobs.colours[:-step]) ** 2).sum(axis=1) * scale[1]
    return apart * (ink * other / np.maximum(ink + other, np.float32(1e-30))) ** np.float32(_INK_EXPONENT)


def _merge(blobs: _Blobs, kept: np.ndarray, gone: np.ndarray) -> None:
    """Moments of `gone` into those of `kept`, in place."""
    total = np.maximum(blobs.ink[kept] + blobs.ink[gone], np.float32(1e-30))
    share = (blobs.ink[gone] / total)[:, None]
    delta = blobs.means[gone] - blobs.means[kept]
    outer = delta[:, _UPPER[0]] * delta[:, _UPPER[1]]
    blobs.spreads[kept] += share * (blobs.spreads[gone] - blobs.spreads[kept]) + share * (1 - share) * outer
    blobs.means[kept] += share * delta
    blobs.colours[kept] += share * (blobs.colours[gone] - blobs.colours[kept])
    blobs.ink[kept] = total


def _rows(
    geometry: np.ndarray, colour: np.ndarray, ink: np.ndarray, group: np.ndarray, blobs: _Blobs, heads: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the groups, whose moments are `blobs`."""
    order = np.argsort(
        group, kind="stable"
    )  # heads are the least of their groups, so groups come in the order of heads
    begins = np.searchsorted(group[order], heads)
    sizes = np.diff(np.append(begins, len(group)))
    out_geometry, out_colour = geometry[heads], colour[heads]
    merged = np.flatnonzero(sizes > 1)
    if not len(merged):
        return out_geometry, out_colour
    weights = (ink + 1e-30)[order]
    for columns in range(0, COLOUR_COLUMNS, 12):  # a quarter of them in float64 at a time
        some = slice(columns, columns + 12)
        sums = np.add.reduceat(colour[order, some] * weights[:, None], begins, axis=0)
        means = sums / np.add.reduceat(weights, begins)[:, None]
        out_colour[merged, some] = means[merged]
    groups = blobs.take(merged)
    grown = sizes[merged].astype(np.float32) ** np.float32(_GROWTH)
    groups.spreads, groups.ink = groups.spreads * grown[:, None], groups.ink * grown  # depth, ink over area, stays
    out_geometry[merged] = _geometry(groups)
    return out_geometry, out_colour


def _geometry(blobs: _Blobs) -> np.ndarray:
    """Geometry [n, 12] f32 of blobs; their ink gives the opacity."""
    out = np.zeros((len(blobs.ink), GEOMETRY_COLUMNS), np.float32)
    full = np.zeros((len(out), 3, 3))
    full[:, _UPPER[0], _UPPER[1]] = full[:, _UPPER[1], _UPPER[0]] = blobs.spreads
    variances, axes = np.linalg.eigh(full)
    axes[:, :, 0] *= np.linalg.det(axes)[:, None]
    out[:, MEANS] = blobs.means
    out[:, QUATS] = quaternions(axes)
    out[:, LOG_SCALES] = np.maximum(0.5 * np.log(np.maximum(variances, 1e-300)), -_MOST_LOG_SCALE)
    depth = np.clip(blobs.ink / areas(blobs.spreads.astype(np.float64)), 1e-6, _MOST_DEPTH)
    out[:, LOGIT_OPACITIES] = np.log(np.expm1(depth))
    return out
