"""The visible set is a superset of what the rasteriser draws, and exactly what testing every row gives."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clm import kernels
from clm.camera import Camera
from clm.plan.visibility import block_bounds, camera_planes, visible_rows, visible_sets
from tests.conftest import scene_path
from tests.plan.slow_visibility import drawn_bound, visible_rows_slow

NEAR, FAR = 0.01, 1e10


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


def random_camera(rng: np.random.Generator, scale: float = 1.0) -> Camera:
    """Wide to narrow lenses, principal points up to one image size outside the image."""
    width, height = int(rng.integers(1, 2000)), int(rng.integers(1, 2000))
    fx, fy = width * 10 ** rng.uniform(-1.5, 1.5), height * 10 ** rng.uniform(-1.5, 1.5)
    spread = rng.choice([0.0, 0.3, 1.0])
    cx, cy = width * (0.5 + spread * rng.uniform(-1, 1)), height * (0.5 + spread * rng.uniform(-1, 1))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = random_rotation(rng), rng.normal(size=3) * scale
    return Camera(width, height, fx, fy, cx, cy, pose)


def random_geometry(rng: np.random.Generator, camera: Camera, count: int, scale: float) -> np.ndarray:
    """Rows in front, behind, grazing the image border and at the near plane; sigmas from 1e-6 to 1e3 of the scene."""
    depth = np.where(rng.random(count) < 0.3, NEAR + rng.normal(size=count) * 1e-3, rng.normal(size=count) * 10 * scale)
    pixel = rng.uniform(-1.0, 2.0, (count, 2)) * [camera.width, camera.height]
    border = rng.choice([0.0, 1.0], (count, 2)) * [camera.width, camera.height] + rng.normal(size=(count, 2))
    pixel = np.where(rng.random((count, 1)) < 0.5, pixel, border)
    local = np.column_stack([(pixel - [camera.cx, camera.cy]) / [camera.fx, camera.fy] * depth[:, None], depth])
    geometry = np.zeros((count, 12), np.float32)
    geometry[:, :3] = (local - camera.world_to_camera[:3, 3]) @ camera.world_to_camera[:3, :3]
    geometry[:, 3:7] = rng.normal(size=(count, 4))
    geometry[:, 7:10] = np.log(scale) + np.log(10) * rng.uniform(-6, 3, (count, 1)) + rng.normal(size=(count, 3)) * 2
    geometry[:, 10] = 20.0
    return geometry


def drawn_rows(geometry: np.ndarray, means: np.ndarray, camera: Camera) -> np.ndarray:
    """The rasteriser's rule in float64: near/far, clamped Jacobian, 0.3 px^2 blur, ceiled radii, image test."""
    q = geometry[:, 3:7].astype(np.float64)
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    ).transpose(2, 0, 1)
    view = camera.world_to_camera[:3, :3]
    half = view @ rotation * np.exp(geometry[:, None, 7:10].astype(np.float64))
    p = means @ view.T + camera.world_to_camera[:3, 3]
    depth = np.where(np.abs(p[:, 2]) < 1e-12, 1e-12, p[:, 2])
    drawn = (p[:, 2] >= NEAR) & (p[:, 2] <= FAR)
    axes = ((camera.width, camera.fx, camera.cx), (camera.height, camera.fy, camera.cy))
    for axis, (size, focal, centre) in enumerate(axes):
        outside = 0.3 * 0.5 * size / focal
        tangent = np.clip(p[:, axis] / depth, -(centre / focal + outside), (size - centre) / focal + outside)
        row = focal / depth[:, None] * (half[:, axis] - tangent[:, None] * half[:, 2])
        radius = np.ceil(3.33 * np.sqrt((row**2).sum(axis=1) + 0.3))
        mean = focal * p[:, axis] / depth + centre
        drawn &= (mean + radius > 0) & (mean - radius < size)
    return np.flatnonzero(drawn)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1.0, 1e3]), st.sampled_from([1, 7, 64, 200]))
@settings(max_examples=150, deadline=None)
def test_visible_set_contains_every_drawn_row(seed: int, scale: float, page_rows: int) -> None:
    rng = np.random.default_rng(seed)
    camera = random_camera(rng, scale)
    geometry = random_geometry(rng, camera, 600, scale)
    entries = drawn_bound(geometry)
    seen = visible_rows(entries, block_bounds(entries, page_rows=page_rows), camera, page_rows=page_rows)
    missed = np.setdiff1d(drawn_rows(geometry, geometry[:, :3].astype(np.float64), camera), seen)
    assert len(missed) == 0
    assert np.all(np.diff(seen) > 0) and seen.dtype == np.int32


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.001, 0.1, 5.0]))
@settings(max_examples=100, deadline=None)
def test_margin_covers_centres_that_move_and_rows_that_grow(seed: int, extra: float) -> None:
    rng = np.random.default_rng(seed)
    camera = random_camera(rng)
    geometry = random_geometry(rng, camera, 600, 1.0)
    entries = drawn_bound(geometry)
    moved = rng.normal(size=(600, 3))
    moved *= 0.999 * extra / np.linalg.norm(moved, axis=1, keepdims=True)
    grown = geometry.copy()
    grown[:, 7:10] += np.log(1.2)
    seen = visible_rows(entries, block_bounds(entries, page_rows=64), camera, (1.2 + 1e-5, extra), page_rows=64)
    drawn = drawn_rows(grown, geometry[:, :3].astype(np.float64) + moved, camera)
    assert len(np.setdiff1d(drawn, seen)) == 0


def test_the_margin_is_needed() -> None:
    """Without it the same moves lose rows: the test above can fail."""
    rng = np.random.default_rng(1)
    camera = Camera(640, 480, 500.0, 500.0, 320.0, 240.0, np.eye(4))
    geometry = random_geometry(rng, camera, 5000, 1.0)
    geometry[:, 7:10] = np.log(1e-4)
    entries = drawn_bound(geometry)
    drawn = drawn_rows(geometry, geometry[:, :3] + rng.normal(size=(5000, 3)) * 0.1, camera)
    assert len(np.setdiff1d(drawn, visible_rows(entries, block_bounds(entries), camera))) > 0


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 3, 64, 100, 2048]),
    st.sampled_from([(1.0, 0.0), (1.5, 0.25), (0.0, 0.0)]),
)
@settings(max_examples=100, deadline=None)
def test_blocks_and_threads_never_change_the_set(seed: int, page_rows: int, margin: tuple[float, float]) -> None:
    rng = np.random.default_rng(seed)
    cameras = [random_camera(rng) for _ in range(3)]
    entries = drawn_bound(random_geometry(rng, cameras[0], 700, 1.0))
    entries = entries[np.argsort(entries[:, 0])].copy()
    bounds = block_bounds(entries, page_rows=page_rows)
    want = [visible_rows_slow(entries, camera, margin) for camera in cameras]
    before = kernels.get_threads()
    try:
        for threads in (1, 2, 5):
            kernels.set_threads(threads)
            for got, rows in zip(
                visible_sets(entries, bounds, cameras, margin, page_rows=page_rows), want, strict=True
            ):
                np.testing.assert_array_equal(got, rows)
    finally:
        kernels.set_threads(before)


def test_the_set_is_tight_for_points() -> None:
    """Rows of size zero: nothing farther than the blur and the rounding pixels from the image is kept."""
    rng = np.random.default_rng(2)
    camera = Camera(640, 480, 500.0, 520.0, 300.0, 250.0, np.eye(4))
    entries = np.zeros((100_000, 4), np.float32)
    entries[:, :3] = rng.uniform(-10, 10, (100_000, 3))
    seen = entries[visible_rows(entries, block_bounds(entries), camera)].astype(np.float64)
    assert len(seen) > 1000 and np.all(seen[:, 2] > 0.0099)
    x = camera.fx * seen[:, 0] / seen[:, 2] + camera.cx
    y = camera.fy * seen[:, 1] / seen[:, 2] + camera.cy
    ok = (x > -4.5) & (x < 644.5) & (y > -4.5) & (y < 484.5)
    assert np.all(ok | (seen[:, 2] < 0.1))  # at the near plane float32 slack is worth more pixels


def test_broken_rows_are_kept_and_spoil_only_their_block() -> None:
    rng = np.random.default_rng(3)
    camera = Camera(64, 48, 50.0, 50.0, 32.0, 24.0, np.eye(4))
    entries = np.zeros((640, 4), np.float32)
    entries[:, :3] = rng.normal(size=(640, 3)) - np.array([0, 0, 50])  # all behind the camera
    entries[100] = np.nan
    entries[200, 3] = np.inf
    bounds = block_bounds(entries, page_rows=64)
    np.testing.assert_array_equal(visible_rows(entries, bounds, camera, page_rows=64), [100, 200])
    assert np.isinf(bounds[[1, 3], 0]).all() and np.isfinite(bounds[[0, 2, 4], :7]).all()


def test_bounds_can_be_refreshed_for_some_blocks() -> None:
    rng = np.random.default_rng(4)
    entries = rng.normal(size=(1000, 4)).astype(np.float32)
    entries[:, 3] = np.abs(entries[:, 3])
    bounds = block_bounds(entries, page_rows=128)
    for b in range(8):
        rows = entries[b * 128 : (b + 1) * 128]
        want = np.concatenate([rows[:, :3].min(axis=0), [rows[:, 3].max()], rows[:, :3].max(axis=0), [0]])
        np.testing.assert_array_equal(bounds[b], want)
    entries *= 2
    old = bounds.copy()
    assert block_bounds(entries, out=bounds, blocks=np.array([1, 7]), page_rows=128) is bounds
    np.testing.assert_array_equal(bounds[[1, 7]], 2 * old[[1, 7]])
    np.testing.assert_array_equal(np.delete(bounds, [1, 7], axis=0), np.delete(old, [1, 7], axis=0))
    with pytest.raises(ValueError, match="blocks must lie"):
        block_bounds(entries, out=bounds, blocks=np.array([8]), page_rows=128)


def test_every_point_that_a_photograph_observes_inside_its_borders_is_in_its_visible_set() -> None:
    model = pycolmap.Reconstruction(scene_path("caliterra") / "sparse" / "0")
    ids = sorted(model.points3D)
    entries = np.zeros((len(ids), 4), np.float32)
    entries[:, :3] = [model.points3D[i].xyz for i in ids]
    bounds = block_bounds(entries)
    for image in list(model.images.values())[::10]:
        source, pose = model.cameras[image.camera_id], np.eye(4)
        pose[:3] = image.cam_from_world().matrix()
        camera = Camera(source.width, source.height, *source.params[:4], pose)
        inside = [8 < p.xy[0] < source.width - 8 and 8 < p.xy[1] < source.height - 8 for p in image.points2D]
        pairs = zip(image.points2D, inside, strict=True)  # 8 px: COLMAP keeps reprojection errors up to 4 px
        observed = np.searchsorted(ids, [p.point3D_id for p, ok in pairs if ok and p.has_point3D()])
        assert len(observed) > 100
        assert len(np.setdiff1d(observed, visible_rows(entries, bounds, camera))) == 0


def test_nothing_in_gives_nothing_out() -> None:
    camera = Camera(64, 48, 50.0, 50.0, 32.0, 24.0, np.eye(4))
    empty = np.empty((0, 4), np.float32)
    assert len(visible_rows(empty, block_bounds(empty), camera)) == 0
    behind = np.array([[0, 0, -5, 0.1]], np.float32)
    assert len(visible_rows(behind, block_bounds(behind), camera)) == 0
    assert visible_sets(behind, block_bounds(behind), []) == []
    assert camera_planes(camera).shape == (32,)
