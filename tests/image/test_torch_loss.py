"""The loss on the device: against the autograd judge and the CPU kernel; what it promises about bad views."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clm.image import losses
from tests.image.test_losses import images

torch = pytest.importorskip("torch")
torch_loss = pytest.importorskip("clm.image.torch_losses")
device_rules = pytest.importorskip("tests.device_rules")


def some_mask(size: tuple[int, int]) -> np.ndarray:
    return (np.random.default_rng(1).random(size) > 0.3).astype(np.uint8)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [(50, 72), (33, 7), (1, 1), (5, 300)])
def test_loss_and_gradient_equal_autograd_in_float64(size: tuple[int, int], masked: bool) -> None:
    rgb, target = images(*size)
    mask = torch.tensor(some_mask(size)) if masked else None
    leaf = torch.tensor(rgb, dtype=torch.float64, requires_grad=True)
    theirs = torch_loss.loss_terms(leaf, torch.tensor(target), 0.2, mask)
    theirs.total.backward()
    ours = torch_loss.l1_ssim(torch.tensor(rgb), torch.tensor(target), 0.2, mask)
    for name in ("total", "l1", "ssim"):
        assert getattr(ours, name).item() == pytest.approx(getattr(theirs, name).item(), abs=1e-6), name
        assert getattr(ours, name).shape == ()
    assert bool(ours.finite)
    assert (ours.v_rgb - leaf.grad).abs().max() <= 1e-5 * leaf.grad.abs().max()


@pytest.mark.parametrize("masked", [False, True])
def test_loss_gradient_and_metrics_equal_the_cpu_kernel(masked: bool) -> None:
    rgb, target = images(61, 83)
    mask = some_mask((61, 83)).astype(bool) if masked else None
    cpu = losses.l1_ssim(rgb, target, 0.3, mask)
    tensors = torch.tensor(rgb), torch.tensor(target)
    device_mask = None if mask is None else torch.tensor(mask)
    device = torch_loss.l1_ssim(*tensors, 0.3, device_mask)
    assert device.total.item() == pytest.approx(cpu.total, abs=1e-6)
    assert np.abs(device.v_rgb.numpy() - cpu.v_rgb).max() <= 1e-5 * np.abs(cpu.v_rgb).max()
    expected = losses.metrics(rgb, target, mask)
    psnr, ssim = torch_loss.metrics(*tensors, device_mask)
    assert (psnr.item(), ssim.item()) == pytest.approx(expected, abs=1e-4)


def test_an_image_of_any_strides_has_the_same_loss() -> None:
    rgb, target = images(40, 30)
    interleaved = torch.tensor(rgb).permute(1, 2, 0).contiguous().permute(2, 0, 1)  # as the rasteriser hands it over
    first = torch_loss.l1_ssim(torch.tensor(rgb), torch.tensor(target))
    second = torch_loss.l1_ssim(interleaved, torch.tensor(target))
    assert torch.equal(first.total, second.total) and torch.equal(first.v_rgb, second.v_rgb)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_image_that_is_not_finite_has_a_loss_that_says_so_and_no_gradient(value: float) -> None:
    rgb, target = images(24, 24)
    rgb[1, 3, 4] = value
    loss = torch_loss.l1_ssim(torch.tensor(rgb), torch.tensor(target))
    assert not math.isfinite(loss.total.item()) and not bool(loss.finite)
    assert not loss.v_rgb.any()


def test_equal_images_have_infinite_psnr_and_an_empty_mask_has_no_metrics() -> None:
    _, target = images(30, 31)
    rgb = torch.tensor(target).permute(2, 0, 1) / 255
    assert torch_loss.metrics(rgb, torch.tensor(target))[0].item() == math.inf
    psnr, ssim = torch_loss.metrics(rgb, torch.tensor(target), torch.zeros(30, 31, dtype=torch.bool))
    assert math.isnan(psnr.item()) and math.isnan(ssim.item())


def test_the_window_is_made_once_per_device_and_dtype() -> None:
    first, second = (torch_loss._taps(torch.device("cpu"), torch.float32) for _ in range(2))
    assert first is second and first.sum().item() == pytest.approx(1)
    assert torch_loss._taps(torch.device("cpu"), torch.float64).dtype == torch.float64
