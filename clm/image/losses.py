"""Image loss and image metrics on the CPU: L1 + SSIM with its gradient, PSNR and SSIM.

SSIM as in 3DGS: 11x11 Gaussian window, sigma 1.5, zero padding, C1 = 0.01^2, C2 = 0.03^2 (Wang et al. 2004).
Sums have a fixed order: bitwise equal for any thread count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from clm.kernels import loss as kernel


@dataclass(frozen=True)
class Loss:
    total: float  # (1 - w) l1 + w (1 - ssim)
    l1: float  # mean over pixels and channels
    ssim: float  # mean over pixels and channels
    v_rgb: np.ndarray  # [3, H, W] f32, gradient of total

    @property
    def finite(self) -> bool:
        return math.isfinite(self.total)


def l1_ssim(rgb: np.ndarray, target: np.ndarray, ssim_weight: float = 0.2, mask: np.ndarray | None = None) -> Loss:
    """Loss of rgb [3, H, W] f32 (not clamped) against target [H, W, 3] u8.

    `mask` [H, W] u8 or bool multiplies both images with 0 where it is 0; means are still over all pixels.
    """
    return Loss(*kernel.loss(rgb, target, _bytes(mask), ssim_weight))


def metrics(rgb: np.ndarray, target: np.ndarray, mask: np.ndarray | None = None) -> tuple[float, float]:
    """(PSNR in dB, SSIM) of rgb [3, H, W] f32 clamped to [0, 1] against target [H, W, 3] u8.

    With `mask` [H, W] u8 or bool both are means over its nonzero pixels (the others are black in both images while blurring);
    equal images give an infinite PSNR, an empty mask gives nan.
    """
    squared, ssim = kernel.error_sums(rgb, target, _bytes(mask))
    count = 3 * (int(np.count_nonzero(mask)) if mask is not None else target.shape[0] * target.shape[1])
    if count == 0:
        return math.nan, math.nan
    return (math.inf if squared == 0 else -10 * math.log10(squared / count)), ssim / count


def _bytes(mask: np.ndarray | None) -> np.ndarray | None:
    """A bool mask as the bytes it is made of."""
    return mask.view(np.uint8) if mask is not None and mask.dtype == bool else mask
