"""What rays of a camera, of the sun, or of a scan see of a city: solids one by one, each only on the rays that may meet it.

Neighbouring rays lie in a grid, so the rays that may meet a solid are a rectangle. Parallel rays (the sun's, a scan's) are
named by where they would meet the ground, (u, v): a point (x, y, z) lies on the ray of (x, y) - lean * z. So the sun's
rays make a map, of the height at which each is stopped; what lies lower is in shadow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from scene_parts.capture import Lens, project
from scene_parts.city import TALLEST, City

TOWARDS_SUN = np.array([0.52, -0.43, 0.74], np.float32) / np.float32(np.linalg.norm([0.52, -0.43, 0.74]))
SUN_TEXEL = 0.25  # metres of ground
_SUN_BIAS = 0.3  # metres of height: what a texel's ray and its neighbour's may differ by on one wall
_SKY_TEXEL, _SKY_REACH = 1.0, 9  # metres; texels around a place that may hide the sky
_BAND = 512  # rows and columns of rays at a time
NOTHING = -1  # the ground


def first_met(
    city: City, rectangles: np.ndarray, origin: np.ndarray, direction: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(distance f32, index of the solid i32) [h, w] along a grid of rays [3, h, w] that all come down to the ground.

    rectangles [N, 4] i64: for each solid the (top, bottom, left, right) outside of which no ray meets it.
    """
    distance = -origin[2] / direction[2]
    which = np.full(distance.shape, NOTHING, np.int32)
    limits = np.array([*distance.shape])[[0, 0, 1, 1]]
    clipped = np.clip(rectangles, 0, limits)
    for index in np.flatnonzero((clipped[:, 0] < clipped[:, 1]) & (clipped[:, 2] < clipped[:, 3])):
        top, bottom, left, right = clipped[index]
        window = (slice(top, bottom), slice(left, right))
        met = city.solids[index].hit(origin[:, *window], direction[:, *window])
        closer = met < distance[window]
        distance[window][closer] = met[closer]
        which[window][closer] = index
    return distance, which


def _around(places: np.ndarray) -> np.ndarray:
    """Rectangles [N, 4] around grid places [N, 8, 2] (column, row), one cell wider on each side."""
    low, high = np.floor(places.min(axis=1)) - 1, np.ceil(places.max(axis=1)) + 2
    return np.stack([low[:, 1], high[:, 1], low[:, 0], high[:, 0]], axis=1).astype(np.int64)


def in_picture(city: City, lens: Lens, pose: np.ndarray) -> np.ndarray:
    """Rectangles [N, 4] of pixels that may show each solid; of one that is beside the camera, all of them."""
    pixels, depth = project(lens, pose, city.corners())
    rectangles = _around(np.where(depth[..., None] > 1.0, pixels, 0.0))
    beside = (depth <= 1.0).any(axis=1)
    rectangles[beside] = [0, lens.height, 0, lens.width]
    rectangles[(depth <= 1.0).all(axis=1)] = 0
    return rectangles


def scanned(
    city: City, lean: np.ndarray, low: np.ndarray, step: np.ndarray, jitter: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(positions [3, h, w] f32, index of the solid [h, w]) that parallel rays meet.

    The ray of row i and column j would meet the ground at low + step * ((j, i) + jitter[:, i, j]).
    lean [2]: metres that rays move aside per metre of height.
    """
    rows, columns = np.mgrid[: jitter.shape[1], : jitter.shape[2]].astype(np.float32)
    lean = lean.astype(np.float32)
    down = np.array([-lean[0], -lean[1], -1.0], np.float32)
    down /= np.float32(np.linalg.norm(down))
    ground = np.stack([columns, rows]) + jitter
    ground = ground * step.astype(np.float32)[:, None, None] + low.astype(np.float32)[:, None, None]
    origin = np.concatenate([ground + lean[:, None, None] * np.float32(TALLEST), np.full_like(rows, TALLEST)[None]])
    corners = city.corners()
    places = (corners[..., :2] - lean * corners[..., 2:] - low) / step
    direction = np.broadcast_to(down[:, None, None], origin.shape)
    distance, which = first_met(city, _around(places), origin, direction)
    return origin + direction * distance, which


@dataclass(frozen=True, eq=False)
class Daylight:
    """How much sun and sky reach a place."""

    low: np.ndarray  # [2] f32, the corner of both maps
    stopped: np.ndarray = field(repr=False)  # [h, w] f32: height at which each ray of the sun ends
    around: np.ndarray = field(repr=False)  # [h, w] f32: mean height of what surrounds a place

    def sun(self, p: np.ndarray) -> np.ndarray:
        """Share of the sun [k] that reaches positions [3, k]; soft over a texel."""
        lean = TOWARDS_SUN[:2] / TOWARDS_SUN[2]
        reached = p[2] + np.float32(_SUN_BIAS)
        u = (p[0] - lean[0] * p[2] - self.low[0]) / np.float32(SUN_TEXEL) - np.float32(0.5)
        v = (p[1] - lean[1] * p[2] - self.low[1]) / np.float32(SUN_TEXEL) - np.float32(0.5)
        return _bilinear(self.stopped, u, v, lambda height: (height <= reached).astype(np.float32))

    def sky(self, p: np.ndarray) -> np.ndarray:
        """Share of the sky [k] that reaches positions [3, k]."""
        u = (p[0] - self.low[0]) / np.float32(_SKY_TEXEL) - np.float32(0.5)
        v = (p[1] - self.low[1]) / np.float32(_SKY_TEXEL) - np.float32(0.5)
        above = np.maximum(_bilinear(self.around, u, v, lambda height: height) - p[2], 0)
        return 1 / (1 + 0.14 * above)


def _bilinear(table: np.ndarray, u: np.ndarray, v: np.ndarray, value: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """value(entries of the table) between four texels, at places in texels (column, row)."""
    height, width = table.shape
    i, j = np.floor(u), np.floor(v)
    u, v = u - i, v - j
    left, above = np.clip(i.astype(np.int32), 0, width - 2), np.clip(j.astype(np.int32), 0, height - 2)
    at, flat = above * width + left, table.reshape(-1)
    upper = value(np.take(flat, at)) * (1 - u) + value(np.take(flat, at + 1)) * u
    lower = value(np.take(flat, at + width)) * (1 - u) + value(np.take(flat, at + width + 1)) * u
    return upper * (1 - v) + lower * v


def daylight(city: City, low: np.ndarray, high: np.ndarray) -> Daylight:
    """The light between two corners (x, y)."""
    lean = TOWARDS_SUN[:2] / TOWARDS_SUN[2]
    reach = np.abs(lean).max() * TALLEST
    low, high = np.floor(low - reach).astype(np.float32), np.ceil(high + reach).astype(np.float32)
    stopped = _heights(city, low, high, lean, SUN_TEXEL)
    around = _heights(city, low, high, np.zeros(2, np.float32), _SKY_TEXEL)
    return Daylight(low, stopped, _blurred(around, _SKY_REACH))


def _heights(city: City, low: np.ndarray, high: np.ndarray, lean: np.ndarray, texel: float) -> np.ndarray:
    """[h, w] f32: where the rays through the middles of texels of the ground are stopped."""
    width, height = (round(side / texel) for side in high - low)
    result, step = np.empty((height, width), np.float32), np.full(2, texel, np.float32)
    for top in range(0, height, _BAND):
        for left in range(0, width, _BAND):
            part = result[top : top + _BAND, left : left + _BAND]
            jitter = np.full((2, *part.shape), 0.5, np.float32)
            corner = low + step * np.array([left, top], np.float32)
            part[:] = scanned(city, lean, corner, step, jitter)[0][2]
    return result


def _blurred(table: np.ndarray, reach: int) -> np.ndarray:
    """The mean over a square of 2 * reach + 1 texels, twice; the border counts as its last texel does."""
    for _ in range(2):
        for axis in (0, 1):
            padding = [(0, 0), (0, 0)]
            padding[axis] = (reach + 1, reach)
            sums = np.cumsum(np.pad(table, padding, mode="edge").astype(np.float64), axis=axis)
            span = 2 * reach + 1
            table = np.take(sums, np.arange(span, sums.shape[axis]), axis) - np.take(
                sums, np.arange(sums.shape[axis] - span), axis
            )
            table = (table / span).astype(np.float32)
    return table
