"""The CPU kernels against the float64 torch twin: images and gradients, over the options of the rasteriser."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from clm.camera import Camera
from scripts.doubles.scenes import all_slots, look_at_origin, random_rows
from tests.render.whole import CpuRasterizer

torch = pytest.importorskip("torch")
twin = pytest.importorskip("clm.render.twin")

COUNT = 300
BACKGROUND = np.array([0.2, 0.5, 0.8], np.float32)


def outliers(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> float:
    """Fraction of values that differ by more than the tolerance."""
    return float(np.mean(np.abs(ours - theirs) > tolerance))


def check_gradients(
    camera: Camera,
    degree: int,
    antialiased: bool = False,
    absgrad: bool = False,
    seed: int = 0,
    count: int = COUNT,
) -> None:
    geometry, colour = random_rows(count, seed)
    rasterizer = CpuRasterizer(antialiased=antialiased, absgrad=absgrad)
    render = rasterizer.forward(geometry, colour, all_slots(count), camera, degree, BACKGROUND, depth=True)
    rows = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (geometry, colour)]
    p = twin.project(*rows, camera, degree, antialiased)
    p.means2d.retain_grad()
    rgb, alpha, depth = twin.composite(p, camera, torch.tensor(BACKGROUND))
    radii = p.radii.numpy()
    assert render.drawn == np.count_nonzero(radii[:, 0]) > count // 4
    assert np.mean(rasterizer.radii() != radii) < 0.005
    assert render.depth is not None
    assert outliers(render.rgb, rgb.detach().numpy(), 1e-4) < 1e-3
    assert outliers(render.alpha, alpha.detach().numpy(), 1e-4) < 1e-3
    assert outliers(render.depth, depth.detach().numpy(), 1e-3) < 1e-3

    rng = np.random.default_rng(seed + 1)
    v_rgb = rng.normal(size=render.rgb.shape).astype(np.float32)
    v_rgb[:, 3:9] = 0  # the loss does not look there
    v_alpha = rng.normal(size=render.alpha.shape).astype(np.float32)
    v_depth = 0.1 * rng.normal(size=render.alpha.shape).astype(np.float32)
    grad_geometry, grad_colour = np.zeros((count, 16), np.float32), np.zeros((count, 48), np.float32)
    rasterizer.backward(v_rgb, grad_geometry, grad_colour, v_alpha, v_depth)
    total = (rgb * torch.tensor(v_rgb)).sum() + (alpha * torch.tensor(v_alpha)).sum()
    (total + (depth * torch.tensor(v_depth)).sum()).backward()

    expected = rows[0].grad.numpy()
    for columns in (slice(0, 3), slice(3, 7), slice(7, 10), slice(10, 11)):
        error = np.abs(grad_geometry[:, columns] - expected[:, columns])
        assert np.mean(error > 1e-3 * np.abs(expected[:, columns]).max()) < 0.005, columns
    error = np.abs(grad_colour - rows[1].grad.numpy())
    assert np.mean(error > 1e-3 * rows[1].grad.abs().max().item()) < 0.005
    screen = (p.absgrad if absgrad else p.means2d.grad).numpy() * (camera.width / 2, camera.height / 2)
    norm = np.sqrt((screen**2).sum(1))
    assert np.mean(np.abs(grad_geometry[:, 12] - norm) > 1e-3 * norm.max()) < 0.005
    assert np.array_equal(grad_geometry[:, 11], (rasterizer.radii()[:, 0] > 0).astype(np.float32))
    weights = torch.ones_like(p.colours, requires_grad=True)
    bare = {f.name: getattr(p, f.name).detach() for f in dataclasses.fields(p)} | {"colours": weights}
    seen, _, _ = twin.composite(twin.Projection(**bare), camera, torch.zeros(3, dtype=torch.float64))
    (seen[0] * torch.tensor(v_rgb).any(0)).sum().backward()  # linear in the weights: the gradient is sums of alpha T
    pixels = weights.grad[:, 0].numpy()
    assert pixels.max() > 3 and np.mean(np.abs(grad_geometry[:, 13] - pixels) > 1e-3 * pixels.max()) < 0.005
    assert np.array_equal(grad_geometry[:, 14], grad_geometry[:, 13] ** 2) and not grad_geometry[:, 15].any()


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_image_and_gradients_equal_the_twin_at_every_sh_degree(degree: int) -> None:
    check_gradients(look_at_origin(), degree, seed=degree)


def test_image_and_gradients_equal_the_twin_when_antialiased() -> None:
    check_gradients(look_at_origin(), 2, antialiased=True)


def test_absolute_screen_gradients_equal_the_twin() -> None:
    check_gradients(look_at_origin(), 1, absgrad=True)


def test_image_and_gradients_equal_the_twin_with_an_off_centre_principal_point() -> None:
    check_gradients(look_at_origin(off_centre=25.0), 3)


def test_image_and_gradients_equal_the_twin_inside_the_cloud_where_jacobians_are_clamped() -> None:
    check_gradients(look_at_origin(distance=0.5, focal=25.0), 3, seed=3)


def test_image_and_gradients_equal_the_twin_through_many_layers_that_saturate_pixels() -> None:
    check_gradients(look_at_origin(40, 33, distance=8.0), 0, seed=4, count=1500)


def test_where_alpha_is_clamped_only_colour_gets_a_gradient() -> None:
    camera = Camera(9, 9, 40.0, 40.0, 4.5, 4.5, np.eye(4))
    geometry, colour = np.zeros((1, 12), np.float32), np.zeros((1, 48), np.float32)
    geometry[0, :7] = 0.01, 0.0, 3.0, 1.0, 0.2, 0.1, 0.0
    geometry[0, 7:10] = np.log(30.0)  # 400 px: exp(-sigma) is nearly 1 in the whole image
    rasterizer = CpuRasterizer()
    for logit, clamped in ((8.0, True), (3.0, False)):  # opacities 0.9997 and 0.95
        geometry[0, 10] = logit
        rasterizer.forward(geometry, colour, all_slots(1), camera, 0, BACKGROUND)
        grad_geometry, grad_colour = np.zeros((1, 16), np.float32), np.zeros((1, 48), np.float32)
        rasterizer.backward(np.ones((3, 9, 9), np.float32), grad_geometry, grad_colour)
        assert grad_colour[0, :3].all() and grad_geometry[0, 11] == 1
        assert grad_geometry[0, :11].any() != clamped


def test_a_forward_without_depth_gives_the_same_image_and_the_same_gradients() -> None:
    geometry, colour = random_rows(COUNT)
    camera, rasterizer = look_at_origin(), CpuRasterizer()
    results = []
    for depth in (False, True):
        render = rasterizer.forward(geometry, colour, all_slots(COUNT), camera, 3, BACKGROUND, depth=depth)
        rgb = render.rgb.copy()
        gradients = np.zeros((COUNT, 16), np.float32), np.zeros((COUNT, 48), np.float32)
        rasterizer.backward(np.ones_like(rgb), *gradients)
        results.append((rgb, *gradients))
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


def test_depth_gradients_without_a_depth_forward_are_refused() -> None:
    geometry, colour = random_rows(10)
    camera, rasterizer = look_at_origin(), CpuRasterizer()
    render = rasterizer.forward(geometry, colour, all_slots(10), camera, 0, BACKGROUND)
    gradients = np.zeros((10, 16), np.float32), np.zeros((10, 48), np.float32)
    with pytest.raises(ValueError, match="depth=True"):
        rasterizer.backward(np.ones_like(render.rgb), *gradients, v_depth=np.ones_like(render.alpha))
