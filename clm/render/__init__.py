"""Rendering: `rasterize` backends with one interface, and the image loss. `twin` (torch) is the slow judge of both."""

from clm.render.cpu import CpuRasterizer, Render
from clm.render.losses import Loss, l1_ssim, metrics

__all__ = ["CpuRasterizer", "Loss", "Render", "l1_ssim", "metrics"]
