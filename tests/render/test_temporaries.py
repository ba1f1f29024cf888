"""The estimate of a view's temporaries: linear, learned from measured peaks, and right about what can be counted here."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from clm.render.temporaries import FIXED_BYTES, PIXEL_BYTES, Temporaries, view_bytes


def test_the_estimate_is_linear_in_rows_and_pixels_and_grows_with_the_sh_degree() -> None:
    bytes_of = Temporaries().temporary_bytes
    nothing = bytes_of(0, 0)
    assert nothing == FIXED_BYTES
    assert bytes_of(2000, 500) - nothing == 2 * (bytes_of(1000, 250) - nothing)
    per_row = [bytes_of(1, 0, degree) - nothing for degree in range(4)]
    assert per_row == [345 + 8 * columns for columns in (3, 12, 27, 48)]
    assert bytes_of(0, 1) - nothing == PIXEL_BYTES


def test_a_measured_peak_raises_the_estimate_to_it_and_a_lower_one_changes_nothing() -> None:
    first = Temporaries()
    measured = 3 * first.temporary_bytes(1_000_000, 2_000_000)
    second = first.learn(measured, 1_000_000, 2_000_000)
    assert 0 <= second.temporary_bytes(1_000_000, 2_000_000) - measured < 2
    assert second.learn(measured // 2, 1_000_000, 2_000_000) == second
    assert first.learn(first.temporary_bytes(10, 10) // 2, 10, 10) == first


def test_a_tiny_view_teaches_nothing_about_large_ones() -> None:
    """What allocators round up does not scale with the view."""
    assert Temporaries().learn(FIXED_BYTES, 3, 64) == Temporaries().learn(10**9, 0, 0) == Temporaries()


def test_the_loss_needs_what_the_estimate_counts_for_it_per_pixel() -> None:
    torch = pytest.importorskip("torch")
    from clm.image import torch_losses as torch_loss
    from tests.device_rules import PeakBytes

    rgb, photo = torch.rand(3, 120, 200), torch.zeros(120, 200, 3, dtype=torch.uint8)
    torch_loss.l1_ssim(rgb, photo)  # makes the window
    with PeakBytes() as counted:
        torch_loss.l1_ssim(rgb, photo)
    assert 80 < counted.peak / (120 * 200) < 85


@pytest.mark.parametrize(
    ("rows", "width", "height", "extras"), [(8000, 32, 32, False), (8000, 32, 32, True), (60, 240, 160, False)]
)
def test_what_a_view_is_counted_to_take_is_what_its_tensors_hold(
    monkeypatch: pytest.MonkeyPatch, rows: int, width: int, height: int, extras: bool
) -> None:
    """gsplat's own Python over the stub, every tensor counted that an operation or a kernel returns."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("gsplat", reason="gsplat is not installed")
    from clm.image import torch_losses as torch_loss
    from clm.render import Target, train_view
    from clm.render.gsplat import GsplatRasterizer
    from scripts.doubles import gsplat_stub
    from scripts.doubles.scenes import look_at_origin, random_rows
    from tests.device_rules import PeakBytes

    counted = PeakBytes()
    gsplat_stub.install(monkeypatch, counted.outputs_only)
    geometry, colour = (torch.tensor(values) for values in random_rows(rows, scale=0.01))
    gradients = {"grad_geometry": torch.zeros(rows, 16), "grad_colour": torch.zeros(rows, 48)}
    arena, photo = (
        SimpleNamespace(geometry=geometry, colour=colour, **gradients),
        np.zeros((height, width, 3), np.uint8),
    )
    torch_loss.l1_ssim(torch.rand(3, height, width), torch.tensor(photo))  # makes the window
    rasterizer, camera = GsplatRasterizer(antialiased=extras, absgrad=extras), look_at_origin(width, height)
    slots = torch.arange(rows)
    with counted:
        train_view(rasterizer, arena, slots, camera, 3, Target(photo, None, (0.1, 0.2, 0.3)))
    drawn = int(gradients["grad_geometry"][:, 11].sum())
    assert rasterizer.peak_temporaries == view_bytes(rows, drawn, rasterizer._pairs, width * height, 3)
    assert 0.99 < rasterizer.peak_temporaries / counted.peak < 1.06


def test_only_pairs_and_drawn_rows_change_what_is_counted_of_a_view() -> None:
    """And where pairs are many, the sort of their keys is the peak."""
    assert view_bytes(1000, 500, 2500, 10_000, 3) < view_bytes(1000, 1000, 5000, 10_000, 3)
    few, many = (view_bytes(1000, 1000, pairs, 1000, 3) for pairs in (10**6, 2 * 10**6))
    assert many - few == 24 * 10**6
    estimate = Temporaries().temporary_bytes(1000, 10_000)
    assert estimate > FIXED_BYTES + view_bytes(1000, 1000, 5000, 10_000, 3)
