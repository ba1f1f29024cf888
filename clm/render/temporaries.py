"""What rendering one view costs beside the arena: bytes of the CUDA backend's temporaries, and of the CPU backend's workspace.
Pure arithmetic, no torch.

Counted are the tensors that a view's own steps hold (`clm.render.splats`, `clm.render.pixels`, gsplat 1.5.3 and the loss), from
sizes that the host knows: `view_bytes`. A counter of the device would count what other lanes allocate meanwhile. The estimates in
advance are linear, and learn from views how many tiles their rows cover. Each is given twice: with tile lists for the whole
image, and with lists for one tile row at a time (`least`), which is what a view can do with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from clm.kernels.numbers import TILE
from clm.kernels.rows import colour_columns

PAIRS_PER_ROW = 5  # assumed (16 px tile, row) pairs of a drawn row; large rows have more, which the factor learns
GATHERED_BYTES = 40  # of every row of a piece
SPLAT_BYTES = 48  # of a splat
GRAPH_BYTES = 56  # beside it, of a drawn row of the piece whose graph is held, without its coefficients
CHANNEL_BYTES = 16  # of a splat's colours as they are blended
GRADIENT_BYTES = 48  # of a splat's gradients
BACKWARD_BYTES = 289  # of a drawn row at the end of backward, all of these included, without two times coefficients
WHERE_BYTES = 32  # of a splat whose piece is not held: its row's number, its gradients' place on the screen
OTHER_ROW_BYTES = (
    SPLAT_BYTES + 8 + CHANNEL_BYTES + 12 + 24 * PAIRS_PER_ROW
)  # of a row of a piece whose graph is not held, while pairs are sorted
OTHER_ROW_LEAST = (
    SPLAT_BYTES + 8 + CHANNEL_BYTES + GRADIENT_BYTES + 8
)  # the same without pairs: at the end of the pixels' backward
ROW_BYTES = GATHERED_BYTES + BACKWARD_BYTES + 4 * PAIRS_PER_ROW
PIXEL_BYTES = 134
EXPOSED_BYTES = 12  # of a pixel through an exposure
FIXED_BYTES = 32 * 2**20  # sort and scan workspaces, allocator rounding
HOST_ROW_BYTES, HOST_SUM_BYTES, HOST_PAIR_BYTES = 108, 48, 64
HOST_PIXEL_BYTES = (5120 + 128 + 8) / TILE**2
LEARNT_ROWS = 1000  # a view of fewer says nothing about large ones


def view_bytes(
    rows: int,
    drawn: int,
    pairs: int,
    pixels: int,
    sh_degree: int,
    piece: tuple[int, int] | None = None,
    in_bands: bool = False,
    exposed: bool = False,
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
      channels          16  until the pixels' backward is done: colours, and one that counts pixels
      while sorting     12  counts and their sums, and 24 per pair: keys and ids, twice
      blended            -  4 per pair; per pixel the image 16, alpha and last ids 8, photo 3, the loss 84 at its peak
      backward, pixels  48  gradients of the splats (in bands twice), and 4 per pair; per pixel 60: images and their gradients
      backward, rows   289  the former, gradients of means 12, quats 16, scales 12, directions 12 and
                  + 2 * 4c  coefficients; rows in the arena's layout 64
    Not counted are workspaces of sorts and sums, which `FIXED_BYTES` stands for.
    """
    coefficients = 4 * colour_columns(sh_degree)
    piece_rows, piece_drawn = piece or (rows, drawn)
    seen = EXPOSED_BYTES if exposed else 0
    gathered, others = GATHERED_BYTES * piece_rows, drawn - piece_drawn
    held = gathered + piece_drawn * (GRAPH_BYTES + coefficients) + SPLAT_BYTES * drawn + 8 * others
    if others:  # the piece's own splats beside those of the joined ones
        held += SPLAT_BYTES * piece_drawn
    return max(
        held + (SPLAT_BYTES * others if others else 0),
        held + (CHANNEL_BYTES + 12) * drawn + 24 * pairs,
        held + CHANNEL_BYTES * drawn + 4 * pairs + (111 + seen) * pixels,
        held + (CHANNEL_BYTES + GRADIENT_BYTES * (2 if in_bands else 1)) * drawn + 4 * pairs + (60 + seen) * pixels,
        gathered + piece_drawn * (BACKWARD_BYTES + 2 * coefficients) + others * (GRADIENT_BYTES + WHERE_BYTES),
    )


@dataclass(frozen=True)
class Temporaries:
    """The estimate of the CUDA backend, times a factor that only grows."""

    factor: float = 1.0

    def temporary_bytes(self, rows: int, pixels: int, sh_degree: int = 3, piece_rows: int | None = None) -> int:
        """Peak bytes of forward + loss + backward of one view of `rows` rows (drawn or not) and `pixels` pixels, in pieces of
        at most `piece_rows` rows (None: in one).

        All rows are taken as drawn, and the largest share of each kind is added up, as if it were one moment: per row
        349 + 8c, of which 20 for tile pairs, or 204 while another piece's graph is held; per pixel 134 (111 of the loss, and
        room for a mask, for an exposure or for depth).
        """
        return FIXED_BYTES + math.ceil(self.factor * _linear(rows, pixels, sh_degree, piece_rows, OTHER_ROW_BYTES))

    def least_bytes(self, rows: int, pixels: int, sh_degree: int = 3, piece_rows: int | None = None) -> int:
        """The same with tile lists for one tile row at a time, which are not counted. Gradients of a band are added to those
        of the bands before it, so both are held."""
        tight = rows * GRADIENT_BYTES + _linear(rows, pixels, sh_degree, piece_rows, OTHER_ROW_LEAST)
        whole = self.factor * _linear(rows, pixels, sh_degree, piece_rows, OTHER_ROW_BYTES)
        return FIXED_BYTES + math.ceil(min(tight - 4 * PAIRS_PER_ROW * min(rows, piece_rows or rows), whole))

    def learn(self, peak_bytes: int, rows: int, pixels: int, sh_degree: int = 3) -> Temporaries:
        """The estimate after a view of `rows` rows was measured to peak at `peak_bytes` above what was there before it.

        The new factor covers that view; it never falls, because the worst view of a training run comes unannounced.
        """
        linear = _linear(rows, pixels, sh_degree)
        if linear == 0:
            return self
        return Temporaries(max(self.factor, (peak_bytes - FIXED_BYTES) / linear))


def _linear(
    rows: int, pixels: int, sh_degree: int, piece_rows: int | None = None, other_bytes: int = OTHER_ROW_BYTES
) -> int:
    held = rows if piece_rows is None else min(rows, piece_rows)
    return held * (ROW_BYTES + 8 * colour_columns(sh_degree)) + (rows - held) * other_bytes + pixels * PIXEL_BYTES


@dataclass(frozen=True)
class HostWorkspace:
    """The estimate of the CPU backend's workspace (`kernels/src/raster.h`), which is host memory, images not included.

    Bytes of each row: record 64, radii 8, tile rows 4, places of spans and moments 8 each; of a drawn one, here all of them, two
    halves of a sort 16; in bands the sums of moments 48. Of a pair: list 8, coverage 4, moments 48, and 8 of a tile row's
    span, which several pairs share. Of a tile: the blending state 5120, cursors 128, where its list begins 8.
    """

    pairs_per_row: float | None = None  # of the view that had most; None: none was seen, PAIRS_PER_ROW is assumed

    def bytes(self, rows: int, pixels: int) -> int:
        """Of a view of so many rows and pixels, tile lists for the whole image."""
        return math.ceil(rows * HOST_ROW_BYTES + self._pair_bytes(rows) + pixels * HOST_PIXEL_BYTES)

    def least_bytes(self, rows: int, pixels: int) -> int:
        """Of the same view with lists for one tile row at a time, the fullest taken as twice the mean of a square image."""
        tile_rows = max(1, math.isqrt(pixels) // TILE)
        lists = self._pair_bytes(rows) * min(1.0, 2 / tile_rows) + pixels * HOST_PIXEL_BYTES / tile_rows
        return math.ceil(min(rows * (HOST_ROW_BYTES + HOST_SUM_BYTES) + lists, self.bytes(rows, pixels)))

    def learn(self, rows: int, pairs: int) -> HostWorkspace:
        """The estimate after a view that listed so many pairs; it never falls."""
        return HostWorkspace(max(self.pairs_per_row or 0.0, pairs / rows)) if rows >= LEARNT_ROWS else self

    def _pair_bytes(self, rows: int) -> float:
        per_row: float = PAIRS_PER_ROW if self.pairs_per_row is None else self.pairs_per_row
        return rows * HOST_PAIR_BYTES * per_row
