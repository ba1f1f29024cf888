"""Merged rows: as many as asked for, alike from afar, and the same whatever cannot matter."""

from __future__ import annotations

import numpy as np
import pytest

from clm.formats.decimate import areas, covariances, decimated, quaternions, rotations
from clm.formats.lod_tree import extents
from tests.formats.made import made_rows


def test_rotations_become_quaternions_and_back() -> None:
    rng = np.random.default_rng(0)
    quats = np.concatenate([rng.normal(size=(500, 4)), np.eye(4), -np.eye(4), [[1, 1e-9, 0, 0], [0, 0, 1, 1]]])
    matrices = rotations(quats)
    np.testing.assert_allclose(
        matrices @ matrices.transpose(0, 2, 1), np.broadcast_to(np.eye(3), matrices.shape), atol=1e-12
    )
    found = quaternions(matrices)
    unit = quats / np.linalg.norm(quats, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs((found * unit).sum(axis=1)), 1, atol=1e-12)


@pytest.mark.parametrize("target", [1, 7, 250, 999, 1000, 5000])
def test_as_many_rows_are_left_as_were_asked_for_and_all_can_be_used(target: int) -> None:
    rows = made_rows(1000)
    geometry, colour = decimated(*rows, target)
    assert len(geometry) == len(colour) == min(target, 1000)
    assert np.isfinite(geometry).all() and np.isfinite(colour).all()
    np.testing.assert_allclose(np.linalg.norm(geometry[:, 3:7], axis=1) > 0, True)
    again, colours = decimated(*rows, target)
    np.testing.assert_array_equal(geometry, again)
    np.testing.assert_array_equal(colour, colours)


def ink(geometry: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, geometry[:, 10].astype(np.float64)) * areas(covariances(geometry))


def test_a_pair_becomes_the_row_with_its_moments_somewhat_grown() -> None:
    geometry, colour = made_rows(2)
    geometry[:, 7:10], geometry[:, 10] = np.log(0.3), [0.5, -1.0]
    merged, mixed = decimated(geometry, colour, 1)
    share = ink(geometry) / ink(geometry).sum()
    mean = share @ geometry[:, :3]
    np.testing.assert_allclose(merged[0, :3], mean, rtol=1e-5)
    np.testing.assert_allclose(mixed[0], share @ colour, rtol=1e-4, atol=1e-6)
    apart = geometry[:, :3] - mean
    covariance = 0.09 * np.eye(3) + (share[:, None, None] * apart[:, :, None] * apart[:, None, :]).sum(axis=0)
    wanted = covariance[[0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]] * 2 ** (1 / 6)
    np.testing.assert_allclose(covariances(merged)[0], wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ink(merged), ink(geometry).sum() * 2 ** (1 / 6), rtol=1e-4)


def test_what_can_be_seen_stays_and_what_cannot_is_absorbed() -> None:
    geometry, colour = made_rows(400)
    geometry[:, 7:10] = -3.0
    geometry[:, 10] = -12.0
    geometry[::4, 10] = 3.0
    seen = geometry[::4]
    merged, _ = decimated(geometry, colour, 100)
    distance = np.linalg.norm(merged[:, None, :3] - seen[None, :, :3], axis=2).min(axis=0)
    assert (distance < 0.02).mean() > 0.9  # nearly every visible row is where it was


@pytest.mark.parametrize("kind", ["alike", "one place", "huge", "transparent", "far"])
def test_odd_rows_are_merged_in_time(kind: str) -> None:
    geometry, colour = made_rows(5000)
    if kind == "alike":
        geometry[:], colour[:] = geometry[0], colour[0]
    elif kind == "one place":
        geometry[:, :3] = 1.0
    elif kind == "huge":
        geometry[::2, 7:10], geometry[1::2, 7:10] = 60.0, -60.0
    elif kind == "transparent":
        geometry[:, 10] = -100.0
    else:
        geometry[::3, :3] *= 1e25
    merged, colours = decimated(geometry, colour, 1250)
    assert len(merged) == 1250 and np.isfinite(merged).all() and np.isfinite(colours).all()


def test_extents_hold_every_row_as_far_as_it_is_drawn() -> None:
    geometry, _ = made_rows(50)
    low, high = extents(geometry)
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(500, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    axes = rotations(geometry[:, 3:7]) * np.exp(geometry[:, None, 7:10])
    points = geometry[:, None, :3] + 3.33 * np.einsum("nij,kj->nki", axes, directions)
    assert (points >= low - 1e-4).all() and (points <= high + 1e-4).all()
    assert (points.min(axis=(0, 1)) < low + 0.3).all()
