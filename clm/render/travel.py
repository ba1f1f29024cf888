"""Splats and their gradients as rows of floats, which go from device to device: 48 bytes there, 40 back, 48 with absgrad."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from clm.render.splats import SplatGradients, Splats

SPLAT_FLOATS = 12
_SENT = 10  # of a gradient; with absgrad the screen statistic is two more


def packed_splats(splats: Splats) -> Tensor:
    """[n, 12] f32: means, conics, colours, opacity, depth, and the bits of the radii."""
    radii = splats.radii.to(torch.int32).contiguous().view(torch.float32)
    columns = splats.means2d, splats.conics, splats.colours, splats.opacities[:, None], splats.depths[:, None], radii
    return torch.cat(columns, 1)


def unpacked_splats(rows: Tensor) -> Splats:
    means2d, conics, colours, opacities, depths, radii = (
        part.contiguous() for part in rows.split([2, 3, 3, 1, 1, 2], 1)
    )
    return Splats(means2d, conics, colours, opacities[:, 0], depths[:, 0], radii.view(torch.int32))


def packed_gradients(v: SplatGradients | None, counts: np.ndarray, exist: Tensor, absgrad: bool) -> Tensor:
    """Those of splats in parts of `counts` [ranks], each part followed by a row that begins with `exist` (0-d f32 on the device):
    [n + ranks, 10 or 12]."""
    rows = torch.zeros((int(counts.sum()) + len(counts), _SENT + 2 * absgrad), device=exist.device)
    whole = None
    if v is not None:
        pixels = torch.zeros_like(v.opacities) if v.pixels is None else v.pixels
        columns = [v.means2d, v.conics, v.colours, v.opacities[:, None], pixels[:, None], *[v.screen] * absgrad]
        whole = torch.cat(columns, 1)
    first = 0
    for k, count in enumerate(counts.tolist()):
        if whole is not None:
            rows[first + k : first + k + count] = whole[first : first + count]
        rows[first + k + count, 0] = exist
        first += count
    return rows


def unpacked_gradients(rows: Tensor, absgrad: bool) -> SplatGradients:
    """Of rows [n, 10 or 12], as `packed_gradients` has them without the rows between."""
    means2d, conics, colours, opacities, pixels, *screen = rows.split([2, 3, 3, 1, 1, *[2] * absgrad], 1)
    return SplatGradients(
        means2d.contiguous(), conics.contiguous(), colours.contiguous(), opacities[:, 0].contiguous(), None,
        screen[0] if absgrad else means2d, pixels[:, 0],
    )  # fmt: skip
