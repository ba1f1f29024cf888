"""The CPU rasteriser's promises: determinism, placement, culls, extreme inputs, odd sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clm import kernels
from clm.camera import Camera
from scripts.doubles.scenes import all_slots, look_at_origin, random_rows
from tests.render.whole import CpuRasterizer

ROOT = Path(__file__).resolve().parents[2]


def everything(
    geometry: np.ndarray,
    colour: np.ndarray,
    slots: np.ndarray,
    camera: Camera,
    degree: int = 3,
    rasterizer: CpuRasterizer | None = None,
) -> dict[str, np.ndarray]:
    """All outputs of a forward and a backward pass with fixed cotangents."""
    rasterizer = rasterizer or CpuRasterizer(absgrad=True)
    render = rasterizer.forward(geometry, colour, slots, camera, degree, (0.1, 0.2, 0.3), depth=True)
    rng = np.random.default_rng(9)
    v_rgb = rng.normal(size=render.rgb.shape).astype(np.float32)
    v_alpha, v_depth = (rng.normal(size=render.alpha.shape).astype(np.float32) for _ in range(2))
    grads = np.zeros((len(geometry), 16), np.float32), np.zeros((len(geometry), 48), np.float32)
    rasterizer.backward(v_rgb, *grads, v_alpha, v_depth)
    assert render.depth is not None
    return {
        "rgb": render.rgb.copy(),
        "alpha": render.alpha.copy(),
        "depth": render.depth.copy(),
        "grad_geometry": grads[0][slots],
        "grad_colour": grads[1][slots],
        "radii": rasterizer.radii(),
    }


def test_results_are_bitwise_equal_for_any_thread_count() -> None:
    geometry, colour = random_rows(3000, seed=1)
    camera, before = look_at_origin(200, 130, focal=150.0), kernels.get_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            kernels.set_threads(threads)
            results.append(everything(geometry, colour, all_slots(3000), camera))
    finally:
        kernels.set_threads(before)
    for other in results[1:]:
        for name, value in results[0].items():
            assert np.array_equal(value, other[name]), name


def test_results_are_bitwise_equal_wherever_the_rows_lie_in_the_arena() -> None:
    geometry, colour = random_rows(700, seed=2)
    camera = look_at_origin()
    first = everything(geometry, colour, all_slots(700), camera)
    rng = np.random.default_rng(0)
    slots = rng.permutation(1100)[:700].astype(np.int32)
    arena = np.full((1100, 12), np.nan, np.float32), np.full((1100, 48), np.nan, np.float32)
    arena[0][slots], arena[1][slots] = geometry, colour
    second = everything(*arena, slots, camera)
    for name, value in first.items():
        assert np.array_equal(value, second[name]), name


def test_culled_rows_added_to_the_view_change_nothing() -> None:
    geometry, colour = random_rows(500, seed=3)
    camera = look_at_origin()
    full = everything(geometry, colour, all_slots(500), camera)
    drawn = np.flatnonzero(full["radii"][:, 0]).astype(np.int32)
    few = everything(geometry, colour, drawn, camera)
    for name in ("rgb", "alpha", "depth"):
        assert np.array_equal(full[name], few[name]), name
    for name in ("grad_geometry", "grad_colour"):
        assert np.array_equal(full[name][drawn], few[name]), name


def test_gradients_are_added_and_rows_not_drawn_or_not_listed_get_exactly_nothing() -> None:
    geometry, colour = random_rows(400, seed=4)
    camera, slots = look_at_origin(), np.arange(0, 400, 2, dtype=np.int32)
    rasterizer = CpuRasterizer()
    render = rasterizer.forward(geometry, colour, slots, camera, 1, (0, 0, 0))
    v_rgb = np.ones_like(render.rgb)
    once = np.zeros((400, 16), np.float32), np.zeros((400, 48), np.float32)
    rasterizer.backward(v_rgb, *once)
    marked = np.full((400, 16), 7, np.float32), np.full((400, 48), 7, np.float32)
    rasterizer.backward(v_rgb, *marked)
    untouched = np.ones(400, bool)
    untouched[slots[rasterizer.radii()[:, 0] > 0]] = False
    assert 20 < untouched.sum() - 200 < 200
    assert (marked[0][untouched] == 7).all() and (marked[1][untouched] == 7).all()
    assert (once[0][~untouched, 11] == 1).all()
    assert np.allclose(marked[0] - 7, np.where(untouched[:, None], 0, once[0]), rtol=1e-3, atol=1e-4)
    assert (marked[1][:, 12:] == 7).all(), "bands above the degree got gradients"


def test_bands_above_the_sh_degree_are_not_read() -> None:
    geometry, colour = random_rows(200, seed=5)
    poisoned = colour.copy()
    poisoned[:, 12:] = np.nan
    first, second = (everything(geometry, c, all_slots(200), look_at_origin(), degree=1) for c in (colour, poisoned))
    for name, value in first.items():
        assert np.array_equal(value, second[name]), name


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (15, 17), (16, 16), (33, 31)])
def test_any_image_size_is_a_crop_of_a_larger_image(size: tuple[int, int]) -> None:
    geometry, colour = random_rows(300, seed=6)
    wide = look_at_origin(48, 48)
    width, height = size
    crop = Camera(width, height, wide.fx, wide.fy, wide.cx, wide.cy, wide.world_to_camera)
    rasterizer = CpuRasterizer()
    # The Jacobian's clamp depends on the image size: only Gaussians well inside both fields of view are compared.
    camera_space = geometry[:, :3] @ wide.world_to_camera[:3, :3].T + wide.world_to_camera[:3, 3]
    x = wide.fx * camera_space[:, 0] / camera_space[:, 2] + wide.cx
    y = wide.fy * camera_space[:, 1] / camera_space[:, 2] + wide.cy
    inside = (x > -0.1 * width) & (x < 1.1 * width) & (y > -0.1 * height) & (y < 1.1 * height)
    slots = np.flatnonzero(inside).astype(np.int32)
    full = rasterizer.forward(geometry, colour, slots, wide, 0, (0, 0, 0)).rgb.copy()
    part = rasterizer.forward(geometry, colour, slots, crop, 0, (0, 0, 0)).rgb
    assert np.allclose(full[:, :height, :width], part, atol=1e-6)


def test_a_view_without_rows_is_the_background_and_has_no_gradients() -> None:
    geometry, colour = random_rows(3)
    none = np.zeros(0, np.int32)
    out = everything(geometry, colour, none, look_at_origin())
    assert np.array_equal(out["rgb"], np.broadcast_to(np.float32([0.1, 0.2, 0.3])[:, None, None], out["rgb"].shape))
    assert not out["alpha"].any() and not out["depth"].any()


def test_a_hundred_thousand_pairs_in_one_tile_are_drawn() -> None:
    geometry, colour = random_rows(120_000, seed=7, scale=0.05, spread=0.1)
    geometry[:, 10] = -5.0  # opacity 0.0067: no pixel saturates early
    camera = look_at_origin(16, 16, focal=20.0)
    rasterizer = CpuRasterizer()
    out = everything(geometry, colour, all_slots(len(geometry)), camera, 0, rasterizer)
    assert rasterizer.pairs() > 100_000
    assert all(np.isfinite(v).all() for v in out.values())


def test_pairs_at_equal_depth_are_drawn_in_row_order() -> None:
    geometry, colour = np.zeros((2, 12), np.float32), np.zeros((2, 48), np.float32)
    geometry[:, 2], geometry[:, 3], geometry[:, 10] = 3.0, 1.0, 40.0  # one place, opaque
    colour[0, 0], colour[1, 1] = 1.0, 1.0
    camera = Camera(9, 9, 40.0, 40.0, 4.5, 4.5, np.eye(4))
    for swap in (False, True):
        slots = np.array([1, 0] if swap else [0, 1], np.int32)
        rgb = CpuRasterizer().forward(geometry, colour, slots, camera, 0, (0, 0, 0)).rgb
        front = slots[0]
        assert rgb[front, 4, 4] > rgb[1 - front, 4, 4] + 0.2


def test_slots_outside_the_arena_are_refused() -> None:
    geometry, colour = random_rows(4)
    for bad in (-1, 4):
        with pytest.raises(IndexError):
            CpuRasterizer().forward(geometry, colour, np.array([bad], np.int32), look_at_origin(), 0, (0, 0, 0))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    log_scale=st.floats(-60, 90),
    anisotropy=st.floats(0, 30),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 1e3, 1e9, 1e20]),
    logit=st.sampled_from([-np.inf, -200.0, -5.0, 0.0, 5.0, 200.0, np.inf]),
    distance=st.sampled_from([-1.0, 0.0, 0.011, 4.0, 1e6]),
    quat=st.sampled_from([0.0, 1e-30, 1.0, 1e18]),
    size=st.sampled_from([(1, 1), (17, 5), (40, 30)]),
    antialiased=st.booleans(),
)
def test_finite_rows_however_extreme_give_finite_results(
    seed: int,
    log_scale: float,
    anisotropy: float,
    spread: float,
    logit: float,
    distance: float,
    quat: float,
    size: tuple[int, int],
    antialiased: bool,
) -> None:
    rng = np.random.default_rng(seed)
    geometry, colour = random_rows(40, seed)
    geometry[:, 0:3] = rng.normal(0, 1, (40, 3)) * spread
    geometry[:, 3:7] *= quat
    geometry[:, 7:10] = log_scale + rng.normal(0, 1, (40, 3)) * anisotropy
    geometry[:, 10] = logit
    geometry[0] = 0
    camera = look_at_origin(*size, distance=distance)
    out = everything(geometry, colour, all_slots(40), camera, 3, CpuRasterizer(antialiased=antialiased, absgrad=True))
    for name, value in out.items():
        assert np.isfinite(value).all(), name
    assert out["alpha"].min() >= 0 and out["alpha"].max() <= 1


def dump_variant(path: str) -> None:
    """Called in a subprocess with CLM_KERNELS set."""
    geometry, colour = random_rows(500, seed=8)
    np.savez(path, **everything(geometry, colour, all_slots(500), look_at_origin()))


@pytest.mark.parametrize("name", [n for n in kernels.variants() if n != kernels.variants()[0]])
def test_every_build_that_runs_here_agrees_with_the_best_one(name: str, tmp_path: Path) -> None:
    outputs = []
    for variant in (kernels.variants()[0], name):
        path = tmp_path / f"{variant}.npz"
        code = f"from tests.render.test_raster_robust import dump_variant; dump_variant({str(path)!r})"
        environment = {**os.environ, "CLM_KERNELS": variant}
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
        outputs.append(np.load(path))
    for key in outputs[0].files:
        a, b = outputs[0][key], outputs[1][key]
        assert np.mean(np.abs(a - b) > 1e-3 * max(np.abs(a).max(), 1e-6)) < 0.005, key
