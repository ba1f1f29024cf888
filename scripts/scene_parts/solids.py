"""Solids and the rays that meet them: what the generated scenes are made of.

Rays and positions are [3, ...] f32 in metres, z up; any trailing shape broadcasts. Sizes may be one solid's or, behind the
axis of coordinates, one for each position. A division by zero is meant: a ray along a slope. NaN: missed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EPS = 1e-3


@dataclass(frozen=True)
class Solid:
    """`shape` in its own frame, placed by a turn about z and a shift.

    sphere: radius. box: half sides. cylinder (upright): radius, half height. gable: the half sides of its box, whose ridge
    lies along x. room: a box seen from inside.
    """

    shape: str
    size: np.ndarray
    at: np.ndarray  # [3] f32, the middle of its box
    turn: float

    def to_local(self, v: np.ndarray) -> np.ndarray:
        return turned(v, np.float32(np.cos(self.turn)), np.float32(-np.sin(self.turn)))

    def to_world(self, v: np.ndarray) -> np.ndarray:
        return turned(v, np.float32(np.cos(self.turn)), np.float32(np.sin(self.turn)))

    def hit(self, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Distance along world rays [3, ...] to the solid; infinite where it is missed."""
        o, d = origin - self.at.reshape(3, *[1] * (origin.ndim - 1)), direction
        if self.shape == "sphere":
            return ball(o, d, self.size[0])
        if self.shape == "cylinder":  # a slab and a tube; its turn about the axis changes nothing here
            spans = [slab(o[2], d[2], self.size[1]), tube(o, d, self.size[0])]
        else:
            o, d = self.to_local(o), self.to_local(d)
            spans = [slab(o[axis], d[axis], self.size[axis]) for axis in range(3)]
            if self.shape == "gable":
                spans += [half_space(o, d, normal, self.size) for normal in gable_normals(self.size)]
        near, far = spans[0]
        for enter, leave in spans[1:]:
            near, far = np.maximum(near, enter), np.minimum(far, leave)
        if self.shape == "room":
            return far
        first = np.where(near > EPS, near, far)
        return np.where((near <= far) & (first > EPS), first, np.float32(np.inf))


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def turned(v: np.ndarray, cosine: np.ndarray | np.float32, sine: np.ndarray | np.float32) -> np.ndarray:
    """Vectors [3, ...] turned about z by the angle of this cosine and sine."""
    return np.stack([cosine * v[0] - sine * v[1], sine * v[0] + cosine * v[1], v[2]])


def ball(o: np.ndarray, d: np.ndarray, radius: float) -> np.ndarray:
    """Distance to the sphere around the origin along unit directions."""
    b = dot(o, d)
    root = np.sqrt(b * b - dot(o, o) + radius**2)  # NaN: missed
    near = np.where(-b - root > EPS, -b - root, -b + root)
    return np.where(near > EPS, near, np.float32(np.inf))


def slab(o: np.ndarray, d: np.ndarray, half: float) -> tuple[np.ndarray, np.ndarray]:
    """Where rays enter and leave |x| <= half; one along the slab is inside from afar to afar, or never."""
    inverse = 1 / np.where(d == 0, np.float32(1e-30), d)
    reach = np.abs(inverse) * half
    return -o * inverse - reach, -o * inverse + reach


def tube(o: np.ndarray, d: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Where rays enter and leave x^2 + y^2 <= radius^2, those along its axis from afar to afar; NaN: never."""
    a, b = d[0] * d[0] + d[1] * d[1], o[0] * d[0] + o[1] * d[1]
    a = np.where(a == 0, np.float32(1e-30), a)
    root = np.sqrt(b * b - a * (o[0] * o[0] + o[1] * o[1] - radius**2))
    return (-b - root) / a, (-b + root) / a


def gable_normals(size: np.ndarray) -> list[np.ndarray]:
    """The two slopes of a roof that rises from the long edges at -size[2] to its ridge at size[2]; not of length 1."""
    rise = 2 * size[2] / size[1]
    return [np.stack([0 * rise, -rise, 0 * rise + 1]), np.stack([0 * rise, rise, 0 * rise + 1])]


def half_space(o: np.ndarray, d: np.ndarray, normal: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rays enter and leave normal . x <= size[2]."""
    toward = dot(normal, d)
    distance = (size[2] - dot(normal, o)) / toward
    infinite = np.float32(np.inf)
    return np.where(toward < 0, distance, -infinite), np.where(toward < 0, infinite, distance)


def normal_at(shape: str, size: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Unit normals [3, k] f32, in the solid's frame, at local surface positions [3, k]; a room's point inwards."""
    if shape == "sphere":
        return p / np.sqrt(dot(p, p))
    if shape == "cylinder":
        radial = np.hypot(p[0], p[1])
        flat = np.abs(p[2]) - size[1] > radial - size[0]
        side = np.stack([p[0], p[1], 0 * radial]) / np.maximum(radial, 1e-9)
        return np.where(flat, np.array([[0], [0], [1]]) * np.sign(p[2]), side).astype(np.float32)
    half = size.reshape(3, -1)
    if shape == "gable":
        return _gable_normal(half, p)
    axis = np.argmax(np.abs(p) / half, axis=0)
    at = (axis, np.arange(p.shape[1]))
    normal = np.zeros_like(p)
    normal[at] = np.sign(p[at])
    return -normal if shape == "room" else normal


def _gable_normal(half: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The slope, or the end wall where it is nearer."""
    left, right = gable_normals(half)
    slope = np.where(p[1] < 0, left, right)
    slope = slope / np.sqrt(dot(slope, slope))
    wall = half[0] - np.abs(p[0]) < (half[2] - dot(slope, p) / slope[2]) * slope[2]
    return np.where(wall, np.sign(p[0]) * np.array([[1], [0], [0]]), slope).astype(np.float32)
