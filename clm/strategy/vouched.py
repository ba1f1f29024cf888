"""Rows that no photo vouches for once growth has ended, and that float in front of whoever looks from elsewhere.

Two kinds, both of which cost nothing in the photos while they stay: rows that no training view draws, such as a half that came to
lie beside everything; and rows near a camera whose centre lies in no photo, of which one view sees a part at its edge. One view
says nothing about depth, and most of such a row is where no photo looks: it is as wide as the neighbouring view. At the depth of
what the photo shows, the same row only goes on with it beyond the edge. Which rows these are is a function of the rows and of what
their views explained of them, not of where they lie. They go as soon as it is known who sees a row, and again whenever half of the
rest of the run is over, because rows that stay move on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clm.camera import Camera
from clm.kernels import rows as row_kernels
from clm.kernels.rows import AdamStep
from clm.store.arrays import RowArrays
from clm.store.growth import Growth, Rows
from clm.store.identity import uniforms
from clm.store.layout import COLOUR_COLUMNS, GEOMETRY_COLUMNS, MEANS
from clm.store.store import Store
from clm.strategy.strategy import AllRows

EPOCHS = 4  # by which it is known who sees a row
_BESIDE = 3.0  # half frames from the middle of a frame
_NEAR = 1 / 3  # of the middle depth of a view: as near as that, hardly anything is what a photo shows
_SAMPLE = 65_536  # rows, about, that say how deep views are
_AT_ONCE = 65_536  # rows that are projected at a time: 8 MB of temporaries


def views_that_count(pixels: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """[n] f64: by how many views rows are seen, from the sums over views [n] of their pixels and of the squares: n where n views
    see equally much of a row, hardly more than 1 where a second one sees next to nothing."""
    total = pixels.astype(np.float64)
    return np.divide(total * total, squares, out=np.zeros_like(total), where=squares > 0)


def _projected(camera: Camera, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of points [n, 3] (world): how far from the middle of the frame, in half frames across and down, and depth, [n] f64 each."""
    x, y, z = points.astype(np.float64).T
    right, down, depth = (r[0] * x + r[1] * y + r[2] * z + r[3] for r in camera.world_to_camera[:3])
    ahead = np.where(depth > 0, depth, np.nan)  # nothing behind is in any frame
    u, v = camera.fx * right / ahead + camera.cx, camera.fy * down / ahead + camera.cy
    return np.abs(2.0 * u / camera.width - 1.0), np.abs(2.0 * v / camera.height - 1.0), depth


def middle_depths(points: np.ndarray, cameras: Sequence[Camera]) -> np.ndarray:
    """[V] f64: median depth of those of points [n, 3] (world) that lie in the frame of each camera; 0 where none does."""
    middles = np.zeros(len(cameras))
    for k, camera in enumerate(cameras):
        across, down, depth = _projected(camera, points)
        framed = depth[(across <= 1.0) & (down <= 1.0)]
        middles[k] = np.median(framed) if len(framed) else 0.0
    return middles


def clearings(grown: int, iterations: int, views: int) -> tuple[int, ...]:
    """Images after which such rows go, of a run of so many views that grows until image `grown`: the first when all views have come
    `EPOCHS` times, then whenever half of the rest is over; as many epochs are left for others to fill the gaps."""
    needed, images = EPOCHS * views, list[int]()
    image = grown + needed
    while image + needed <= iterations:
        images.append(image)
        image += max(needed, (iterations - image) // 2)
    return tuple(images)


def beside_frames(points: np.ndarray, cameras: Sequence[Camera], middles: np.ndarray) -> np.ndarray:
    """[n] bool: which of points [n, 3] (world) lie in no camera's frame, but beside one, within a frame three times as wide and
    high, and not a third as far as the middle [V] of what it shows."""
    beside = np.zeros(len(points), bool)
    for first in range(0, len(points), _AT_ONCE):
        left, near = np.arange(first, min(first + _AT_ONCE, len(points))), beside[first : first + _AT_ONCE]
        for camera, middle in zip(cameras, middles.tolist(), strict=True):
            across, down, depth = _projected(camera, points[left])
            near[left - first] |= (across <= _BESIDE) & (down <= _BESIDE) & (depth < _NEAR * middle)
            framed = (across <= 1.0) & (down <= 1.0)
            near[left[framed] - first] = False
            left = left[~framed]  # most are in the frame of some camera soon
    return beside


def unvouched(
    store: Store,
    step: AdamStep | None,
    cameras: Sequence[Camera],
    epochs: float,
    least: float,
    image: int,
    all_rows: AllRows = AllRows(),  # noqa: B008  (it has no state)
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of rows, ascending, as they are after `step - 1`: those [n] i32 that no view drew in the `epochs` epochs that statistics
    are of; those [m] i32 that fewer than `least` views an epoch see, and whose centre is `beside_frames`. How deep views are a
    sample of all rows says, drawn by key after training image `image`."""
    (rows,) = all_rows.totals(store.rows)
    unseen, few, sample = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)], []
    centres = [np.zeros((0, 3), np.float32)]
    for ids, held in store.sweep_rows():
        at = held.at(ids)
        drawn, _, pixels, squares = held.statistics[at].T
        some = (drawn > 0) & (views_that_count(pixels, squares) < least * epochs)
        asked = uniforms(held.keys[at].reshape(-1), image, 0) < _SAMPLE / rows
        unseen.append(ids[drawn == 0])
        few.append(ids[some])
        centres.append(_centres(held, step, at[some]))
        sample.append(_centres(held, step, at[asked & (drawn > 0)]))
    mine = np.concatenate([*sample, centres[0]])
    middles = middle_depths(np.column_stack([all_rows.joined(mine[:, axis]) for axis in range(3)]), cameras)
    candidates = np.concatenate(few)
    return np.concatenate(unseen), candidates[beside_frames(np.concatenate(centres), cameras, middles)]


def _centres(held: RowArrays, step: AdamStep | None, at: np.ndarray) -> np.ndarray:
    """[n, 3] f32 of the rows at places `at` [n] i32."""
    geometry = np.empty((len(at), GEOMETRY_COLUMNS), np.float32)
    row_kernels.fetch(held, step, at, geometry, np.empty((len(at), COLOUR_COLUMNS), np.float32), COLOUR_COLUMNS)
    return geometry[:, MEANS]


def without(rows: np.ndarray) -> Growth:
    """Rows [n] i32, ascending, leave, and nothing comes."""
    nothing = Rows(np.zeros((0, GEOMETRY_COLUMNS), np.float32), np.zeros((0, COLOUR_COLUMNS), np.float32))
    return Growth.of(rows, rows[:0], np.zeros(0, np.uint64), *nothing)
