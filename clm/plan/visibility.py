"""Which rows a view may touch: a superset of what the rasteriser draws, found in two levels (blocks, then rows).

Each row has a cull entry (centre xyz, bounding radius R >= 3.33 * largest sigma + uncertainty of the centre). Blocks of
`page_rows` consecutive rows carry the box of their centres and their largest R. Invariants: the set contains every
row the rasteriser draws (docs of `camera_planes`), is sorted, and equals testing every row, whatever the blocks are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from clm.camera import Camera
from clm.kernels import cull
from clm.kernels.numbers import BLUR, SIGMAS
from clm.store.layout import PAGE_ROWS


class Margin(NamedTuple):
    """Every R becomes R * growth + extra: what rows may still move and grow before the set is used. Both >= 0."""

    growth: float = 1.0
    extra: float = 0.0  # scene units


NO_MARGIN = Margin()


@lru_cache(maxsize=1 << 16)  # a training view's planes never change, and packing them costs more than a small cull
def camera_planes(camera: Camera) -> np.ndarray:
    """Six planes (n, d) in world coordinates, then |t|_1: a row is kept when n.p + d + R >= 0 for all. [32] f32.

    Derivation. In camera coordinates a row at (x, y, z) with largest sigma s is drawn only if near <= z <= far and
    the rectangle m +- r meets the image, m = fx x/z + cx, r = ceil(k sqrt(S)), k <= 3.33, S the projected variance.
    The first row of the Jacobian is (fx/z)(1, 0, -tx), tx = x/z clamped to 0.15 of the view's tangent
    width beyond each image border, so S <= s^2 (fx/z)^2 (1 + tx_max^2) + 0.3.
    With sqrt(a + b) <= sqrt a + sqrt b:
        r <= 3.33 s (fx/z) sqrt(1 + tx_max^2) + 3.33 sqrt(0.3) + 1.
    m + r > 0, times z > 0, is a plane:  fx x + c z + fx sqrt(1 + tx_max^2) 3.33 s > 0,  c = cx + 3.33 sqrt(0.3) + 1.
    The true centre may lie within u of the stored one; that changes fx x + c z by at most sqrt(fx^2 + c^2) u. As
    R >= 3.33 s + u, the row is kept if fx x + c z + K R > 0 with K = max(sqrt(fx^2 + c^2), fx sqrt(1 + tx_max^2)).
    The right border has c = W - cx + ... and -x; y likewise. Near and far: z + R >= near, z - R <= far.
    Planes are divided by K, so that R has factor one and boxes are tested by their support function.

    Rounding: c gets one pixel more (rounding of m and r near the border), K is raised by 1e-5 (relative errors of s, r
    and the rotation), and the kernel adds 2e-6 (|p|_1 + |t|_1) to R, twice the float32 error of both transformations.
    """
    rotation, translation = camera.world_to_camera[:3, :3], camera.world_to_camera[:3, 3]
    border = SIGMAS * BLUR**0.5 + 2.0
    planes = [(np.array([0.0, 0.0, 1.0]), -camera.near), (np.array([0.0, 0.0, -1.0]), camera.far)]
    for axis, (size, focal, centre) in enumerate(
        ((camera.width, camera.fx, camera.cx), (camera.height, camera.fy, camera.cy))
    ):
        outside = 0.15 * size / focal
        tangent = max(abs(centre / focal + outside), abs((size - centre) / focal + outside))
        for sign, c in ((1.0, centre + border), (-1.0, size - centre + border)):
            normal = np.zeros(3)
            normal[axis], normal[2] = sign * focal, c
            reach = max(float(np.hypot(focal, c)), focal * float(np.hypot(1.0, tangent))) * (1.0 + 1e-5)
            planes.append((normal / reach, 0.0))
    packed = np.zeros(cull.CAMERA_FLOATS, np.float32)
    packed[:24] = np.array([[*(n @ rotation), n @ translation + d] for n, d in planes]).reshape(-1)
    packed[24] = np.abs(translation).sum()
    packed.flags.writeable = False
    return packed


def block_bounds(
    entries: np.ndarray,
    out: np.ndarray | None = None,
    blocks: np.ndarray | None = None,
    page_rows: int = PAGE_ROWS,
    fill: np.ndarray | None = None,
) -> np.ndarray:
    """Per block (min xyz, max R, max xyz, 0) [nb, 8] f32 of entries [N, 4] f32; `blocks` limits it to some, in `out`.

    fill [nb] i32: how many rows of each block are live, from its first on; None: all.

    A block with a non-finite entry gets an infinite box: its rows are tested one by one, and the broken row is kept.
    """
    if out is None:
        if blocks is not None:
            raise ValueError("blocks needs out: the other blocks' bounds would be undefined")
        out = np.empty((-(-len(entries) // page_rows) if fill is None else len(fill), 8), np.float32)
    listed = None if blocks is None else np.ascontiguousarray(blocks, np.int32)
    cull.block_bounds(entries, page_rows, out, listed, fill)
    return out


def visible_sets(
    entries: np.ndarray,
    bounds: np.ndarray,
    cameras: Sequence[Camera],
    margin: Margin | tuple[float, float] = NO_MARGIN,
    *,
    page_rows: int = PAGE_ROWS,
    fill: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Visible set of each camera, int32 [M_i] ascending; the sets of one call share one buffer.

    entries [N, 4] f32, bounds [nb, 8] f32 as from `block_bounds`, with the same `fill`. Entries of seen blocks are read once
    for all cameras.
    """
    growth, extra = margin
    if not (growth >= 0.0 and extra >= 0.0):
        raise ValueError(f"margin must not be negative: growth {growth}, extra {extra}")
    planes = np.array([camera_planes(camera) for camera in cameras], np.float32).reshape(-1, cull.CAMERA_FLOATS)
    return cull.cull(entries, bounds, planes, growth, extra, page_rows, fill)


def visible_rows(
    entries: np.ndarray,
    bounds: np.ndarray,
    camera: Camera,
    margin: Margin | tuple[float, float] = NO_MARGIN,
    *,
    page_rows: int = PAGE_ROWS,
    fill: np.ndarray | None = None,
) -> np.ndarray:
    """Visible set of one camera, int32 [M] ascending."""
    return visible_sets(entries, bounds, [camera], margin, page_rows=page_rows, fill=fill)[0]
