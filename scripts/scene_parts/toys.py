"""What the bundled still life is painted with: a paint takes local positions and normals [k, 3] and gives RGB [k, 3]."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scene_parts.textures import mix, noise, step

Paint = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (local position [k, 3], local normal [k, 3]) -> RGB [k, 3]


def wood(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Planks along x, each with its own tone and grain, dark seams between them."""
    plank = np.floor(p[:, 1] / 0.16)
    q = np.stack([p[:, 0] * 0.12 + plank * 3.1, p[:, 1] + plank * 0.37, p[:, 2]], axis=1)
    grain = np.sin(noise(q, 7.0, 3) * 26.0 + p[:, 1] * 20.0) * 0.5 + 0.5
    tone = noise(np.stack([plank * 1.7, plank * 0.3, 0 * plank], axis=1), 1.0, 1)
    color = mix((0.47, 0.27, 0.13), (0.74, 0.50, 0.28), 0.35 * grain + 0.65 * tone + 0.25 * (noise(q, 40.0, 2) - 0.5))
    seam = np.abs(p[:, 1] / 0.16 - np.round(p[:, 1] / 0.16)) * 0.16
    return color * (0.45 + 0.55 * step(seam, 0.003, 0.003))[:, None]


def room(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Checkered floor, mottled walls with a wainscot and painted bands, white ceiling."""
    tile = (np.floor(p[:, 0] / 0.5) + np.floor(p[:, 1] / 0.5)) % 2
    color = mix((0.30, 0.36, 0.42), (0.72, 0.71, 0.66), tile) * (0.82 + 0.36 * noise(p, 5.0, 4))[:, None]
    along = np.where(np.abs(n[:, 0]) > 0.5, p[:, 1], p[:, 0])
    side = np.where(np.abs(n[:, 0]) > 0.5, np.sign(n[:, 0]), 2 * np.sign(n[:, 1]))
    mottle = noise(p, 2.2, 4)
    upper = mix((0.52, 0.66, 0.72), (0.80, 0.82, 0.76), 1.6 * (mottle - 0.2))
    upper = np.where((side > 0)[:, None], upper, upper[:, ::-1] * np.array([1.1, 1.0, 0.95]))
    stripe = step(np.abs(along / 0.4 - np.round(along / 0.4)), 0.22, 0.02)
    lower = mix((0.46, 0.33, 0.28), (0.74, 0.55, 0.42), stripe) * (0.8 + 0.4 * noise(p, 6.0, 3))[:, None]
    wall = np.where((p[:, 2] < -0.35)[:, None], lower, upper)
    rail = (p[:, 2] > -0.37) & (p[:, 2] < -0.30)
    wall = np.where(rail[:, None], np.array([0.86, 0.83, 0.76]), wall)
    color = np.where((np.abs(n[:, 2]) < 0.5)[:, None], wall, color)
    return np.where((n[:, 2] < -0.5)[:, None], np.array([0.85, 0.85, 0.83]), color)


def globe(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    height = noise(n, 2.1, 5)
    land = mix((0.24, 0.47, 0.16), (0.72, 0.62, 0.36), (height - 0.52) * 7)
    sea = mix((0.03, 0.14, 0.38), (0.12, 0.42, 0.66), (height - 0.25) * 4)
    color = np.where((height > 0.52)[:, None], land, sea)
    return np.where((np.abs(n[:, 2]) > 0.86 + 0.12 * (height - 0.5))[:, None], np.array([0.92, 0.94, 0.96]), color)


def beach_ball(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    colors = np.array([[0.86, 0.12, 0.10], [0.95, 0.93, 0.88], [0.97, 0.72, 0.08], [0.95, 0.93, 0.88]])
    colors = np.concatenate([colors, [[0.08, 0.35, 0.75], [0.95, 0.93, 0.88]]])
    tilted = np.stack([n[:, 0], 0.8 * n[:, 1] - 0.6 * n[:, 2], 0.6 * n[:, 1] + 0.8 * n[:, 2]], axis=1)
    sector = np.floor((np.arctan2(tilted[:, 1], tilted[:, 0]) / np.pi + 1) * 2.9999).astype(int)
    return np.where((np.abs(tilted[:, 2]) > 0.955)[:, None], np.array([0.95, 0.93, 0.88]), colors[sector])


def marble(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    vein = np.abs(np.sin(p[:, 0] * 22 + p[:, 2] * 30 + 9 * noise(p, 9.0, 5)))
    return mix((0.13, 0.30, 0.25), (0.80, 0.88, 0.80), 1 - 1.9 * vein**0.55 + 0.5)


def checker_ball(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    u, v = np.arctan2(n[:, 1], n[:, 0]) / np.pi * 6, np.arccos(np.clip(n[:, 2], -1, 1)) / np.pi * 6
    return mix((0.55, 0.10, 0.38), (0.96, 0.86, 0.80), (np.floor(u) + np.floor(v)) % 2)


def face_of(p: np.ndarray, n: np.ndarray, half: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates in -1..1 on the face of a cube, and the face (0 to 5)."""
    axis = np.argmax(np.abs(n), axis=1)
    k = np.arange(len(p))
    return p[k, (axis + 1) % 3] / half, p[k, (axis + 2) % 3] / half, 2 * axis + (n[k, axis] > 0)


def die(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    d = 0.55
    pips = [[(0, 0)], [(-d, -d), (-d, 0), (-d, d), (d, -d), (d, 0), (d, d)], [(-d, -d), (d, d)]]
    pips += [
        [(-d, -d), (-d, d), (d, -d), (d, d), (0, 0)],
        [(-d, -d), (0, 0), (d, d)],
        [(-d, -d), (-d, d), (d, -d), (d, d)],
    ]
    u, v, face = face_of(p, n, 0.085)
    dark = np.zeros(len(p), bool)
    for index, spots in enumerate(pips):
        for a, b in spots:
            dark |= (face == index) & ((u - a) ** 2 + (v - b) ** 2 < 0.2**2)
    return np.where(dark[:, None], np.array([0.07, 0.07, 0.09]), np.array([0.90, 0.88, 0.82]))


def toy_block(base: tuple, ink: tuple, half: float) -> Paint:
    """A painted frame round a different sign on each side of the cube."""

    def paint(p: np.ndarray, n: np.ndarray) -> np.ndarray:
        u, v, face = face_of(p, n, half)
        r = np.hypot(u, v)
        signs = [r < 0.5, (np.abs(u) < 0.18) ^ (np.abs(v) < 0.18), np.abs(u) + np.abs(v) < 0.6]
        signs += [np.abs(r - 0.42) < 0.14, (np.abs(u + v) < 0.2) | (np.abs(u - v) < 0.2), np.sin(v * 12) > 0.1]
        inside = (np.abs(u) < 0.62) & (np.abs(v) < 0.62)
        mark = np.choose(face, signs) & inside
        frame = np.maximum(np.abs(u), np.abs(v)) > 0.78
        grain = 0.88 + 0.24 * noise(p, 50.0, 2)[:, None]
        return np.where((mark | frame)[:, None], np.array(ink), np.array(base)) * grain

    return paint


def tin(p: np.ndarray, n: np.ndarray) -> np.ndarray:
    """A can with a zigzag label and a ringed lid."""
    u = np.arctan2(p[:, 1], p[:, 0]) / np.pi * 7
    zigzag = np.abs(u - np.round(u)) * 0.16 + p[:, 2]
    label = mix((0.93, 0.89, 0.78), (0.82, 0.22, 0.12), step(np.sin(zigzag * 75), 0.0, 0.15))
    body = np.where((np.abs(p[:, 2]) < 0.115)[:, None], label, np.array([0.62, 0.63, 0.66]))
    ring = 0.55 + 0.2 * np.sin(np.hypot(p[:, 0], p[:, 1]) * 190)[:, None] * np.ones(3)
    return np.where((np.abs(n[:, 2]) > 0.5)[:, None], ring, body)


def plain(color: tuple) -> Paint:
    return lambda p, n: np.array(color) * (0.9 + 0.2 * noise(p, 30.0, 3))[:, None]
