"""The image loss and the image metrics in torch, on whatever device the image is: L1 + SSIM, its gradient, PSNR.

`loss_terms` stays in the autograd graph and is the judge (any dtype); `l1_ssim` is the one that trains: the gradient written
out, one channel at a time, nothing waits for the device. SSIM as in 3DGS: 11x11 Gaussian window, sigma 1.5, zero padding,
C1 = 0.01^2, C2 = 0.03^2 (Wang et al. 2004). The CPU's own kernel is `clm/kernels/src/loss.cpp`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

_TAPS, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


class LossTerms(NamedTuple):
    """0-d tensors in the autograd graph."""

    total: Tensor  # (1 - w) l1 + w (1 - ssim)
    l1: Tensor  # mean over pixels and channels
    ssim: Tensor  # mean over pixels and channels


@dataclass(frozen=True)
class DeviceLoss:
    """As `clm.image.losses.Loss`, but every value is still on the device: reading one waits for the render."""

    total: Tensor  # 0-d f32
    l1: Tensor  # 0-d f32
    ssim: Tensor  # 0-d f32
    v_rgb: Tensor  # [3, H, W] f32, gradient of total; zeros if it is not finite
    finite: Tensor  # 0-d bool; `GsplatRasterizer.backward` takes it, so that a bad view adds nothing at all


@lru_cache(maxsize=8)
def _taps(device: torch.device, dtype: torch.dtype) -> Tensor:
    """The normalised 1-D window [11], made on the device itself, once."""
    offsets = torch.arange(_TAPS, dtype=torch.float64, device=device) - _TAPS // 2
    taps = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    return (taps / taps.sum()).to(dtype)


def _blur(maps: Tensor) -> Tensor:
    """Each of the maps [C, H, W], C > 1, under the window: two depthwise passes.

    Depthwise with more than one channel is torch's own direct kernel on CUDA: no workspace, and never TF32, in which the
    variances would be differences of rounded squares.
    """
    channels, half = len(maps), _TAPS // 2
    taps = _taps(maps.device, maps.dtype).expand(channels, 1, 1, _TAPS)
    rows = torch.nn.functional.conv2d(maps[None], taps, padding=(0, half), groups=channels)
    return torch.nn.functional.conv2d(rows, taps.transpose(2, 3), padding=(half, 0), groups=channels)[0]


def ssim_map(first: Tensor, second: Tensor) -> Tensor:
    """SSIM at every pixel of two images [C, H, W] -> [C, H, W]; differentiable."""
    count = len(first)
    maps = torch.cat([first, second, first * first, second * second, first * second])
    mu1, mu2, square1, square2, product = _blur(maps).split(count)
    variances = square1 - mu1 * mu1 + square2 - mu2 * mu2
    covariance = product - mu1 * mu2
    return (2 * mu1 * mu2 + _C1) * (2 * covariance + _C2) / ((mu1 * mu1 + mu2 * mu2 + _C1) * (variances + _C2))


def loss_terms(rgb: Tensor, target: Tensor, ssim_weight: float = 0.2, mask: Tensor | None = None) -> LossTerms:
    """(1-w) L1 + w (1-SSIM) of rgb [3, H, W] and target [H, W, 3] u8, differentiable in rgb.

    `mask` [H, W] multiplies both images with 0 where it is 0; means are still over all pixels.
    """
    photo = target.to(rgb.dtype).permute(2, 0, 1) / 255
    if mask is not None:
        keep = (mask != 0).to(rgb.dtype)
        rgb, photo = rgb * keep, photo * keep
    l1, ssim = (rgb - photo).abs().mean(), ssim_map(rgb, photo).mean()
    return LossTerms((1 - ssim_weight) * l1 + ssim_weight * (1 - ssim), l1, ssim)


@torch.no_grad()
def l1_ssim(rgb: Tensor, target: Tensor, ssim_weight: float = 0.2, mask: Tensor | None = None) -> DeviceLoss:
    """Loss of rgb [3, H, W] f32 (any strides, not clamped) against target [H, W, 3] u8, with its gradient.

    `mask` [H, W] u8 or bool as in `loss_terms`. All on one device; returns before the device has computed it. If the total
    is not finite, `finite` is false and v_rgb is all zeros.
    """
    keep = None if mask is None else (mask != 0).to(rgb.dtype)
    v_rgb = torch.empty(rgb.shape, dtype=rgb.dtype, device=rgb.device)
    scale = 1.0 / rgb.numel()
    sums = []
    for channel in range(len(rgb)):
        image, photo = rgb[channel], target[..., channel].to(rgb.dtype).div_(255)
        if keep is not None:
            # A pixel that is not finite stays so only where it counts.
            image, photo = torch.where(keep != 0, image, 0.0), photo.mul_(keep)
        sums.append(_channel_loss(image, photo, (1 - ssim_weight) * scale, ssim_weight * scale, v_rgb[channel]))
        if keep is not None:
            v_rgb[channel].mul_(keep)
    l1, ssim = (torch.stack(part).sum() * scale for part in zip(*sums, strict=True))
    total = (1 - ssim_weight) * l1 + ssim_weight * (1 - ssim)
    finite = torch.isfinite(total)
    v_rgb.masked_fill_(~finite, 0.0)
    return DeviceLoss(total, l1, ssim, v_rgb, finite)


def _channel_loss(x: Tensor, y: Tensor, l1_weight: float, ssim_weight: float, out: Tensor) -> tuple[Tensor, Tensor]:
    """(sum |x - y|, sum SSIM) of one channel [H, W]; out [H, W] = l1_weight d(first)/dx - ssim_weight d(second)/dx.

    With A1 = 2 mu1 mu2 + C1, A2 = 2 cov + C2, B1 = mu1^2 + mu2^2 + C1, B2 = var1 + var2 + C2 the SSIM is A1 A2 / (B1 B2), a
    function of mu1 = blur x, blur x^2 and blur xy; the window is symmetric, so the adjoint of blur is blur.
    """
    mu1, mu2, square1, square2, product = _blur(torch.stack([x, y, x * x, y * y, x * y]))
    mu12 = mu1 * mu2
    a1, a2 = 2 * mu12 + _C1, 2 * (product - mu12) + _C2
    b1 = mu1 * mu1 + mu2 * mu2 + _C1
    b2 = square1 + square2 - (b1 - _C1) + _C2
    inverse = 1 / (b1 * b2)
    ssim = a1 * a2 * inverse
    by_mean = 2 * (mu2 * (a2 - a1) * inverse - mu1 * ssim * (1 / b1 - 1 / b2))
    del mu1, mu2, square1, square2, product, mu12, a2, b1
    by_mean, by_square, by_product = _blur(torch.stack([by_mean, ssim / b2, a1 * inverse]))
    # by_square is -d/d(blur x^2), by_product half of d/d(blur xy).
    torch.add(by_mean, 2 * (y * by_product - x * by_square), out=out)
    difference = x - y
    out.mul_(-ssim_weight).add_(torch.sign(difference), alpha=l1_weight)
    return difference.abs().sum(), ssim.sum()


@torch.no_grad()
def metrics(rgb: Tensor, target: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(PSNR in dB, SSIM), 0-d on the device, of rgb [3, H, W] f32 clamped to [0, 1] against target [H, W, 3] u8.

    With `mask` [H, W] u8 or bool both are means over its nonzero pixels (the others are black in both images while blurring);
    equal images give an infinite PSNR, an empty mask gives nan.
    """
    image, photo = rgb.clamp(0, 1), target.to(rgb.dtype).permute(2, 0, 1) / 255
    keep = torch.ones_like(image[0]) if mask is None else (mask != 0).to(rgb.dtype)
    image, photo = image * keep, photo * keep
    count = 3 * keep.sum(dtype=torch.float64)
    squared = (image - photo).square().sum(dtype=torch.float64)
    ssim = (ssim_map(image, photo) * keep).sum(dtype=torch.float64)
    return -10 * torch.log10(squared / count), ssim / count
