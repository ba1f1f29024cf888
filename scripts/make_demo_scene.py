"""Makes `data/demo`: photos of a small still life, ray traced here, and the COLMAP model of the cameras that took them.

A wooden table in a room with toys on it, everything matte but for two highlights, lit by a soft lamp and the room.
The light is sampled at fixed places, so a surface looks the same from every view, which is what makes a scene
learnable. The model is what photogrammetry would give, but for exact cameras: points with a millimetre of noise, short
tracks. World: metres, y down (as viewers expect of a PLY). The same seed gives the same bytes with the same versions of
numpy and Pillow. Takes a minute on two cores.

    python scripts/make_demo_scene.py [FOLDER]
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from PIL import Image

SEED = 7
WIDTH, HEIGHT, FOCAL = 320, 240, 275.0
RINGS = ((22, 1.55, 0.62), (18, 1.35, 1.22))  # (views, distance from the axis, height above the table), metres
TARGET = np.array([0.0, 0.0, 0.10])
SAMPLES = 2  # rays per pixel and axis
SHADOW_RAYS, SKY_RAYS = 10, 8  # per ray; every ray of a pixel takes its own share of the light samples
LAMP, LAMP_RADIUS = np.array([1.0, -0.9, 2.3]), 0.28
POINTS, POINT_NOISE, PIXEL_NOISE, TRACK = 4200, 0.001, 0.3, 6
QUALITY = 90
EPS = 1e-3
Z_UP_TO_Y_DOWN = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # the scene is made with z up

Paint = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (local position [k, 3], local normal [k, 3]) -> RGB [k, 3]


@dataclass(frozen=True)
class Thing:
    """A solid: `shape` in its own frame, placed by a turn about z and a shift. Sizes in metres."""

    shape: str  # sphere, box, cylinder (upright), room (a box seen from inside)
    size: np.ndarray  # radius; half sides; radius and half height
    at: np.ndarray
    turn: float
    paint: Paint
    gloss: float = 0.0

    def to_local(self, v: np.ndarray) -> np.ndarray:
        c, s = np.float32(np.cos(self.turn)), np.float32(np.sin(self.turn))
        return np.stack([c * v[:, 0] + s * v[:, 1], c * v[:, 1] - s * v[:, 0], v[:, 2]]).T

    def to_world(self, v: np.ndarray) -> np.ndarray:
        c, s = np.float32(np.cos(self.turn)), np.float32(np.sin(self.turn))
        return np.stack([c * v[:, 0] - s * v[:, 1], s * v[:, 0] + c * v[:, 1], v[:, 2]]).T


# ---- textures ----


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


def things() -> list[Thing]:
    """The still life; the table top is the plane z = 0."""

    def thing(shape: str, size: tuple, at: tuple, paint: Paint, turn: float = 0.0, gloss: float = 0.0) -> Thing:
        return Thing(shape, np.array(size, np.float32), np.array(at, np.float32), turn, paint, gloss)

    red, cream = (0.80, 0.16, 0.12), (0.95, 0.88, 0.70)
    return [
        thing("room", (2.6, 2.6, 1.7), (0, 0, 0.9), room, 0.3),
        thing("cylinder", (0.82, 0.03), (0, 0, -0.03), wood, 0.2),
        thing("cylinder", (0.09, 0.36), (0, 0, -0.42), plain((0.30, 0.20, 0.14))),
        thing("cylinder", (0.35, 0.02), (0, 0, -0.78), plain((0.30, 0.20, 0.14))),
        thing("sphere", (0.21,), (-0.27, 0.24, 0.21), globe, 0.5, 0.25),
        thing("sphere", (0.15,), (0.36, 0.30, 0.15), beach_ball, 0.4),
        thing("sphere", (0.095,), (-0.06, -0.30, 0.095), marble, 0.0, 0.35),
        thing("sphere", (0.06,), (0.27, -0.47, 0.06), checker_ball, 0.9),
        thing("cylinder", (0.105, 0.15), (-0.47, -0.18, 0.15), tin, 0.3),
        thing("box", (0.085,) * 3, (0.02, 0.05, 0.085), die, 0.6),
        thing("box", (0.11,) * 3, (0.42, -0.12, 0.11), toy_block(cream, red, 0.11), 0.25),
        thing("box", (0.09,) * 3, (0.41, -0.10, 0.31), toy_block((0.13, 0.42, 0.62), (0.97, 0.82, 0.25), 0.09), 0.85),
        thing("box", (0.06,) * 3, (-0.27, -0.50, 0.06), toy_block((0.28, 0.58, 0.30), cream, 0.06), 1.1),
    ]


# ---- rays ----


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def hit(thing: Thing, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Distance [k] along world rays (origin, unit direction: [3, k] f32) to a thing; infinite where it is missed."""
    o, d = origin - thing.at[:, None], direction
    if thing.shape == "sphere":
        b = dot(o, d)
        root = np.sqrt(b * b - dot(o, o) + thing.size[0] ** 2)  # NaN: missed
        near = np.where(-b - root > EPS, -b - root, -b + root)
        return np.where(near > EPS, near, np.float32(np.inf))
    if thing.shape == "cylinder":  # a slab and a tube; its turn about the axis changes nothing here
        spans = [slab(o[2], d[2], thing.size[1]), tube(o, d, thing.size[0])]
    else:
        o, d = thing.to_local(o.T).T, thing.to_local(d.T).T
        spans = [slab(o[axis], d[axis], thing.size[axis]) for axis in range(3)]
    near = np.maximum.reduce([enter for enter, _ in spans])
    far = np.minimum.reduce([leave for _, leave in spans])
    if thing.shape == "room":
        return far
    first = np.where(near > EPS, near, far)
    return np.where((near <= far) & (first > EPS), first, np.float32(np.inf))


def slab(o: np.ndarray, d: np.ndarray, half: float) -> tuple[np.ndarray, np.ndarray]:
    """Where rays enter and leave |x| <= half."""
    inverse = 1 / d
    reach = np.abs(inverse) * half
    return -o * inverse - reach, -o * inverse + reach


def tube(o: np.ndarray, d: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Where rays enter and leave x^2 + y^2 <= radius^2; NaN: never."""
    a, b = d[0] * d[0] + d[1] * d[1], o[0] * d[0] + o[1] * d[1]
    root = np.sqrt(b * b - a * (o[0] * o[0] + o[1] * o[1] - radius**2))
    return (-b - root) / a, (-b + root) / a


def normal_at(thing: Thing, p: np.ndarray) -> np.ndarray:
    """Unit normals, in the thing's frame, at local surface positions [k, 3]; the room's point inwards."""
    if thing.shape == "sphere":
        return p / np.linalg.norm(p, axis=1, keepdims=True)
    if thing.shape == "cylinder":
        radial = np.hypot(p[:, 0], p[:, 1])
        flat = np.abs(p[:, 2]) - thing.size[1] > radial - thing.size[0]
        side = np.stack([p[:, 0], p[:, 1], 0 * radial], axis=1) / np.maximum(radial, 1e-9)[:, None]
        return np.where(flat[:, None], np.array([0, 0, 1]) * np.sign(p[:, 2:]), side).astype(np.float32)
    axis = np.argmax(np.abs(p) / thing.size, axis=1)
    normal = np.zeros_like(p)
    normal[np.arange(len(p)), axis] = np.sign(p[np.arange(len(p)), axis])
    return -normal if thing.shape == "room" else normal


def nearest_hit(scene: list[Thing], origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distance, index of the thing) per ray [3, k]; every ray ends somewhere, in the room at the latest."""
    best, which = np.full(origin.shape[1], np.inf, np.float32), np.zeros(origin.shape[1], np.int64)
    for index, thing in enumerate(scene):
        distance = hit(thing, origin, direction)
        closer = distance < best
        best[closer], which[closer] = distance[closer], index
    return best, which


def blocked(scene: list[Thing], origin: np.ndarray, direction: np.ndarray, reach: np.ndarray | float) -> np.ndarray:
    """Whether a thing other than the room lies nearer than `reach` along each ray [3, k]."""
    shut = np.zeros(origin.shape[1], bool)
    for thing in scene[1:]:
        shut |= hit(thing, origin, direction) < reach
    return shut


def spread(count: int, share: int) -> np.ndarray:
    """The `share`-th part of a low-discrepancy sequence in the unit square, [count, 2]."""
    k = np.arange(count) * SAMPLES**2 + share + 1
    return np.stack([k * 0.7548776662466927 % 1, k * 0.5698402909980532 % 1], axis=1)


def light(scene: list[Thing], p: np.ndarray, n: np.ndarray, share: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Light of lamp and room [k] at world positions p with normals n [3, k], and the part of the lamp seen."""
    start = p + n * np.float32(EPS)
    seen, sky = np.zeros(p.shape[1], np.float32), np.zeros(p.shape[1], np.float32)
    for u, v in spread(SHADOW_RAYS, share):
        r, a = LAMP_RADIUS * np.sqrt(u), 2 * np.pi * v
        spot = LAMP + np.array([r * np.cos(a), r * np.sin(a), 0.0])
        to = spot.astype(np.float32)[:, None] - start
        length = np.sqrt(dot(to, to))
        seen += ~blocked(scene, start, to / length, length)
    for u, v in spread(SKY_RAYS, share):
        z, a = 2 * u - 1, 2 * np.pi * v
        ball = np.array([np.sqrt(1 - z * z) * np.cos(a), np.sqrt(1 - z * z) * np.sin(a), z], np.float32)
        toward = n + np.float32(0.999) * ball[:, None]  # cosine-distributed about the normal
        sky += np.where(blocked(scene, start, toward / np.sqrt(dot(toward, toward)), 0.9), 0.25, 1.0)
    to = LAMP[:, None] - p
    square = dot(to, to)
    lamp = np.maximum(dot(to, n), 0) / np.sqrt(square) * 6.5 / square * seen / SHADOW_RAYS
    return lamp, sky / SKY_RAYS * (0.36 + 0.10 * n[2]), seen / SHADOW_RAYS


def shade(scene: list[Thing], origin: np.ndarray, direction: np.ndarray, share: int) -> np.ndarray:
    """Linear RGB [k, 3] of what world rays [3, k] see."""
    distance, which = nearest_hit(scene, origin, direction)
    p = origin + direction * distance
    albedo, n = np.zeros((p.shape[1], 3)), np.zeros_like(p)
    gloss = np.array([thing.gloss for thing in scene], np.float32)[which]
    for index, thing in enumerate(scene):
        mine = which == index
        if mine.any():
            local = thing.to_local(p[:, mine].T - thing.at)
            normal = normal_at(thing, local)
            albedo[mine], n[:, mine] = thing.paint(local, normal), thing.to_world(normal).T
    lamp, sky, seen = light(scene, p, n, share)
    color = albedo**1.6 * (lamp[:, None] * np.array([1.0, 0.93, 0.82]) + sky[:, None] * np.array([0.90, 0.97, 1.08]))
    to = LAMP[:, None] - p
    halfway = to / np.sqrt(dot(to, to)) - direction
    halfway /= np.sqrt(dot(halfway, halfway))
    return color + (gloss * seen * np.maximum(dot(halfway, n), 0) ** 60)[:, None]


# ---- cameras, photos, model ----


def poses() -> list[np.ndarray]:
    """World (z up) to camera, [4, 4] f64 each: two rings of cameras that look at the table, OpenCV axes."""
    result = []
    for ring, (count, radius, height) in enumerate(RINGS):
        for k in range(count):
            angle = 2 * np.pi * (k + 0.5 * ring) / count
            r = radius + 0.06 * np.sin(3 * angle + ring)
            centre = np.array([r * np.cos(angle), r * np.sin(angle), height + 0.05 * np.cos(5 * angle)])
            forward = (TARGET - centre) / np.linalg.norm(TARGET - centre)
            right = np.cross(forward, [0, 0, 1])
            right /= np.linalg.norm(right)
            pose = np.eye(4)
            pose[:3, :3] = np.stack([right, np.cross(forward, right), forward])
            pose[:3, 3] = -pose[:3, :3] @ centre
            result.append(pose)
    return result


def rays(pose: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Origins and unit directions [3, k] f32 through image positions in pixels."""
    local = np.stack([(x - WIDTH / 2) / FOCAL, (y - HEIGHT / 2) / FOCAL, np.ones_like(x)])
    direction = pose[:3, :3].T @ (local / np.sqrt(dot(local, local)))
    origin = np.broadcast_to(-(pose[:3, :3].T @ pose[:3, 3:]), direction.shape)
    return origin.astype(np.float32), direction.astype(np.float32)


def photo(pose: np.ndarray) -> np.ndarray:
    """The photo [H, W, 3] uint8 of one camera, with rows of pixels at a time small enough for the caches."""
    np.seterr(divide="ignore", invalid="ignore")  # rays along a slab, rays that miss
    scene, image = things(), np.zeros((HEIGHT, WIDTH, 3), np.float32)
    band = 24
    for top in range(0, HEIGHT, band):
        y, x = np.divmod(np.arange(band * WIDTH), WIDTH)
        for share in range(SAMPLES**2):
            dx, dy = ((share % SAMPLES) + 0.5) / SAMPLES, ((share // SAMPLES) + 0.5) / SAMPLES
            color = shade(scene, *rays(pose, x + dx, top + y + dy), share)
            # Encoded before averaging, so that a highlight does not eat the edge it shares a pixel with.
            image[top : top + band] += (np.clip(color, 0, 1) ** (1 / 2.2)).reshape(band, WIDTH, 3)
    return np.round(image / SAMPLES**2 * 255).astype(np.uint8)


def surface_points(views: list[np.ndarray], photos: list[np.ndarray], rng: np.random.Generator) -> tuple:
    """Points on surfaces (z up) with noise, their colours, and for each the views and pixels that saw it."""
    scene, points, colors, tracks = things(), [], [], []
    while len(points) < POINTS:
        first = int(rng.integers(len(views)))
        x, y = rng.uniform(1, WIDTH - 1, 200), rng.uniform(1, HEIGHT - 1, 200)
        origin, direction = rays(views[first], x, y)
        distance, which = nearest_hit(scene, origin, direction)
        # Rays favour what is near the cameras already; the plain room keeps half of its share.
        keep = (which > 0) | (rng.random(200) < 0.5)
        exact = (origin + direction * distance).T[keep].astype(np.float64)
        color = photos[first][y[keep].astype(int), x[keep].astype(int)]
        noisy = exact + rng.normal(0, POINT_NOISE, exact.shape)
        seen = np.stack([visible(scene, view, exact) for view in views], axis=1)
        for k in np.flatnonzero(seen.sum(axis=1) >= 3):
            chosen = np.sort(rng.permutation(np.flatnonzero(seen[k]))[: rng.integers(3, TRACK + 1)])
            pixels = [project(views[v], exact[k : k + 1])[0][0] + rng.normal(0, PIXEL_NOISE, 2) for v in chosen]
            points.append(noisy[k])
            colors.append(color[k])
            tracks.append(list(zip(chosen.tolist(), pixels, strict=True)))
    return points[:POINTS], colors[:POINTS], tracks[:POINTS]


def project(pose: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [k, 2] and camera z [k]."""
    local = p @ pose[:3, :3].T + pose[:3, 3]
    return local[:, :2] / local[:, 2:] * FOCAL + [WIDTH / 2, HEIGHT / 2], local[:, 2]


def visible(scene: list[Thing], pose: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Whether a camera sees surface positions p [k, 3]: in front, inside the image, nothing in between."""
    (xy, z), centre = project(pose, p), -(pose[:3, :3].T @ pose[:3, 3:])
    ray = p.T - centre
    length = np.sqrt(dot(ray, ray))
    origin = np.broadcast_to(centre, ray.shape).astype(np.float32)
    distance, _ = nearest_hit(scene, origin, (ray / length).astype(np.float32))
    inside = (z > 0.05) & (xy > 1).all(axis=1) & (xy < [WIDTH - 1, HEIGHT - 1]).all(axis=1)
    return inside & (np.abs(distance - length) < 3 * EPS)


def write_model(folder: Path, views: list[np.ndarray], names: list[str], points: tuple) -> None:
    """The COLMAP model, binary, in the y-down world."""
    xyz, colors, tracks = points
    model = pycolmap.Reconstruction()
    parameters = [FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2]
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(camera_id=1, model="PINHOLE", width=WIDTH, height=HEIGHT, params=parameters)
    )
    observations: list[list[tuple[int, np.ndarray]]] = [[] for _ in views]
    for index, track in enumerate(tracks):
        for view, pixel in track:
            observations[view].append((index, pixel))
    for view, pose in enumerate(views):
        turned = pose[:3, :3] @ Z_UP_TO_Y_DOWN.T
        image = pycolmap.Image(name=names[view], camera_id=1, image_id=view + 1)
        image.points2D = pycolmap.Point2DList([pycolmap.Point2D(pixel) for _, pixel in observations[view]])
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pycolmap.Rotation3d(turned), pose[:3, 3]))
    place = [{point: k for k, (point, _) in enumerate(seen)} for seen in observations]
    for index, track in enumerate(tracks):
        elements = [pycolmap.TrackElement(view + 1, place[view][index]) for view, _ in track]
        model.add_point3D(Z_UP_TO_Y_DOWN @ xyz[index], pycolmap.Track(elements), colors[index])
    model.update_point_3d_errors()
    model.write_binary(str(folder))


def main(folder: Path) -> None:
    np.seterr(divide="ignore", invalid="ignore")
    for part in ("images", "sparse"):
        shutil.rmtree(folder / part, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    (folder / "sparse" / "0").mkdir(parents=True)
    views = poses()
    names = [f"view_{index:02d}.jpg" for index in range(len(views))]
    with ProcessPoolExecutor() as workers:
        photos = list(workers.map(photo, views))
    for name, image in zip(names, photos, strict=True):
        Image.fromarray(image).save(folder / "images" / name, quality=QUALITY, subsampling=0, optimize=True)
    write_model(folder / "sparse" / "0", views, names, surface_points(views, photos, np.random.default_rng(SEED)))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "data" / "demo")
