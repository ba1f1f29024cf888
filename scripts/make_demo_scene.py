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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pycolmap
from PIL import Image
from scene_parts.capture import QUALITY, SAMPLES, Z_UP_TO_Y_DOWN, Lens, model_of, photo, pose_of, project, rays
from scene_parts.solids import EPS, Solid, dot, normal_at
from scene_parts.toys import Paint, beach_ball, checker_ball, die, globe, marble, plain, room, tin, toy_block, wood

SEED = 7
LENS = Lens(320, 240, 275.0)
RINGS = ((22, 1.55, 0.62), (18, 1.35, 1.22))  # (views, distance from the axis, height above the table), metres
TARGET = np.array([0.0, 0.0, 0.10])
SHADOW_RAYS, SKY_RAYS = 10, 8  # per ray; every ray of a pixel takes its own share of the light samples
LAMP, LAMP_RADIUS = np.array([1.0, -0.9, 2.3]), 0.28
POINTS, POINT_NOISE, PIXEL_NOISE, TRACK = 4200, 0.001, 0.3, 6
BAND = 24  # rows of pixels that are shaded at a time: small enough for the caches


@dataclass(frozen=True)
class Thing(Solid):
    """A solid with a surface."""

    paint: Paint
    gloss: float = 0.0


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


def nearest_hit(scene: list[Thing], origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(distance, index of the thing) per ray [3, k]; every ray ends somewhere, in the room at the latest."""
    best, which = np.full(origin.shape[1], np.inf, np.float32), np.zeros(origin.shape[1], np.int64)
    for index, thing in enumerate(scene):
        distance = thing.hit(origin, direction)
        closer = distance < best
        best[closer], which[closer] = distance[closer], index
    return best, which


def blocked(scene: list[Thing], origin: np.ndarray, direction: np.ndarray, reach: np.ndarray | float) -> np.ndarray:
    """Whether a thing other than the room lies nearer than `reach` along each ray [3, k]."""
    shut = np.zeros(origin.shape[1], bool)
    for thing in scene[1:]:
        shut |= thing.hit(origin, direction) < reach
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
            local = thing.to_local(p[:, mine] - thing.at[:, None])
            normal = normal_at(thing.shape, thing.size, local)
            albedo[mine], n[:, mine] = thing.paint(local.T, normal.T), thing.to_world(normal)
    lamp, sky, seen = light(scene, p, n, share)
    color = albedo**1.6 * (lamp[:, None] * np.array([1.0, 0.93, 0.82]) + sky[:, None] * np.array([0.90, 0.97, 1.08]))
    to = LAMP[:, None] - p
    halfway = to / np.sqrt(dot(to, to)) - direction
    halfway /= np.sqrt(dot(halfway, halfway))
    return color + (gloss * seen * np.maximum(dot(halfway, n), 0) ** 60)[:, None]


# ---- cameras, photos, model ----


def poses() -> list[np.ndarray]:
    """Two rings of cameras that look at the table."""
    result = []
    for ring, (count, radius, height) in enumerate(RINGS):
        for k in range(count):
            angle = 2 * np.pi * (k + 0.5 * ring) / count
            r = radius + 0.06 * np.sin(3 * angle + ring)
            centre = np.array([r * np.cos(angle), r * np.sin(angle), height + 0.05 * np.cos(5 * angle)])
            forward = (TARGET - centre) / np.linalg.norm(TARGET - centre)
            right = np.cross(forward, [0, 0, 1])
            result.append(pose_of(centre, right / np.linalg.norm(right), forward))
    return result


def photo_of(pose: np.ndarray) -> np.ndarray:
    np.seterr(divide="ignore", invalid="ignore")  # rays that miss
    return photo(LENS, pose, partial(shade, things()), BAND)


def surface_points(views: list[np.ndarray], photos: list[np.ndarray], rng: np.random.Generator) -> tuple:
    """Points on surfaces (z up) with noise, their colours, and for each the views and pixels that saw it."""
    scene, points, colors, tracks = things(), [], [], []
    while len(points) < POINTS:
        first = int(rng.integers(len(views)))
        x, y = rng.uniform(1, LENS.width - 1, 200), rng.uniform(1, LENS.height - 1, 200)
        origin, direction = rays(LENS, views[first], x, y)
        distance, which = nearest_hit(scene, origin, direction)
        # Rays favour what is near the cameras already; the plain room keeps half of its share.
        keep = (which > 0) | (rng.random(200) < 0.5)
        exact = (origin + direction * distance).T[keep].astype(np.float64)
        color = photos[first][y[keep].astype(int), x[keep].astype(int)]
        noisy = exact + rng.normal(0, POINT_NOISE, exact.shape)
        seen = np.stack([visible(scene, view, exact) for view in views], axis=1)
        for k in np.flatnonzero(seen.sum(axis=1) >= 3):
            chosen = np.sort(rng.permutation(np.flatnonzero(seen[k]))[: rng.integers(3, TRACK + 1)])
            pixels = [project(LENS, views[v], exact[k : k + 1])[0][0] + rng.normal(0, PIXEL_NOISE, 2) for v in chosen]
            points.append(noisy[k])
            colors.append(color[k])
            tracks.append(list(zip(chosen.tolist(), pixels, strict=True)))
    return points[:POINTS], colors[:POINTS], tracks[:POINTS]


def visible(scene: list[Thing], pose: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Whether a camera sees surface positions p [k, 3]: in front, inside the image, nothing in between."""
    (xy, z), centre = project(LENS, pose, p), -(pose[:3, :3].T @ pose[:3, 3:])
    ray = p.T - centre
    length = np.sqrt(dot(ray, ray))
    origin = np.broadcast_to(centre, ray.shape).astype(np.float32)
    distance, _ = nearest_hit(scene, origin, (ray / length).astype(np.float32))
    inside = (z > 0.05) & (xy > 1).all(axis=1) & (xy < [LENS.width - 1, LENS.height - 1]).all(axis=1)
    return inside & (np.abs(distance - length) < 3 * EPS)


def write_model(folder: Path, views: list[np.ndarray], names: list[str], points: tuple) -> None:
    """The COLMAP model, binary, in the y-down world."""
    xyz, colors, tracks = points
    observations: list[list[tuple[int, np.ndarray]]] = [[] for _ in views]
    for index, track in enumerate(tracks):
        for view, pixel in track:
            observations[view].append((index, pixel))
    model = model_of(LENS, views, names, [[pixel for _, pixel in seen] for seen in observations])
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
        photos = list(workers.map(photo_of, views))
    for name, image in zip(names, photos, strict=True):
        Image.fromarray(image).save(folder / "images" / name, quality=QUALITY, subsampling=0, optimize=True)
    write_model(folder / "sparse" / "0", views, names, surface_points(views, photos, np.random.default_rng(SEED)))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "data" / "demo")
