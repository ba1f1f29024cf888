"""What ranks send each other for a batch, byte by byte: splats to who rasterises a view, their gradients back. Pure.

What else the ranks tell each other in a batch (counts of shared rows for the order of views, losses, whether somebody was asked
to stop) follows the number of views, not of rows, and is not counted here.
"""

from __future__ import annotations

import numpy as np

from clm.kernels.raster import SPLAT_FLOATS, gradient_floats

_COUNT_BYTES = 8  # that every rank tells every other one before splats come: how many
PIXEL_BYTES = (
    32  # of a pixel there (colour, transmittance) and back (their gradients), if images of rows were exchanged
)


def splat_bytes(absgrad: bool = False) -> tuple[int, int]:
    """Of one drawn row on its way to who rasterises it, and of its gradient back."""
    return 4 * SPLAT_FLOATS, 4 * gradient_floats(absgrad)


def exchanges(drawn: np.ndarray, absgrad: bool = False) -> list[tuple[np.ndarray, np.ndarray]]:
    """Bytes from each rank to each other one [world, world] f64, for the splats and for the gradients of each group of views.

    drawn [views, world]: rows of each rank that each view draws, views in the order of the batch; they may be scaled."""
    world = drawn.shape[1]
    splat, gradient = splat_bytes(absgrad)
    found = []
    for first in range(0, len(drawn), world):
        group = np.zeros((world, world))  # [who rasterises, whose rows]
        group[: len(drawn) - first] = drawn[first : first + world]
        members = (np.arange(world) < len(drawn) - first)[:, None]
        there = splat * group.T + _COUNT_BYTES
        back = gradient * (group + members)  # one more row says whether there are any
        for links in (there, back):
            np.fill_diagonal(links, 0.0)
        found.append((there, back))
    return found


def link_bytes(drawn: np.ndarray, absgrad: bool = False) -> np.ndarray:
    """Bytes from each rank to each other one [world, world] i64 in a batch; drawn as above, unscaled."""
    world = drawn.shape[1]
    total = sum((there + back for there, back in exchanges(drawn, absgrad)), np.zeros((world, world)))
    return np.round(total).astype(np.int64)


def pixel_bytes(drawn: np.ndarray, pixels: np.ndarray) -> float:
    """Bytes of all links in a batch if every rank rasterised its own rows of each view and sent the image, instead of splats: the
    images of ranks would be put one behind the other, which is exact only where no rank has rows before and behind another's.

    pixels [views]: of each; drawn as above."""
    views, world = drawn.shape
    rasterises = np.arange(views) % world
    with_rows = (drawn > 0).sum(axis=1) - (drawn[np.arange(views), rasterises] > 0)
    return float((PIXEL_BYTES * pixels * with_rows).sum())
