"""Camera paths: a smooth flight through cameras, and an ellipse around what they look at. Frames come in the order of the path.

Every function is equivariant: cameras of a scene that is turned, moved or scaled give the path that is turned, moved and scaled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from clm.camera import Camera
from clm.scene.cameras import pose_of

_MOST_ORDERED = 2000  # cameras; more stay as they come
_SWEEPS = 20  # of 2-opt at most
_ALL_ROUND = 0.5  # length of the mean direction from the focus to the cameras, below which they stand all around it


# ---- through cameras ----


def interp_path(cameras: Sequence[Camera], n: int) -> list[Camera]:
    """n cameras on a smooth path from the first camera through all others to the last.

    Centres, rotations and the logarithm of the focal length (over the picture's diagonal) are cubic Hermite splines whose
    velocities at the cameras are Bessel's (of the parabola through three neighbours): place, direction and zoom change
    without a jolt. The time between two cameras is how far apart they are (`separations`), so the pace is about even.
    Size, principal point and aspect are those of the first camera: every frame of a video has one size.
    """
    first = cameras[0]
    gaps = separations(cameras)
    cameras = [
        first,
        *(cameras[k + 1] for k in np.flatnonzero(gaps > 0).tolist()),
    ]  # the same one twice has no time between
    gaps = gaps[gaps > 0]
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    places = np.array([[*camera.position, np.log(_zoom(camera))] for camera in cameras])  # [V, 4]
    axes = np.array([camera.world_to_camera[:3, :3].T for camera in cameras])  # [V, 3, 3] camera to world
    turns = np.array([rotation_vector(a.T @ b) for a, b in pairwise(axes)]).reshape(-1, 3)
    speeds, spins = _velocities(np.diff(places, axis=0), gaps), _velocities(turns, gaps)
    path = []
    for time in np.linspace(0.0, times[-1], n):
        i = int(np.clip(np.searchsorted(times, time, side="right") - 1, 0, max(0, len(gaps) - 1)))
        if not len(gaps):
            place, rotation = places[0], axes[0]
        else:
            s = (time - times[i]) / gaps[i]
            place = _hermite(places[i], places[i + 1], gaps[i] * speeds[i], gaps[i] * speeds[i + 1], s)
            rotation = _hermite_rotation(axes[i], axes[i + 1], gaps[i] * spins[i], gaps[i] * spins[i + 1], s)
        zoom = float(np.exp(place[3])) / _zoom(first)
        path.append(
            dataclasses.replace(
                first, fx=first.fx * zoom, fy=first.fy * zoom, world_to_camera=pose_of(rotation, place[:3])
            )
        )
    return path


def separations(cameras: Sequence[Camera]) -> np.ndarray:
    """How far each camera is from the one before [V - 1] f64: the distance, and the angle times the mean distance from their
    middle (1 where they share one place). 0 for two that are the same up to rounding."""
    centres, axes = _centres_and_axes(cameras)
    return _apart(centres[:-1], axes[:-1], centres[1:], axes[1:], _reach(centres))


def short_order(cameras: Sequence[Camera]) -> list[int] | None:
    """An order of the cameras that begins with the first and jumps little: to the nearest one left, then 2-opt. None where
    theirs is at most twice as long, or where they are too many."""
    if not 4 <= len(cameras) <= _MOST_ORDERED:
        return None
    centres, axes = _centres_and_axes(cameras)
    reach = _reach(centres)
    apart = np.array([_apart(centres, axes, c, a, reach) for c, a in zip(centres, axes, strict=True)])
    order, left = [0], np.ones(len(cameras), bool)
    left[0] = False
    while left.any():
        order.append(int(np.argmin(np.where(left, apart[order[-1]], np.inf))))
        left[order[-1]] = False
    order = _two_opt(np.array(order), apart).tolist()
    given, found = (float(apart[o[:-1], o[1:]].sum()) for o in (np.arange(len(order)), np.array(order)))
    return order if found < 0.5 * given else None


def _two_opt(order: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """Turn pieces of an open path around as long as that makes it shorter; its first node stays."""
    n = len(order)
    for _ in range(_SWEEPS):
        better = False
        for i in range(1, n - 1):
            ends = order[i:]  # turned around: order[i..j], for each j
            after = np.append(order[i + 1 :], -1)
            now = apart[order[i - 1], order[i]] + np.where(after >= 0, apart[ends, after], 0.0)
            then = apart[order[i - 1], ends] + np.where(after >= 0, apart[order[i], after], 0.0)
            j = int(np.argmin(then - now))
            if then[j] - now[j] < -1e-12 * (1 + now[j]):
                order[i : i + j + 1] = order[i : i + j + 1][::-1].copy()
                better = True
        if not better:
            break
    return order


def _centres_and_axes(cameras: Sequence[Camera]) -> tuple[np.ndarray, np.ndarray]:
    centres = np.array([camera.position for camera in cameras])
    return centres, np.array([camera.world_to_camera[:3, :3] for camera in cameras])


def _reach(centres: np.ndarray) -> float:
    """Mean distance of the centres from their middle; 1 where they share one place."""
    mean = float(np.linalg.norm(centres - centres.mean(axis=0), axis=1).mean())
    return mean if mean > 1e-12 * (1 + np.abs(centres).max()) else 1.0


def _apart(
    centres: np.ndarray, axes: np.ndarray, others: np.ndarray, their_axes: np.ndarray, reach: float
) -> np.ndarray:
    """[V] f64: cameras (centres [V, 3], world to camera axes [V, 3, 3]) from others, or from one ([3], [3, 3]); below rounding,
    0."""
    away = np.linalg.norm(centres - others, axis=1)
    angle = np.arccos(np.clip(((axes * their_axes).sum(axis=(1, 2)) - 1) / 2, -1.0, 1.0))
    apart = away + reach * angle
    return np.where(apart > 1e-7 * reach, apart, 0.0)  # arccos near 1 knows half of the digits


def _zoom(camera: Camera) -> float:
    """Focal length over the picture's diagonal."""
    return camera.fy / float(np.hypot(camera.width, camera.height))


def _velocities(steps: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """[V, D] at V places from the steps [V - 1, D] between them and their times [V - 1]: inside, of the parabola through a place
    and its neighbours; at the ends, the mean speed of the one step."""
    if not len(gaps):
        return np.zeros((1, steps.shape[1]))
    speeds = steps / gaps[:, None]
    before, after = gaps[:-1, None], gaps[1:, None]
    inside = (after * speeds[:-1] + before * speeds[1:]) / (before + after)
    return np.concatenate([speeds[:1], inside, speeds[-1:]])


def _hermite(a: np.ndarray, b: np.ndarray, va: np.ndarray, vb: np.ndarray, s: float) -> np.ndarray:
    """Cubic from a to b at s in 0..1, velocities va and vb (per unit of s) at the ends."""
    s2, s3 = s * s, s * s * s
    return (2 * s3 - 3 * s2 + 1) * a + (3 * s2 - 2 * s3) * b + (s3 - 2 * s2 + s) * va + (s3 - s2) * vb


def _hermite_rotation(a: np.ndarray, b: np.ndarray, wa: np.ndarray, wb: np.ndarray, s: float) -> np.ndarray:
    """The same for rotations [3, 3], with angular velocities [3] in the turning frame: a exp(b1 w1) exp(b2 w2) exp(b3 w3) with the
    cumulative cubic Bernstein polynomials (Kim, Kim and Shin 1995). Exact at both ends, whatever the angles."""
    w1, w3 = wa / 3, wb / 3
    w2 = rotation_vector(turned(w1).T @ a.T @ b @ turned(w3).T)
    b1, b2, b3 = 1 - (1 - s) ** 3, 3 * s * s - 2 * s**3, s**3
    return a @ turned(b1 * w1) @ turned(b2 * w2) @ turned(b3 * w3)


def turned(vector: np.ndarray) -> np.ndarray:
    """Rotation [3, 3] about `vector` [3] by its length (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    x, y, z = vector
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sinc(angle / np.pi) * cross + 0.5 * np.sinc(angle / (2 * np.pi)) ** 2 * cross @ cross


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle [3] (0 to pi) of a rotation [3, 3]: the inverse of `turned`."""
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine, cosine = np.linalg.norm(skew) / 2, (np.trace(rotation) - 1) / 2
    angle = float(np.arctan2(sine, cosine))
    if angle < 3.0:
        return skew / (2 * np.sinc(angle / np.pi))
    # Near 180 degrees the antisymmetric part vanishes; the axis is the eigenvector of eigenvalue 1.
    axis = np.linalg.eigh((rotation + rotation.T) / 2)[1][:, -1]
    return angle * (axis if axis @ skew >= 0 else -axis)


# ---- around what they look at ----


def ellipse_path(cameras: Sequence[Camera], n: int) -> list[Camera]:
    """n cameras on an ellipse, evenly paced, all looking at the point the views look at.

    The ellipse lies across the mean up direction of the views, at their mean height; its half axes are the 90th percentiles
    of the camera offsets along their two principal directions there (after the render path of Mip-NeRF 360). It is around
    the point that they look at where they stand on all sides of it, and otherwise around their middle: from behind, nothing
    was ever seen.
    """
    centres, forwards = _centres_and_forwards(cameras)
    up, focus, middle = _mean_up(cameras, forwards), _focus(centres, forwards), centres.mean(axis=0)
    if stand_all_round(cameras):
        middle = focus + ((middle - focus) @ up) * up
    flat = _across(centres - middle, up)
    first_axis = np.linalg.svd(flat, full_matrices=True)[2][0]
    first_axis = _unit(first_axis - (first_axis @ up) * up, _any_perpendicular(up))
    second_axis = np.cross(up, first_axis)
    a, b = (np.quantile(np.abs(flat @ axis), 0.9) for axis in (first_axis, second_axis))
    path = []
    for angle in _even_angles(float(a), float(b), n):
        position = middle + a * np.cos(angle) * first_axis + b * np.sin(angle) * second_axis
        axes = _looking(position, focus, up, forwards.mean(axis=0))
        path.append(dataclasses.replace(cameras[0], world_to_camera=pose_of(axes, position)))
    return path


def stand_all_round(cameras: Sequence[Camera]) -> bool:
    """Whether the cameras stand on all sides of the point that they look at, or look at it from one."""
    centres, forwards = _centres_and_forwards(cameras)
    flat = _across(centres - _focus(centres, forwards), _mean_up(cameras, forwards))
    length = np.linalg.norm(flat, axis=1)
    far = length > 1e-9 * (1 + np.abs(centres).max())
    return bool(far.any()) and float(np.linalg.norm((flat[far] / length[far, None]).mean(axis=0))) < _ALL_ROUND


def _even_angles(a: float, b: float, n: int) -> np.ndarray:
    """n angles [n] f64 of an ellipse's parameter between which its arcs are equally long."""
    fine = np.linspace(0.0, 2 * np.pi, 2049)
    steps = np.hypot(a * np.diff(np.cos(fine)), b * np.diff(np.sin(fine)))
    length = np.concatenate([[0.0], np.cumsum(steps)])
    if length[-1] <= 0:
        return np.linspace(0.0, 2 * np.pi, n, endpoint=False)
    return np.interp(np.linspace(0.0, length[-1], n, endpoint=False), length, fine)


def _centres_and_forwards(cameras: Sequence[Camera]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([c.position for c in cameras]), np.array([c.forward for c in cameras])


def _across(vectors: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Vectors [V, 3] without their parts along `up`."""
    return vectors - np.outer(vectors @ up, up)


def _mean_up(cameras: Sequence[Camera], forwards: np.ndarray) -> np.ndarray:
    """Mean upward direction of the images; where these cancel (a survey flown to and fro), against the view direction."""
    up = -np.mean([camera.world_to_camera[1, :3] for camera in cameras], axis=0)
    return (
        up / np.linalg.norm(up)
        if np.linalg.norm(up) > 0.3
        else _unit(-forwards.mean(axis=0), np.array([0.0, 0.0, 1.0]))
    )


def _focus(centres: np.ndarray, forwards: np.ndarray) -> np.ndarray:
    """The point nearest to all optical axes [3], where it lies before most cameras; else one ahead of their middle.

    Nearly parallel axes (a survey that looks straight down) meet anywhere, behind the cameras as well.
    """
    across = np.eye(3) - forwards[:, :, None] * forwards[:, None, :]  # [V, 3, 3]
    spread = np.linalg.norm(centres - centres.mean(axis=0), axis=1).max() or 1.0
    ahead = centres.mean(axis=0) + spread * forwards.mean(axis=0)
    ridge = 1e-2 * np.eye(3)  # keeps the system regular: axes that are all parallel leave one direction open
    normal = across.mean(axis=0) + ridge
    nearest = np.linalg.solve(normal, (across @ centres[:, :, None]).mean(axis=0)[:, 0] + ridge @ ahead)
    in_front = ((nearest - centres) * forwards).sum(axis=1) > 0
    return nearest if in_front.mean() > 0.75 else ahead


def _looking(position: np.ndarray, target: np.ndarray, up: np.ndarray, default: np.ndarray) -> np.ndarray:
    """Camera axes (columns right, down, forward) [3, 3] at `position`, looking at `target`."""
    forward = _unit(target - position, default)
    right = _unit(np.cross(forward, up), _any_perpendicular(forward))
    return np.stack([right, np.cross(forward, right), forward], axis=1)


def _unit(vector: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector)
    return vector / length if length > 1e-9 else otherwise / np.linalg.norm(otherwise)


def _any_perpendicular(vector: np.ndarray) -> np.ndarray:
    other = np.eye(3)[np.argmin(np.abs(vector))]
    cross = np.cross(vector, other)
    return cross / np.linalg.norm(cross)
