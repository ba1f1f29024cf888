"""The slow twin of culling, and cull entries of rows whose centres are exact."""

from __future__ import annotations

import numpy as np

from clm.camera import Camera
from clm.kernels.numbers import CULL_SLACK, SIGMAS
from clm.plan.visibility import NO_MARGIN, Margin, camera_planes


def visible_rows_slow(
    entries: np.ndarray,
    camera: Camera,
    margin: Margin | tuple[float, float] = NO_MARGIN,
) -> np.ndarray:
    """Slow twin of `visible_rows`: every row against every plane, the kernel's float32 operations in the same order."""
    growth, extra = np.float32(margin[0]), np.float32(margin[1])
    planes = camera_planes(camera)
    x, y, z, radius = entries.T
    size = np.abs(x) + np.abs(y) + np.abs(z)
    reach = (radius * growth + extra) + np.float32(CULL_SLACK) * (size + planes[24])
    keep = np.ones(len(entries), bool)
    for nx, ny, nz, d in planes[:24].reshape(6, 4):
        keep &= ~((((nx * x + ny * y) + nz * z) + d) + reach < 0)
    return np.flatnonzero(keep).astype(np.int32)


def drawn_bound(geometry: np.ndarray) -> np.ndarray:
    """Cull entries [N, 4] f32 of geometry rows [N, 12] f32 with exact centres: R = 3.33 * exp(largest log_scale)."""
    entries = np.empty((len(geometry), 4), np.float32)
    entries[:, :3] = geometry[:, :3]
    entries[:, 3] = SIGMAS * np.exp(geometry[:, 7:10].max(axis=1))
    return entries
