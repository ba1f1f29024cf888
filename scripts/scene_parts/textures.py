"""Procedural textures. Colours are RGB in 0..1; light is shaded with their power of 1.6."""

from __future__ import annotations

from functools import cache

import numpy as np

_TILE = 256  # cells of the plane's noise before it repeats


def noise(p: np.ndarray, frequency: float, octaves: int = 4) -> np.ndarray:
    """Smooth value noise in 0..1 at p [k, 3]: trilinear between hashed lattice values, octaves at half weight each."""
    total = np.zeros(len(p), np.float32)
    for octave in range(octaves):
        q = p * (frequency * 2**octave) + 37.7 * octave + 100.0
        cell = np.floor(q).astype(np.int64)
        f = (q - cell).astype(np.float32)
        f = f * f * (3 - 2 * f)
        for corner in range(8):
            bits = np.array([corner & 1, corner >> 1 & 1, corner >> 2])
            c = cell + bits
            h = (c[:, 0] * 73856093) ^ (c[:, 1] * 19349663) ^ (c[:, 2] * 83492791)
            h = (h ^ (h >> 13)) * 1274126177 & 0x7FFFFFFF
            weight = np.prod(np.where(bits, f, 1 - f), axis=1)
            total += weight * (h % 4096 / 4095.0) * 0.5 ** (octave + 1)
    return total / (1 - 0.5**octaves)


def mix(a: tuple, b: tuple, t: np.ndarray) -> np.ndarray:
    t = np.clip(t, 0, 1)[:, None]
    return (1 - t) * np.array(a) + t * np.array(b)


def step(x: np.ndarray, edge: float, width: float) -> np.ndarray:
    return np.clip((x - edge) / width + 0.5, 0, 1)


@cache
def _tile() -> np.ndarray:
    """The plane's random values [256 * 256] f32 in 0..1."""
    return np.random.default_rng(256).random(_TILE * _TILE, np.float32)


def scattered(i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """A random value in 0..1, f32, of each pair of whole numbers; it repeats after 256 of them either way."""
    return np.take(_tile(), ((j.astype(np.int32) & (_TILE - 1)) << 8) | (i.astype(np.int32) & (_TILE - 1)))


def plane_noise(x: np.ndarray, y: np.ndarray, frequency: float) -> np.ndarray:
    """Smooth noise in 0..1 over a plane, one octave, f32: a tenth of the time of `noise`."""
    u, v = x * frequency, y * frequency
    i, j = np.floor(u), np.floor(v)
    u, v = u - i, v - j
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    i, j = i.astype(np.int32), j.astype(np.int32)
    left, right, above, below = i & (_TILE - 1), i + 1 & (_TILE - 1), (j & (_TILE - 1)) << 8, (j + 1 & (_TILE - 1)) << 8
    tile = _tile()
    upper = np.take(tile, above | left) * (1 - u) + np.take(tile, above | right) * u
    lower = np.take(tile, below | left) * (1 - u) + np.take(tile, below | right) * u
    return upper * (1 - v) + lower * v


def blend(a: tuple, b: tuple, t: np.ndarray) -> np.ndarray:
    """`mix` in f32."""
    first, last = np.array(a, np.float32), np.array(b, np.float32)
    return first + (last - first) * np.clip(t, 0, 1)[:, None]


def lay(color: np.ndarray, where: np.ndarray, over: np.ndarray | tuple) -> None:
    """Paints `over`, RGB or RGB [k, 3], on the places [k] bool."""
    over = np.asarray(over, np.float32)
    color[where] = over if over.ndim == 1 else over[where]
