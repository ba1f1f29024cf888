"""The estimate of a view's temporaries: linear, learned from measured peaks, and right about what can be counted here."""

from __future__ import annotations

import pytest

from clm.render.temporaries import FIXED_BYTES, PIXEL_BYTES, Temporaries


def test_the_estimate_is_linear_in_rows_and_pixels_and_grows_with_the_sh_degree() -> None:
    bytes_of = Temporaries().temporary_bytes
    nothing = bytes_of(0, 0)
    assert nothing == FIXED_BYTES
    assert bytes_of(2000, 500) - nothing == 2 * (bytes_of(1000, 250) - nothing)
    per_row = [bytes_of(1, 0, degree) - nothing for degree in range(4)]
    assert per_row == [420 + 8 * columns for columns in (3, 12, 27, 48)]
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
    from clm.render import torch_loss
    from tests.device_rules import PeakBytes

    rgb, photo = torch.rand(3, 120, 200), torch.zeros(120, 200, 3, dtype=torch.uint8)
    torch_loss.l1_ssim(rgb, photo)  # makes the window
    with PeakBytes() as counted:
        torch_loss.l1_ssim(rgb, photo)
    assert 80 < counted.peak / (120 * 200) < 85
