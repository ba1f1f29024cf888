"""What rendering one view costs beside the arena: bytes of the CUDA backend's temporaries. Pure arithmetic, no torch.

Counted are the tensors that a view's own steps hold (`clm.render.splats`, gsplat 1.5.3 and the loss), from sizes that the
host knows: `view_bytes`. A counter of the device would count what other lanes allocate meanwhile. The estimate in advance
is linear, and learns from views how many tiles their rows cover.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from clm.kernels.rows import colour_columns

PAIRS_PER_ROW = 5  # assumed (16 px tile, row) pairs of a drawn row; large rows have more, which the factor learns
GATHERED_BYTES = 40  # of every row of a piece
SPLAT_BYTES = 48  # of a splat
GRAPH_BYTES = 56  # beside it, of a drawn row of the piece whose graph is held, without its coefficients
GRADIENT_BYTES = 44  # of a splat's gradients
BACKWARD_BYTES = 285  # of a drawn row at the end of backward, all of these included, without two times coefficients
WHERE_BYTES = 32  # of a splat whose piece is not held: its row's number, its gradients' place on the screen
ROW_BYTES = GATHERED_BYTES + BACKWARD_BYTES + 4 * PAIRS_PER_ROW
PIXEL_BYTES = 130
FIXED_BYTES = 32 * 2**20  # sort and scan workspaces, allocator rounding


def view_bytes(
    rows: int, drawn: int, pairs: int, pixels: int, sh_degree: int, piece: tuple[int, int] | None = None
) -> int:
    """Most bytes that the tensors of a training view hold at one time: `rows` rows, `drawn` of them drawn, in `pairs`
    (tile, row) pairs listed at a time; piece: rows and drawn rows of its largest piece (None: there is one). Antialiasing
    and absgrad are counted always.

    Bytes of each row of the piece whose graph is held: means, scales 12, quats 16 = 40. Of a drawn row, with
    c = 3 (degree + 1)^2 columns of 4 bytes:
      splats            48  means2d, radii 8 each, conics, colours 12, opacities, depths 4
      beside them       56  ids of batch, camera and row 8 each, slots 8, directions, colours before the clamp 12
      coefficients      4c  from here on held = 40 rows + (56 + 4c) drawn of the piece, 48 drawn of the view
      joining           48  where there are several pieces
      while sorting     12  counts and their sums, and 24 per pair: keys and ids, twice
      blended            -  4 per pair; per pixel the image 12, alpha and last ids 8, photo 3, the loss 84 at its peak
      backward, pixels  44  gradients of the splats, and 4 per pair; per pixel 48: images and their gradients
      backward, rows   285  the former, gradients of means 12, quats 16, scales 12, directions 12 and
                  + 2 * 4c  coefficients; rows in the arena's layout 64
    Not counted are workspaces of sorts and sums, which `FIXED_BYTES` stands for.
    """
    coefficients = 4 * colour_columns(sh_degree)
    piece_rows, piece_drawn = piece or (rows, drawn)
    gathered, others = GATHERED_BYTES * piece_rows, drawn - piece_drawn
    held = gathered + piece_drawn * (GRAPH_BYTES + coefficients) + SPLAT_BYTES * drawn + 8 * others
    return max(
        held + (SPLAT_BYTES * drawn if others else 0),
        held + 12 * drawn + 24 * pairs,
        held + 4 * pairs + 107 * pixels,
        held + GRADIENT_BYTES * drawn + 4 * pairs + 48 * pixels,
        gathered + piece_drawn * (BACKWARD_BYTES + 2 * coefficients) + others * (GRADIENT_BYTES + WHERE_BYTES),
    )


@dataclass(frozen=True)
class Temporaries:
    """The estimate, times a factor that only grows."""

    factor: float = 1.0

    def temporary_bytes(self, rows: int, pixels: int, sh_degree: int = 3) -> int:
        """Peak bytes of forward + loss + backward of one view of `rows` rows (drawn or not) and `pixels` pixels.

        All rows are taken as drawn, and the largest share of each kind is added up, as if it were one moment: per row
        345 + 8c, of which 20 for tile pairs, per pixel 130 (107 of the loss, and room for a mask and for depth).
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
