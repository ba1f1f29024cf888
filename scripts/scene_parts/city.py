"""A city as solids on flat ground: streets, the plots between them, and what stands on both, from a seed.

The plan is irregular streets along x and y. A plot has one use (houses with gardens, flats around a courtyard, offices, a
park, a car park, a square); trees and cars line the streets. z up, metres; the ground is z = 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from scene_parts.solids import Solid

HOUSES, FLATS, OFFICES, PARK, CAR_PARK, SQUARE, MEADOW = range(7)  # uses of a plot
BUILDING, ROOF, METAL, LEAVES, BODY, GLASS = range(6)  # how a solid is painted
SHARES = (0.30, 0.26, 0.24, 0.10, 0.06, 0.04)
FLOOR = 3.1
WALK = 3.0  # width of a pavement
TALLEST = 36.0  # nothing reaches it

_WALLS = (
    (0.60, 0.32, 0.25),
    (0.72, 0.62, 0.48),
    (0.80, 0.77, 0.70),
    (0.55, 0.55, 0.56),
    (0.70, 0.52, 0.38),
    (0.62, 0.66, 0.68),
)
_TILES = ((0.62, 0.28, 0.19), (0.50, 0.25, 0.20), (0.36, 0.33, 0.33), (0.68, 0.40, 0.26), (0.30, 0.34, 0.40))
_FLAT_ROOFS = ((0.50, 0.50, 0.49), (0.34, 0.34, 0.36), (0.66, 0.65, 0.62), (0.48, 0.55, 0.44), (0.58, 0.50, 0.44))
_CARS = (
    (0.85, 0.85, 0.86),
    (0.12, 0.12, 0.14),
    (0.52, 0.54, 0.57),
    (0.68, 0.12, 0.10),
    (0.12, 0.25, 0.52),
    (0.80, 0.68, 0.20),
)
_LEAVES = ((0.20, 0.36, 0.13), (0.28, 0.42, 0.16), (0.36, 0.44, 0.18), (0.17, 0.30, 0.15), (0.46, 0.40, 0.18))


@dataclass(frozen=True, eq=False)
class Streets:
    """The parallel streets of one direction."""

    at: np.ndarray  # [n] f32, their middles, ascending
    half: np.ndarray  # [n] f32, half the width, pavements included


@dataclass(frozen=True, eq=False)
class City:
    """Solids as a list and, the same ones, as arrays over N."""

    streets: tuple[Streets, Streets]  # those that cross the x axis, and the y axis
    uses: np.ndarray  # [nx + 1, ny + 1] i8: of the plots before, between and behind the streets
    solids: list[Solid] = field(repr=False)
    at: np.ndarray = field(repr=False)  # [N, 3] f32
    half: np.ndarray = field(repr=False)  # [N, 3] f32, half sides of the box around each, in its own frame
    cosine: np.ndarray = field(repr=False)  # [N] f32, of its turn
    sine: np.ndarray = field(repr=False)
    paint: np.ndarray = field(repr=False)  # [N] i8
    tone: np.ndarray = field(repr=False)  # [N, 3] f32, its colour
    top: np.ndarray = field(repr=False)  # [N, 3] f32, the colour of its roof

    def corners(self) -> np.ndarray:
        """[N, 8, 3] f32: of the box around each solid, in the world."""
        signs = np.array([[i & 1, i >> 1 & 1, i >> 2] for i in range(8)], np.float32) * 2 - 1
        local = self.half[:, None] * signs
        cosine, sine = self.cosine[:, None], self.sine[:, None]
        x, y = cosine * local[..., 0] - sine * local[..., 1], sine * local[..., 0] + cosine * local[..., 1]
        return np.stack([x, y, local[..., 2]], axis=-1) + self.at[:, None]


class _Site:
    """What has been built so far."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.solids: list[Solid] = []
        self.half: list[tuple[float, float, float]] = []
        self.paint: list[int] = []
        self.tone: list[np.ndarray] = []
        self.top: list[np.ndarray] = []

    def colour(self, palette: tuple, spread: float = 0.06) -> np.ndarray:
        base = np.array(palette[self.rng.integers(len(palette))])
        return np.clip(base + self.rng.normal(0, spread, 3) * 0.4 + self.rng.normal(0, spread), 0.03, 0.95)

    def add(
        self,
        shape: str,
        half: tuple,
        at: tuple,
        turn: float,
        paint: int,
        tone: np.ndarray,
        top: np.ndarray | None = None,
    ) -> None:
        size = {"sphere": half[:1], "cylinder": half[1:]}.get(shape, half)
        self.solids.append(Solid(shape, np.array(size, np.float32), np.array(at, np.float32), turn))
        self.half.append(half)
        self.paint.append(paint)
        self.tone.append(tone)
        self.top.append(tone if top is None else top)

    def block(self, x: float, y: float, hx: float, hy: float, height: float, base: float, tone: np.ndarray) -> None:
        """A flat-roofed building, or a storey on one, with what stands on its roof."""
        rng, top = self.rng, self.colour(_FLAT_ROOFS)
        self.add("box", (hx, hy, height / 2), (x, y, base + height / 2), 0.0, BUILDING, tone, top)
        for _ in range(rng.poisson(hx * hy / 40)):
            a, b, c = rng.uniform(0.6, 1.6), rng.uniform(0.5, 1.1), rng.uniform(0.3, 0.7)
            if hx < a + 1.5 or hy < b + 1.5:
                continue
            at = (x + rng.uniform(-1, 1) * (hx - a - 1), y + rng.uniform(-1, 1) * (hy - b - 1), base + height + c)
            if rng.random() < 0.25:
                self.add("cylinder", (b, b, c), at, 0.0, METAL, self.colour(((0.7, 0.7, 0.7),)))
            else:
                self.add("box", (a, b, c), at, 0.0, METAL, self.colour(((0.72, 0.73, 0.74), (0.5, 0.5, 0.5))))

    def house(self, x: float, y: float) -> None:
        rng = self.rng
        hx, hy, wall, rise = rng.uniform(4, 5.6), rng.uniform(3.4, 4.4), rng.uniform(3.0, 6.2), rng.uniform(1.1, 1.7)
        turn = rng.normal(0, 0.05) + (np.pi / 2 if rng.random() < 0.4 else 0.0)
        tone, tiles = self.colour(_WALLS), self.colour(_TILES)
        self.add("box", (hx, hy, wall / 2), (x, y, wall / 2), turn, BUILDING, tone, tiles)
        self.add("gable", (hx + 0.4, hy + 0.4, rise), (x, y, wall + rise), turn, ROOF, tone, tiles)
        along, across = rng.uniform(-0.6, 0.6) * hx, rng.choice([-1, 1]) * hy * 0.4
        chimney = (x + along * np.cos(turn) - across * np.sin(turn), y + along * np.sin(turn) + across * np.cos(turn))
        self.add(
            "box", (0.45, 0.45, 1.0), (*chimney, wall + 2 * rise - 0.5), turn, METAL, self.colour(((0.5, 0.3, 0.25),))
        )

    def tree(self, x: float, y: float, small: float = 1.3, large: float = 2.8) -> None:
        radius = self.rng.uniform(small, large)
        at = (x, y, radius + self.rng.uniform(0.4, 1.6))
        self.add("sphere", (radius,) * 3, at, 0.0, LEAVES, self.colour(_LEAVES, 0.04))

    def car(self, x: float, y: float, turn: float) -> None:
        rng, tone = self.rng, self.colour(_CARS, 0.03)
        turn += rng.normal(0, 0.03) + (np.pi if rng.random() < 0.5 else 0.0)
        if rng.random() < 0.08:  # a van
            self.add("box", (2.9, 1.0, 1.1), (x, y, 1.35), turn, BODY, self.colour(_CARS, 0.03))
            return
        self.add("box", (2.15, 0.9, 0.42), (x, y, 0.67), turn, BODY, tone)
        back = rng.uniform(0.15, 0.35)
        at = (x - back * np.cos(turn), y - back * np.sin(turn), 1.34)
        self.add("box", (1.15, 0.8, 0.27), at, turn, GLASS, tone)


def build_city(low: tuple[float, float], high: tuple[float, float], seed: int) -> City:
    """The city between two corners (x, y)."""
    rng = np.random.default_rng([seed, 0])
    site = _Site(rng)
    across = _streets(rng, low[0], high[0]), _streets(rng, low[1], high[1])
    uses = np.full((len(across[0].at) + 1, len(across[1].at) + 1), MEADOW, np.int8)
    for i in range(1, len(across[0].at)):
        for j in range(1, len(across[1].at)):
            uses[i, j] = use = rng.choice(len(SHARES), p=SHARES)
            x0, x1 = across[0].at[[i - 1, i]] + across[0].half[[i - 1, i]] * [1, -1]
            y0, y1 = across[1].at[[j - 1, j]] + across[1].half[[j - 1, j]] * [1, -1]
            _FILL[use](site, float(x0), float(y0), float(x1), float(y1))
    for axis in range(2):
        for at, half in zip(across[axis].at, across[axis].half, strict=True):
            _line(site, axis, float(at), float(half), across[1 - axis])
    solids = site.solids
    turns = np.array([solid.turn for solid in solids])
    return City(
        across,
        uses,
        solids,
        np.array([solid.at for solid in solids], np.float32).reshape(-1, 3),
        np.array(site.half, np.float32).reshape(-1, 3),
        np.cos(turns).astype(np.float32),
        np.sin(turns).astype(np.float32),
        np.array(site.paint, np.int8),
        np.array(site.tone, np.float32).reshape(-1, 3),
        np.array(site.top, np.float32).reshape(-1, 3),
    )


def _streets(rng: np.random.Generator, low: float, high: float) -> Streets:
    at = [low]
    while at[-1] < high:
        at.append(at[-1] + rng.uniform(48, 84))
    return Streets(np.array(at, np.float32), np.where(rng.random(len(at)) < 0.2, 10.0, 7.5).astype(np.float32))


def _line(site: _Site, axis: int, at: float, half: float, others: Streets) -> None:
    """Trees and cars along one street, none where it crosses others."""
    rng, turn = site.rng, 0.0 if axis else np.pi / 2

    def put(build: str, along: float, aside: float, *more: float) -> None:
        x, y = (at + aside, along) if axis == 0 else (along, at + aside)
        getattr(site, build)(x, y, *more)

    for k in range(len(others.at) - 1):
        first, last = others.at[k] + others.half[k] + 6, others.at[k + 1] - others.half[k + 1] - 6
        for side in (-1.0, 1.0):
            for along in np.arange(first, last, 9.5):
                if rng.random() < 0.5:
                    put("tree", along + rng.uniform(-1, 1), side * (half - 0.9), 1.1, 2.0)
            for along in np.arange(first, last, 6.3):
                if rng.random() < 0.45:
                    put("car", along + rng.uniform(-0.5, 0.5), side * (half - WALK - 1.1), turn)
            for along in np.arange(first, last, 24.0):
                if rng.random() < 0.4:
                    put("car", along + rng.uniform(0, 12), side * (1.7 if half < 9 else 2.2), turn)


# ---- what stands on a plot: (site, x0, y0, x1, y1) ----


def _houses(site: _Site, x0: float, y0: float, x1: float, y1: float) -> None:
    rng, count = site.rng, max(1, int((x1 - x0) / 14))
    rows = [y0 + 8, y1 - 8] if y1 - y0 > 30 else [(y0 + y1) / 2]
    for x in x0 + (np.arange(count) + 0.5) * (x1 - x0) / count:
        for y in rows:
            site.house(x + rng.uniform(-1, 1), y + rng.uniform(-1.5, 1.5))
        for y in np.arange(y0 + 16, y1 - 16, 6.0):
            if rng.random() < 0.6:
                site.tree(x + rng.uniform(-5, 5), y + rng.uniform(-2, 2), 0.8, 2.4)


def _flats(site: _Site, x0: float, y0: float, x1: float, y1: float) -> None:
    rng, tone, depth = site.rng, site.colour(_WALLS), 5.5
    x, y, hx, hy = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2 - 1.5, (y1 - y0) / 2 - 1.5
    for side in (-1, 1):
        floors = rng.integers(4, 7)
        site.block(x, y + side * (hy - depth), hx, depth, floors * FLOOR, 0.0, tone)
        if hy > 18 and rng.random() < 0.6:
            site.block(x + side * (hx - depth), y, depth, hy - 2 * depth - 2, floors * FLOOR, 0.0, site.colour(_WALLS))
    _trees(site, x - hx + 14, y - hy + 14, x + hx - 14, y + hy - 14, 50)


def _offices(site: _Site, x0: float, y0: float, x1: float, y1: float) -> None:
    rng, nx, ny = site.rng, max(1, round((x1 - x0) / 24)), max(1, round((y1 - y0) / 24))
    hx, hy = (x1 - x0) / nx / 2, (y1 - y0) / ny / 2
    for x in x0 + (np.arange(nx) * 2 + 1) * hx:
        for y in y0 + (np.arange(ny) * 2 + 1) * hy:
            tone, height, gap = site.colour(_WALLS), rng.integers(4, 9) * FLOOR, rng.uniform(1.2, 3.0, 2)
            site.block(x, y, hx - gap[0], hy - gap[1], height, 0.0, tone)
            if rng.random() < 0.4:
                share = rng.uniform(0.35, 0.65)
                site.block(x, y, share * (hx - gap[0]), share * (hy - gap[1]), 2 * FLOOR, height, tone)


def _trees(site: _Site, x0: float, y0: float, x1: float, y1: float, each: float) -> None:
    """One tree for so many square metres."""
    if x1 > x0 and y1 > y0:
        for _ in range(site.rng.poisson((x1 - x0) * (y1 - y0) / each)):
            site.tree(site.rng.uniform(x0, x1), site.rng.uniform(y0, y1))


def _park(site: _Site, x0: float, y0: float, x1: float, y1: float) -> None:
    _trees(site, x0 + 3, y0 + 3, x1 - 3, y1 - 3, 55)


def _car_park(site: _Site, x0: float, y0: float, x1: float, y1: float) -> None:
    rng = site.rng
    for x in np.arange(x0 + 1.35, x1 - 1.3, 2.7):
        for y in np.arange(y0 + 3.5, y1 - 3, 8.0):
            if rng.random() < 0.55:
                site.car(x, y + rng.uniform(-0.3, 0.3), np.pi / 2)


def _square(site: _Site, x0: float, y0: float, x1: float, y1: float) -> None:
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    site.add("cylinder", (5.0, 5.0, 0.35), (x, y, 0.35), 0.0, METAL, np.array([0.62, 0.60, 0.56]))
    site.add("box", (1.0, 1.0, 4.0), (x, y, 4.7), 0.4, METAL, np.array([0.40, 0.46, 0.40]))
    for a in np.arange(x0 + 4, x1 - 3, 8.0):
        for b in (y0 + 4, y1 - 4):
            site.tree(a, b, 1.3, 1.8)


_FILL = (_houses, _flats, _offices, _park, _car_park, _square)
