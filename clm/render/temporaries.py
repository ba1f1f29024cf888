"""What rendering one view costs beside the arena: bytes of the CUDA backend's temporaries. Pure arithmetic, no torch.

The estimate counts tensors (gsplat 1.5.3, packed); what a driver or allocator adds is learned from measured peaks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from clm.kernels.rows import colour_columns

PAIRS_PER_ROW = 5  # assumed (16 px tile, row) pairs of a drawn row; large rows have more, which the factor learns
ROW_BYTES = 400 + 4 * PAIRS_PER_ROW  # without spherical harmonics
PIXEL_BYTES = 130
FIXED_BYTES = 32 * 2**20  # sort and scan workspaces, allocator rounding


@dataclass(frozen=True)
class Temporaries:
    """The estimate, times a factor that only grows."""

    factor: float = 1.0

    def temporary_bytes(self, rows: int, pixels: int, sh_degree: int = 3) -> int:
        """Peak bytes of forward + loss + backward of one view of `rows` rows (drawn or not) and `pixels` pixels.

        Bytes per row, all of them drawn; c = 3 (degree + 1)^2 colour columns of 4 bytes:
          gathered rows      44 + 4c  means, scales 12 each, quats 16, opacities 4, coefficients
          colours                 36  directions 12, before and after the clamp 24
          projection              80  ids of batch, camera, image and row 8 each; radii, means2d 8 each; depths 4, conics 12,
                                      opacities 4, colours 12 (+ 8 antialiased, + 16 with depth)
          tile lists              4p  p pairs, kept for backward (24p while they are sorted, when nothing of what follows
                                      exists yet: less than it, up to p = 18; or up to 4 pairs per pixel)
          backward          172 + 4c  coefficients 4c; screen space 8 + 12 + 12 + 4 (+ 8 absgrad); packed to rows 16 and its
                                      sort 32; colour 12 + 12; means three times 12, quats 16, scales 12
          gradient rows           68  16 floats, in the arena's layout, screen norm 4; then added without temporaries
        which is 400 + 4p + 8c. Per pixel: image 12, alpha 4, last ids 4 (saved by gsplat), photo 3; then the loss,
        84 at its peak (its result, v_rgb 12, included); later v_rgb again as gsplat wants it 12, v_alpha 4: together
        23 + 84 = 107, and with depth 4 + 16 more: 130.
        """
        return FIXED_BYTES + math.ceil(self.factor * _linear(rows, pixels, sh_degree))

    def learn(self, peak_bytes: int, rows: int, pixels: int, sh_degree: int = 3) -> Temporaries:
        """The estimate after a view of `rows` rows was measured to peak at `peak_bytes` above what was there before it.

        The new factor covers that view; it never falls, because the worst view of a training run comes unannounced.
        """
        linear = _linear(rows, pixels, sh_degree)
        if linear == 0:
            return self
        return Temporaries(max(self.factor, (peak_bytes - FIXED_BYTES) / linear))


def _linear(rows: int, pixels: int, sh_degree: int) -> int:
    return rows * (ROW_BYTES + 8 * colour_columns(sh_degree)) + pixels * PIXEL_BYTES
