"""`clm.image.exposure`'s map and its backward in torch, on whatever device the picture is. Nothing waits for the device.

By channel and not as a matrix product, which the user may have set to TF32.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def expose(rgb: Tensor, matrix: Tensor) -> Tensor:
    """rgb [3, H, W] (any strides) through the map [3, 4]; contiguous."""
    seen = torch.empty(rgb.shape, dtype=rgb.dtype, device=rgb.device)
    for out, row in zip(seen, matrix, strict=True):
        torch.mul(rgb[0], row[0], out=out).add_(row[3])
        out.addcmul_(rgb[1], row[1]).addcmul_(rgb[2], row[2])
    return seen


@torch.no_grad()
def expose_backward(rgb: Tensor, matrix: Tensor, v_seen: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of rgb [3, H, W] and of the map [3, 4], from that of the picture seen."""
    v_matrix = torch.stack([torch.cat([(rgb * v).sum((1, 2)), v.sum()[None]]) for v in v_seen])
    v_rgb = torch.empty(v_seen.shape, dtype=v_seen.dtype, device=v_seen.device)
    for out, column in zip(v_rgb, matrix[:, :3].T, strict=True):
        torch.mul(v_seen[0], column[0], out=out)
        out.addcmul_(v_seen[1], column[1]).addcmul_(v_seen[2], column[2])
    return v_rgb, v_matrix
