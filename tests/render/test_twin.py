"""The twin itself: its gradients by finite differences, its projection and colours against gsplat's own torch code."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.doubles.scenes import look_at_origin, random_rows

torch = pytest.importorskip("torch")
twin = pytest.importorskip("clm.render.twin")


def gsplat_reference():
    """gsplat's torch implementation; importing it compiles nothing. Skips where gsplat is not installed."""
    return pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat is not installed")


@pytest.mark.parametrize("antialiased", [False, True])
def test_twin_gradients_equal_finite_differences(antialiased: bool) -> None:
    camera = look_at_origin(12, 9, focal=12.0)
    geometry, colour = random_rows(5, seed=2, scale=0.5, spread=0.6)
    geometry[:, 10] = 0.5
    rows = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (geometry, colour)]
    weights = torch.randn((3, 9, 12), dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def total(geometry: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
        rgb, alpha, depth = twin.rasterize(geometry, colour, camera, 3, torch.ones(3) * 0.3, antialiased)
        return (rgb * weights).sum() + (alpha * weights[1]).sum() + 0.1 * (depth * weights[2]).sum()

    analytic = torch.autograd.grad(total(*rows), rows)
    step, rng, checked = 1e-6, np.random.default_rng(0), 0
    for tensor, gradient in zip(rows, analytic, strict=True):
        for index in rng.choice(tensor.numel(), 40, replace=False):
            values = []
            for sign in (1, -1):
                moved = tensor.detach().clone()
                moved.view(-1)[index] += sign * step
                pair = [moved if t is tensor else t.detach() for t in rows]
                values.append(total(*pair).item())
            numeric = (values[0] - values[1]) / (2 * step)
            # A pixel may cross the 1/255 threshold within the step; that is a jump, not a slope.
            if abs(values[0] - values[1]) < 1e-3:
                assert numeric == pytest.approx(gradient.view(-1)[index].item(), rel=1e-4, abs=1e-5)
                checked += 1
    assert checked >= 75


def test_twin_image_does_not_depend_on_the_tile_size() -> None:
    camera = look_at_origin()
    rows = [torch.tensor(a, dtype=torch.float64) for a in random_rows(150)]
    p = twin.project(*rows, camera, 3)
    images = [twin.composite(p, camera, torch.zeros(3), tile)[0] for tile in (16, 37, 200)]
    assert torch.allclose(images[0], images[1], atol=1e-12) and torch.allclose(images[0], images[2], atol=1e-12)


@pytest.mark.parametrize("antialiased", [False, True])
def test_projection_equals_gsplat(antialiased: bool) -> None:
    reference = gsplat_reference()
    camera = look_at_origin(off_centre=7.0)
    geometry, colour = (torch.tensor(a) for a in random_rows(400, seed=5))
    covariances, _ = reference._quat_scale_to_covar_preci(geometry[:, 3:7], geometry[:, 7:10].exp(), True, False)
    viewmats = torch.tensor(camera.world_to_camera, dtype=torch.float32)[None]
    radii, means2d, depths, conics, compensations = reference._fully_fused_projection(
        geometry[:, 0:3], covariances, viewmats, torch.tensor(camera.K, dtype=torch.float32)[None],
        camera.width, camera.height, calc_compensations=True,
    )  # fmt: skip
    p = twin.project(geometry, colour, camera, 0, antialiased)
    drawn = (p.radii > 0).all(-1)
    # gsplat's torch code has no opacity cull, so it draws at least what we draw.
    assert drawn.sum() > 100 and (radii[0][drawn] > 0).all()
    assert torch.allclose(p.means2d[drawn], means2d[0][drawn], rtol=1e-4, atol=1e-3)
    assert torch.allclose(p.depths[drawn], depths[0][drawn], rtol=1e-5)
    assert torch.allclose(p.conics[drawn], conics[0][drawn], rtol=1e-3, atol=1e-4)
    factor = compensations[0] if antialiased else 1.0
    assert torch.allclose(p.opacities[drawn], (torch.sigmoid(geometry[:, 10]) * factor)[drawn], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_spherical_harmonics_equal_gsplat(degree: int) -> None:
    reference = gsplat_reference()
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator), dim=-1)
    coefficients = torch.randn(200, 16, 3, generator=generator)
    theirs = reference._spherical_harmonics(degree, directions, coefficients)
    basis = twin.sh_basis(directions, degree)
    ours = (basis[:, :, None] * coefficients[:, : basis.shape[1]]).sum(1)
    assert torch.allclose(ours, theirs, atol=1e-5)
