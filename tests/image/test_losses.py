"""The fused L1 + SSIM kernel and the metrics, against torch's autograd and against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clm import kernels
from clm.image.losses import l1_ssim, metrics

torch = pytest.importorskip("torch")
torch_loss = pytest.importorskip("clm.image.torch_losses")


def images(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    rgb = target.transpose(2, 0, 1) / 255 + rng.normal(0, 0.2, (3, height, width))
    return np.ascontiguousarray(rgb, np.float32), target


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [(50, 72), (33, 7), (1, 1), (5, 300), (97, 64)])
def test_loss_and_gradient_equal_the_twin(size: tuple[int, int], masked: bool) -> None:
    rgb, target = images(*size)
    mask = (np.random.default_rng(1).random(size) > 0.3).astype(np.uint8) if masked else None
    ours = l1_ssim(rgb, target, 0.2, mask)
    leaf = torch.tensor(rgb, dtype=torch.float64, requires_grad=True)
    theirs = torch_loss.loss_terms(leaf, torch.tensor(target), 0.2, None if mask is None else torch.tensor(mask))
    theirs.total.backward()
    assert ours.total == pytest.approx(theirs.total.item(), abs=1e-6)
    assert ours.l1 == pytest.approx(theirs.l1.item(), abs=1e-6)
    assert ours.ssim == pytest.approx(theirs.ssim.item(), abs=1e-6)
    gradient = leaf.grad.numpy()
    assert np.abs(ours.v_rgb - gradient).max() <= 1e-5 * max(np.abs(gradient).max(), 1e-9)


def test_pixels_that_the_mask_ignores_do_not_matter_and_get_no_gradient() -> None:
    rgb, target = images(40, 50)
    mask = np.ones((40, 50), np.uint8)
    mask[10:30, 5:25] = 0
    other = rgb.copy()
    other[:, mask == 0] = 5.0
    first, second = l1_ssim(rgb, target, mask=mask), l1_ssim(other, target, mask=mask)
    assert first.total == second.total and np.array_equal(first.v_rgb, second.v_rgb)
    assert not first.v_rgb[:, mask == 0].any() and first.v_rgb[:, mask != 0].any()
    assert metrics(rgb, target, mask) == metrics(other, target, mask)


def test_loss_is_bitwise_equal_for_any_thread_count_and_any_earlier_call() -> None:
    rgb, target = images(200, 133)
    before, results = kernels.get_threads(), []
    try:
        for threads in (1, 2, 5):
            kernels.set_threads(threads)
            l1_ssim(*images(61, 30 + 50 * threads))  # leaves its rows in the scratch
            results.append((l1_ssim(rgb, target), metrics(rgb, target)))
    finally:
        kernels.set_threads(before)
    for loss, score in results[1:]:
        assert (loss.total, loss.l1, loss.ssim) == (results[0][0].total, results[0][0].l1, results[0][0].ssim)
        assert np.array_equal(loss.v_rgb, results[0][0].v_rgb) and score == results[0][1]


def test_equal_images_have_no_loss() -> None:
    _, target = images(30, 31)
    rgb = np.ascontiguousarray(target.transpose(2, 0, 1) * np.float32(1 / 255))
    loss = l1_ssim(rgb, target)
    assert loss.l1 == 0 and loss.ssim == pytest.approx(1, abs=1e-6)
    assert metrics(rgb, target)[0] == math.inf


def test_metrics_clamp_the_image_and_follow_the_definition_of_psnr() -> None:
    rgb, target = images(37, 45)
    clamped = rgb.clip(0, 1)
    assert (rgb != clamped).any()
    psnr, ssim = metrics(rgb, target)
    error = np.mean((clamped.astype(np.float64) - target.transpose(2, 0, 1) / 255) ** 2)
    assert psnr == pytest.approx(-10 * math.log10(error), abs=1e-4)
    expected = torch_loss.loss_terms(torch.tensor(clamped, dtype=torch.float64), torch.tensor(target)).ssim.item()
    assert ssim == pytest.approx(expected, abs=1e-6)


def test_metrics_under_a_mask_are_means_over_the_kept_pixels() -> None:
    rgb, target = images(37, 45)
    mask = np.zeros((37, 45), np.uint8)
    mask[:, :20] = 255
    psnr, _ = metrics(rgb, target, mask)
    error = np.mean((rgb.clip(0, 1)[:, :, :20] - target.transpose(2, 0, 1)[:, :, :20] / 255) ** 2)
    assert psnr == pytest.approx(-10 * math.log10(error), abs=1e-4)
    assert all(math.isnan(v) for v in metrics(rgb, target, np.zeros_like(mask)))
