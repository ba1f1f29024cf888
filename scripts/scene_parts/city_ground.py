"""The ground of a city: streets with their marks, and what a plot has between its buildings.

A paint takes spots of one use and gives RGB [k, 3] f32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from scene_parts.city import CAR_PARK, FLATS, HOUSES, MEADOW, OFFICES, PARK, SQUARE, WALK, City, Streets
from scene_parts.textures import blend, lay, plane_noise, scattered


class Spot(NamedTuple):
    """What a paint knows of each of k places on the ground; all [k] f32, metres."""

    x: np.ndarray
    y: np.ndarray
    dx: np.ndarray  # from the middle of the nearest street that crosses the x axis
    dy: np.ndarray
    hx: np.ndarray  # half the width of that street
    hy: np.ndarray
    fine: np.ndarray  # noise in 0..1, of 0.2, 1 and 11 m
    rough: np.ndarray
    broad: np.ndarray

    @property
    def inside(self) -> tuple[np.ndarray, np.ndarray]:
        """Metres from both streets into the plot."""
        return np.abs(self.dx) - self.hx, np.abs(self.dy) - self.hy


def ground(city: City, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """RGB [k, 3] f32 of the ground at x, y [k] f32."""
    (column, dx, hx), (line, dy, hy) = _nearest(city.streets[0], x), _nearest(city.streets[1], y)
    noise = plane_noise(x, y, 4.3), plane_noise(x + 31, y - 17, 1.1), plane_noise(x, y, 0.09)
    spot, color = Spot(x, y, dx, dy, hx, hy, *noise), np.empty((len(x), 3), np.float32)
    use = np.where((np.abs(dx) < hx) | (np.abs(dy) < hy), _STREET, city.uses[column, line])
    for kind, paint in _GROUND.items():
        mine = np.flatnonzero(use == kind)
        if len(mine):
            color[mine] = paint(Spot(*(values[mine] for values in spot)))
    return color


def _nearest(streets: Streets, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(plot [k] i64, offset from the nearest street's middle [k], that street's half width [k])."""
    middles = (streets.at[1:] + streets.at[:-1]) / 2
    near = np.searchsorted(middles, x)
    offset = x - streets.at[near]
    return near + (offset > 0), offset, streets.half[near]


def _asphalt(spot: Spot) -> np.ndarray:
    color = np.repeat((0.30 + 0.10 * spot.fine + 0.09 * spot.rough + 0.10 * spot.broad)[:, None], 3, axis=1)
    color[scattered(spot.x // 5.2, spot.y // 7.3) > 0.86] *= 0.84
    return color


def _slabs(spot: Spot) -> np.ndarray:
    x, y = spot.x, spot.y
    joint = np.where((x % 1.2 < 0.1) | (y % 1.2 < 0.1), 0.80, 1.0)
    paving = joint * (0.86 + 0.16 * scattered(x // 1.2, y // 1.2) + 0.1 * spot.fine)
    return blend((0.50, 0.49, 0.47), (0.60, 0.59, 0.57), spot.broad) * paving[:, None]


def _grass(spot: Spot) -> np.ndarray:
    return blend((0.22, 0.33, 0.12), (0.47, 0.50, 0.24), 0.45 * spot.broad + 0.35 * spot.rough + 0.3 * spot.fine)


def _street(spot: Spot) -> np.ndarray:
    x, y, hx, hy = spot.x, spot.y, spot.hx, spot.hy
    ax, ay = np.abs(spot.dx), np.abs(spot.dy)
    on_x, on_y, road_x, road_y = ax < hx, ay < hy, ax < hx - WALK, ay < hy - WALK
    color = _asphalt(spot)
    walk = (on_x & (ax > hx - WALK) & ~road_y) | (on_y & (ay > hy - WALK) & ~road_x)
    lay(color, walk, _slabs(spot))
    kerb_x, kerb_y = np.abs(ax - hx + WALK) < 0.15, np.abs(ay - hy + WALK) < 0.15
    lay(color, (on_x & kerb_x & (ay > hy - WALK)) | (on_y & kerb_y & (ax > hx - WALK)), (0.70, 0.69, 0.66))
    for on, across, half, along, beside, beyond in ((on_x, ax, hx, y, ay, hy), (on_y, ay, hy, x, ax, hx)):
        free = on & (beside > beyond + 4)
        lay(color, free & (across < 0.16) & (along % 6 < 3.4), (0.82, 0.81, 0.76))
        lay(color, free & (np.abs(across - half + WALK + 2.2) < 0.1), (0.66, 0.65, 0.62))  # where cars park
        zebra = on & (beside > beyond) & (beside < beyond + 3) & (across < half - WALK - 0.4) & (across % 1.2 < 0.6)
        lay(color, zebra, (0.80, 0.80, 0.77))
    cover = (np.hypot(ax - 2.3, y % 37 - 9) < 0.5) & on_x | (np.hypot(ay - 2.3, x % 41 - 9) < 0.5) & on_y
    lay(color, cover, (0.22, 0.22, 0.22))
    return color


def _gardens(spot: Spot) -> np.ndarray:
    """Beds, hedges, and a drive to each house."""
    (inside_x, inside_y), along = spot.inside, spot.x % 14.5
    color, bed = _grass(spot), scattered(spot.x // 4.1, spot.y // 3.7)
    grass = color.copy()
    lay(color, bed > 0.80, blend((0.36, 0.27, 0.19), (0.48, 0.40, 0.28), bed * 7 % 1))
    lay(color, (np.minimum(inside_x, inside_y) < 0.8) | (along < 0.7), grass * 0.6)
    lay(color, (along > 5) & (along < 7.6) & (inside_y < 9), _slabs(spot) * 0.93)
    return color


def _courtyard(spot: Spot) -> np.ndarray:
    inside_x, inside_y = spot.inside
    color = _grass(spot)
    path = (np.abs(inside_x - 16) < 1.0) | (np.abs(inside_y - 16) < 1.0) | (np.minimum(inside_x, inside_y) < 2)
    lay(color, path, _slabs(spot))
    lay(color, scattered(spot.x // 4.1, spot.y // 3.7) > 0.88, (0.62, 0.56, 0.42))  # sand
    return color


def _park(spot: Spot) -> np.ndarray:
    x, y, (inside_x, inside_y) = spot.x, spot.y, spot.inside
    color, wave = _grass(spot), 2.5 * np.sin(x * 0.11) + 2.0 * np.sin(y * 0.13)
    path = (np.abs((x + y + 3 * wave) % 31 - 15) < 1.3) | (np.abs((x - y + 2 * wave) % 43 - 20) < 1.1)
    lay(color, path, _slabs(spot) * np.array([1.05, 0.98, 0.84], np.float32))
    pond = (spot.dx > 0) & (spot.dy > 0) & (np.hypot(inside_x - 11, inside_y - 10) + 2.2 * spot.rough < 7.5)
    lay(color, pond, blend((0.10, 0.20, 0.22), (0.20, 0.32, 0.30), spot.rough))
    return color


def _car_park(spot: Spot) -> np.ndarray:
    inside_x, inside_y = spot.inside
    color, lot = _asphalt(spot), (inside_x > 1) & (inside_y > 1)
    lay(color, lot & (spot.x % 2.7 < 0.16) & (spot.y % 8.0 < 5.0), (0.78, 0.78, 0.74))
    lay(color, ~lot, (0.30, 0.40, 0.18))
    return color


def _square(spot: Spot) -> np.ndarray:
    dark = (np.floor(spot.x / 2.4) + np.floor(spot.y / 2.4)) % 2 > 0
    color, pattern = _slabs(spot), blend((0.62, 0.50, 0.42), (0.72, 0.68, 0.60), dark + 0.3 * spot.fine)
    lay(color, (spot.x % 12 > 0.6) & (spot.y % 12 > 0.6), pattern)
    return color


_STREET = -1
_GROUND: dict[int, Callable[[Spot], np.ndarray]] = {
    _STREET: _street,
    HOUSES: _gardens,
    FLATS: _courtyard,
    OFFICES: _slabs,
    PARK: _park,
    CAR_PARK: _car_park,
    SQUARE: _square,
    MEADOW: _grass,
}
