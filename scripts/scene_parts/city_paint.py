"""The colours of what stands in a city, and the light that leaves all of it.

A paint takes positions [3, k] in a solid's own frame, normals [3, k], and per-position facts about the solid; it gives RGB
[k, 3]. Textures have detail from a quarter of a metre (bricks, tiles, frames of windows) to a hundred (how a lawn fades).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from scene_parts.city import BODY, BUILDING, FLOOR, GLASS, LEAVES, METAL, ROOF, City
from scene_parts.city_ground import ground
from scene_parts.city_light import NOTHING, TOWARDS_SUN, Daylight
from scene_parts.solids import dot, normal_at, turned
from scene_parts.textures import blend, lay, plane_noise, scattered

_SUNLIGHT, _SKYLIGHT = np.array([1.02, 0.96, 0.86], np.float32), np.array([0.36, 0.42, 0.50], np.float32)
_CHUNK = 1 << 14  # positions at a time: what the caches hold


class Part(NamedTuple):
    """What a paint knows of each of k positions."""

    p: np.ndarray  # [3, k] f32, in the solid's frame
    n: np.ndarray  # [3, k] f32
    half: np.ndarray  # [3, k] f32
    tone: np.ndarray  # [k, 3] f32
    top: np.ndarray  # [k, 3] f32
    which: np.ndarray  # [k] i32, the solid


Paint = Callable[[Part], tuple[np.ndarray, np.ndarray]]  # RGB [k, 3], normals [3, k], both f32


def radiance(city: City, light: Daylight, p: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Linear RGB [k, 3] f32 that leaves places [3, k] f32 on the solids `which` [k]: the same in every direction."""
    result = np.empty((p.shape[1], 3), np.float32)
    for first in range(0, len(which), _CHUNK):
        piece = slice(first, first + _CHUNK)
        result[piece] = _radiance(city, light, p[:, piece], which[piece])
    return result


def _radiance(city: City, light: Daylight, p: np.ndarray, which: np.ndarray) -> np.ndarray:
    albedo, n = np.empty((len(which), 3), np.float32), np.empty_like(p)
    bare = np.flatnonzero(which == NOTHING)
    albedo[bare] = ground(city, p[0, bare], p[1, bare])
    n[:, bare] = np.array([[0], [0], [1]])
    paints = np.where(which == NOTHING, -1, city.paint[which])
    for paint, (shape, colour) in _PAINTS.items():
        mine = np.flatnonzero(paints == paint)
        if len(mine):
            albedo[mine], n[:, mine] = _painted(city, p[:, mine], which[mine], shape, colour)
    sun = np.maximum(dot(n, TOWARDS_SUN), 0) * light.sun(p + 0.15 * n)
    sky = light.sky(p) * (0.7 + 0.3 * n[2])
    return albedo**1.6 * (sun[:, None] * _SUNLIGHT + sky[:, None] * _SKYLIGHT)


def _painted(city: City, p: np.ndarray, which: np.ndarray, shape: str, colour: Paint) -> tuple[np.ndarray, np.ndarray]:
    """(RGB [k, 3], world normals [3, k])."""
    cosine, sine, half = city.cosine[which], city.sine[which], city.half[which].T
    local = turned(p - city.at[which].T, cosine, -sine)
    normal = normal_at(shape, half, local)
    part = Part(local, normal, half, city.tone[which], city.top[which], which)
    rgb, normal = colour(part)
    return rgb, turned(normal, cosine, sine)


# ---- solids: Part -> (RGB [k, 3], normals [3, k] in the solid's frame) ----


def building(part: Part) -> tuple[np.ndarray, np.ndarray]:
    p, n = part.p, part.n
    color = np.empty((p.shape[1], 3), np.float32)
    up = n[2] > 0.5
    for where, paint in ((np.flatnonzero(up), _flat_roof), (np.flatnonzero(~up), _wall)):
        if len(where):
            piece = Part(
                p[:, where], n[:, where], part.half[:, where], part.tone[where], part.top[where], part.which[where]
            )
            color[where] = paint(piece)
    return color, n


def _flat_roof(part: Part) -> np.ndarray:
    x, y, half = part.p[0] + part.which * 3.7, part.p[1], part.half
    fine, rough, broad = plane_noise(x, y, 3.1), plane_noise(x, y, 0.9), plane_noise(x, y, 0.16)
    color = part.top * (0.68 + 0.22 * fine + 0.18 * rough + 0.28 * broad)[:, None]
    style = scattered(part.which, part.which * 0 + 5)
    seam = (style < 0.35) & (np.abs(y / 1.8 - np.round(y / 1.8)) * 1.8 < 0.09)
    color[seam] *= 0.72
    panel = (style > 0.72) & (np.abs(part.p[0]) < half[0] - 2) & (np.abs(part.p[1]) < half[1] - 2)
    cell_x, cell_y = x % 2.0, part.p[1] % 3.0
    panel &= (cell_y < 1.9) & (scattered(x // 8, y // 12 + part.which) > 0.45)
    lay(color, panel, blend((0.10, 0.14, 0.28), (0.19, 0.25, 0.42), rough))
    lay(color, panel & ((cell_x < 0.14) | (cell_y < 0.14)), (0.62, 0.64, 0.66))
    edge = np.minimum(half[0] - np.abs(part.p[0]), half[1] - np.abs(part.p[1]))
    lay(color, edge < 0.75, part.top * 0.55)
    lay(color, edge < 0.45, np.clip(part.top * 0.5 + 0.38, 0, 0.9) * (0.9 + 0.15 * fine)[:, None])
    return color


def _wall(part: Part) -> np.ndarray:
    end = np.abs(part.n[0]) > 0.5
    along = np.where(end, part.p[1], part.p[0])
    width = np.where(end, part.half[1], part.half[0])
    height = part.p[2] + part.half[2]
    style = scattered(part.which, part.which * 0 + 9)
    pitch = width * 2 / np.maximum(np.round(width * 2 / (2.2 + 1.6 * style)), 1)  # whole windows on each wall
    column, storey = (along + width) / pitch, height / FLOOR
    i, j = np.floor(column), np.floor(storey)
    u, v = column - i, storey - j
    side = i + 40 * end + 17 * (np.where(end, part.n[0], part.n[1]) > 0)
    chance = scattered(side + part.which * 7, j + part.which)
    color = (
        part.tone
        * (0.80 + 0.20 * plane_noise(along, height * 2.4, 2.3) + 0.16 * plane_noise(along, height, 0.3))[:, None]
    )
    course = (style < 0.5) & (height % 0.5 < 0.12)
    color[course] *= 0.88
    lay(color, (v < 0.09) & (style > 0.4), np.clip(part.tone * 1.18 + 0.04, 0, 0.92))
    inset = np.where(style > 0.75, 0.10, 0.24)
    frame = (u > inset - 0.05) & (u < 1.05 - inset) & (v > 0.24) & (v < 0.86)
    pane = (u > inset) & (u < 1 - inset) & (v > 0.30) & (v < 0.81) & (np.abs(u - 0.5) > 0.03)
    lay(color, frame, (0.84, 0.83, 0.80))
    lay(color, pane, blend((0.12, 0.16, 0.21), (0.34, 0.42, 0.50), chance + v - 0.5))
    lay(
        color,
        pane & (chance > 0.72) & (v > 0.95 - 0.6 * chance),
        blend((0.74, 0.68, 0.54), (0.62, 0.60, 0.62), chance * 9 % 1),
    )
    balcony = (style > 0.3) & (style < 0.6) & (scattered(i, part.which) > 0.5) & (j > 0) & (v < 0.30)
    lay(color, balcony, part.top * 0.9)
    return color


def roof(part: Part) -> tuple[np.ndarray, np.ndarray]:
    x, y = part.p[0], np.abs(part.p[1])
    row, n = y / 0.42, part.n.copy()
    i = np.floor(row)
    tile = scattered(np.floor(x / 0.36 + 0.5 * (i % 2)) + part.which, i)
    color = (
        part.top * (0.62 + 0.26 * tile + 0.24 * plane_noise(x + part.which, part.p[1], 0.7) + 0.14 * (row - i))[:, None]
    )
    window = (scattered(np.floor(x / 2.6), part.which + 2 * (part.p[1] > 0)) > 0.72) & (np.abs(y - 1.8) < 0.55)
    window &= np.abs(x / 2.6 - np.floor(x / 2.6) - 0.5) < 0.2
    lay(color, window, (0.24, 0.32, 0.40))
    lay(color, y < 0.22, part.top * 0.75)
    lay(color, np.abs(n[0]) > 0.5, part.tone * 0.95)
    return color, n


def metal(part: Part) -> tuple[np.ndarray, np.ndarray]:
    p = part.p
    slats = np.where(np.abs(part.n[2]) > 0.5, p[0] % 0.36 < 0.12, p[2] % 0.3 < 0.12)
    fan = (np.hypot(p[0], p[1]) < 0.7 * np.minimum(part.half[0], part.half[1])) & (part.n[2] > 0.5)
    color = part.tone * (0.85 + 0.2 * plane_noise(p[0] + part.which, p[1] + p[2], 2.0))[:, None]
    color[slats] *= 0.82
    color[fan & (part.which % 3 == 0)] *= 0.5
    return color, part.n


def leaves(part: Part) -> tuple[np.ndarray, np.ndarray]:
    p, seed = part.p, part.which * 5.3
    a, b = (
        plane_noise(p[0] + p[2] * 0.6 + seed, p[1] - p[2] * 0.4, 1.3),
        plane_noise(p[0] - p[2], p[1] + p[2] + seed, 3.4),
    )
    clump = 0.6 * a + 0.4 * b
    color = part.tone * (0.45 + 1.05 * clump)[:, None]
    n = part.n + 0.9 * np.stack([a - 0.5, b - 0.5, 0.4 * clump])
    return color, (n / np.sqrt(dot(n, n))).astype(np.float32)


def body(part: Part) -> tuple[np.ndarray, np.ndarray]:
    x, y, half = part.p[0], part.p[1], part.half
    color = part.tone * np.where(np.abs(part.n[2]) > 0.5, 1.0, 0.8)[:, None].astype(np.float32)
    side = np.abs(part.n[2]) < 0.5
    lay(color, side & (part.p[2] < -half[2] * 0.3) & (np.abs(np.abs(x) - 1.3) < 0.35), (0.06, 0.06, 0.07))  # wheels
    lay(color, (np.abs(x) > half[0] - 0.18) & (np.abs(y) > half[1] - 0.45), (0.80, 0.74, 0.62))  # lamps
    return color, part.n


def glass(part: Part) -> tuple[np.ndarray, np.ndarray]:
    """The upper part of a car: panes all around, its own colour on top."""
    color = np.repeat(np.array([[0.11, 0.13, 0.16]], np.float32), part.p.shape[1], axis=0)
    inner = (part.n[2] > 0.5) & (np.abs(part.p[0]) < part.half[0] - 0.4) & (np.abs(part.p[1]) < part.half[1] - 0.08)
    lay(color, inner, part.tone * 0.97)
    return color, part.n


_PAINTS: dict[int, tuple[str, Paint]] = {  # and the shape whose normals are taken
    BUILDING: ("box", building),
    ROOF: ("gable", roof),
    METAL: ("box", metal),
    LEAVES: ("sphere", leaves),
    BODY: ("box", body),
    GLASS: ("box", glass),
}
