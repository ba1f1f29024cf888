"""The estimate of a view's temporaries: linear, learned from measured peaks, and right about what can be counted here."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from clm.render.cpu import CpuRasterizer
from clm.render.temporaries import FIXED_BYTES, PIXEL_BYTES, Temporaries, view_bytes
from scripts.doubles.scenes import look_at_origin, random_rows


def test_the_estimate_is_linear_in_rows_and_pixels_and_grows_with_the_sh_degree() -> None:
    bytes_of = Temporaries().temporary_bytes
    nothing = bytes_of(0, 0)
    assert nothing == FIXED_BYTES
    assert bytes_of(2000, 500) - nothing == 2 * (bytes_of(1000, 250) - nothing)
    per_row = [bytes_of(1, 0, degree) - nothing for degree in range(4)]
    assert per_row == [349 + 8 * columns for columns in (3, 12, 27, 48)]
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
    ("rows", "width", "height", "extras", "exposed"),
    [
        (8000, 32, 32, False, False),
        (8000, 32, 32, True, False),
        (60, 240, 160, False, False),
        (60, 240, 160, False, True),
    ],
)
def test_what_a_view_is_counted_to_take_is_what_its_tensors_hold(
    monkeypatch: pytest.MonkeyPatch, rows: int, width: int, height: int, extras: bool, exposed: bool
) -> None:
    """gsplat's own Python over the stub, every tensor counted that an operation or a kernel returns."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("gsplat", reason="gsplat is not installed")
    from clm.image import torch_losses as torch_loss
    from clm.image.exposure import ViewExposure
    from clm.render import Target, train_view
    from clm.render.gsplat import GsplatRasterizer
    from scripts.doubles import gsplat_stub
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
    exposure = ViewExposure(np.eye(3, 4, dtype=np.float32)) if exposed else None
    with counted:
        train_view(rasterizer, arena, slots, camera, 3, Target(photo, None, (0.1, 0.2, 0.3), exposure=exposure))
    drawn = int(gradients["grad_geometry"][:, 11].sum())
    assert rasterizer.peak_temporaries == view_bytes(rows, drawn, rasterizer._pairs, width * height, 3, exposed=exposed)
    assert 0.99 < rasterizer.peak_temporaries / counted.peak < 1.06


def test_only_pairs_and_drawn_rows_change_what_is_counted_of_a_view() -> None:
    """And where pairs are many, the sort of their keys is the peak."""
    assert view_bytes(1000, 500, 2500, 10_000, 3) < view_bytes(1000, 1000, 5000, 10_000, 3)
    few, many = (view_bytes(1000, 1000, pairs, 1000, 3) for pairs in (10**6, 2 * 10**6))
    assert many - few == 24 * 10**6
    estimate = Temporaries().temporary_bytes(1000, 10_000)
    assert estimate > FIXED_BYTES + view_bytes(1000, 1000, 5000, 10_000, 3)


@pytest.mark.parametrize(("pieces", "band_bytes"), [(4, None), (1, 0), (4, 0)])
def test_what_pieces_and_bands_are_counted_to_take_is_what_their_tensors_hold(
    monkeypatch: pytest.MonkeyPatch, pieces: int, band_bytes: int | None
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("gsplat", reason="gsplat is not installed")
    from clm.image import torch_losses as torch_loss
    from clm.render import Target, compare_and_differentiate
    from clm.render.gsplat import GsplatRasterizer
    from scripts.doubles import gsplat_stub
    from tests.device_rules import PeakBytes

    rows, counted, camera = 8000, PeakBytes(), look_at_origin(64, 48)
    gsplat_stub.install(monkeypatch, counted.outputs_only)
    geometry, colour = (torch.tensor(values) for values in random_rows(rows, scale=0.01))
    gradients, target = (
        (torch.zeros(rows, 16), torch.zeros(rows, 48)),
        Target(np.zeros((48, 64, 3), np.uint8), None, (0, 0, 0)),
    )
    torch_loss.l1_ssim(torch.rand(3, 48, 64), torch.tensor(target.photo))  # makes the window
    rasterizer = GsplatRasterizer(antialiased=True, absgrad=True, band_bytes=band_bytes)
    cuts = list(torch.arange(rows).chunk(pieces))
    with counted:
        rasterizer.begin(camera, 3)
        for slots in cuts:
            rasterizer.project(geometry, colour, slots)
        compare_and_differentiate(rasterizer, target)
        for number, slots in reversed(list(enumerate(cuts))):
            rasterizer.project_backward(geometry, colour, slots, number * len(cuts[0]), *gradients)
    assert 0.95 < rasterizer.peak_temporaries / counted.peak < 1.12
    estimate = Temporaries().least_bytes if band_bytes == 0 else Temporaries().temporary_bytes
    assert counted.peak < estimate(rows, 64 * 48, piece_rows=len(cuts[0])) - FIXED_BYTES


def test_pieces_and_bands_need_less_and_the_least_is_never_more() -> None:
    estimate = Temporaries()
    whole, pieces = (estimate.temporary_bytes(10**6, 10**6, piece_rows=rows) for rows in (None, 10**5))
    assert pieces < 0.5 * whole
    for rows in (None, 10**5, 10**7):
        assert estimate.least_bytes(10**6, 10**6, piece_rows=rows) <= estimate.temporary_bytes(
            10**6, 10**6, piece_rows=rows
        )


@pytest.mark.parametrize(("rows", "size", "scale"), [(20_000, (320, 240), 0.02), (3000, (640, 480), 0.3)])
def test_the_cpu_backends_workspace_is_what_was_expected_of_a_view_like_it(
    rows: int, size: tuple[int, int], scale: float
) -> None:
    geometry, colour = random_rows(rows, scale=scale, spread=0.6)
    camera, slots, pixels = look_at_origin(*size, focal=size[0]), np.arange(rows, dtype=np.int32), size[0] * size[1]

    def view(band_bytes: int | None) -> CpuRasterizer:
        rasterizer = CpuRasterizer(band_bytes=band_bytes)
        image = rasterizer.forward(geometry, colour, slots, camera, 3, (0, 0, 0))
        rasterizer.rasterize_backward(np.ones_like(image.rgb))
        assert image.drawn > 0.9 * rows
        return rasterizer

    whole, banded = view(None), view(0)
    assert 0.9 < sum(whole.held_bytes()) / whole.workspace_bytes(rows, pixels) < 1.05
    assert banded.bands() == -(-size[1] // 16) and banded.held_bytes()[0] == whole.held_bytes()[0] + 48 * rows
    assert 0.6 < sum(banded.held_bytes()) / banded.least_workspace_bytes(rows, pixels) < 1.1


def test_a_limit_on_lists_is_kept_and_what_was_larger_before_is_given_back() -> None:
    rows = random_rows(5000, scale=0.05)
    camera, slots, rasterizer = look_at_origin(320, 240, focal=300.0), np.arange(5000, dtype=np.int32), CpuRasterizer()

    def lists() -> int:
        rasterizer.rasterize_backward(np.ones_like(rasterizer.forward(*rows, slots, camera, 0, (0, 0, 0)).rgb))
        return rasterizer.held_bytes()[1]

    whole = lists()
    rasterizer.band_bytes = whole // 3
    assert whole // 6 < lists() <= whole // 3 and 3 <= rasterizer.bands() < 10
