"""The CPU backend: gsplat 1.5.3's conventions on our own kernels, forward and backward without torch.

Invariants: bitwise equal for any thread count, any placement of rows in the arena (slots), any cut of a view into pieces and
any `band_bytes`; rows at one depth are drawn in order of the identity that the geometry's last column carries, then of rows;
only spherical-harmonic bands up to `sh_degree` are used; a row that was not drawn gets no gradient, not even a zero in its
view count.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clm.camera import Camera
from clm.image import exposure
from clm.image.losses import Loss, l1_ssim
from clm.kernels.memory import Room
from clm.kernels.raster import SPLAT_FLOATS, RasterWorkspace, gradient_floats
from clm.render.temporaries import HostWorkspace


@dataclass(frozen=True)
class Render:
    """One rendered view. The arrays are read-only and reused by the rasteriser's next `forward`: copy what must stay."""

    rgb: np.ndarray  # [3, H, W] f32, background blended in, not clamped
    alpha: np.ndarray  # [H, W] f32
    depth: np.ndarray | None  # [H, W] f32 expected camera depth, scene units; 0 where nothing was drawn
    drawn: int  # rows with radii > 0


class CpuRasterizer:
    """Forward and backward of one view at a time; the workspace and the images are reused from call to call."""

    peak_temporaries = 0  # its workspace is the host's memory, not the device's

    def __init__(
        self,
        antialiased: bool = False,
        absgrad: bool = False,
        radius_clip: float = 0.0,
        band_bytes: int | None = None,
    ) -> None:
        """band_bytes: what tile lists may take; beyond it they are built for a band of tile rows at a time. None: no limit."""
        self.antialiased = antialiased
        self.absgrad = absgrad
        self.band_bytes = band_bytes  # of views that begin from now on
        self._radius_clip = radius_clip
        self._workspace = RasterWorkspace()
        self._planes = np.zeros((5, 0, 0), np.float32)  # rgb, alpha, depth
        self._seen = np.zeros((3, 0, 0), np.float32)
        self._has_depth, self._counted = False, True
        self._finite = True  # whether the view has gradients
        self._size = 0, 0  # height, width of the view
        self._drawn = 0
        self._compare_seconds = 0.0
        self._expected = HostWorkspace()
        self._splats, self._gradients = Room(), Room()  # on their way to other ranks

    def another(self) -> CpuRasterizer:
        """One that projects as this one does, for a view that somebody else rasterises."""
        return CpuRasterizer(self.antialiased, self.absgrad, self._radius_clip)

    def begin(self, camera: Camera, sh_degree: int) -> None:
        """A new view, of no rows yet; the former one is forgotten."""
        limits = np.array([camera.near, camera.far, self._radius_clip], np.float32)
        self._size, self._drawn, self._finite = (camera.height, camera.width), 0, True
        self._workspace.begin(camera, sh_degree, limits, self.antialiased, self.band_bytes)

    def project(self, geometry: np.ndarray, colour: np.ndarray, slots: np.ndarray) -> int:
        """Append the splats of a piece: the rows geometry[slots] [A, 12] and colour[slots] [A, 48] (raw: log scales, logit
        opacities). `slots` [M] i32; rows ascend, from piece to piece too. Returns how many of them are drawn. The arena may
        change afterwards."""
        drawn = self._workspace.project(geometry, colour, slots)
        self._drawn += drawn
        return drawn

    def rasterize(
        self, background: np.ndarray | tuple[float, float, float], depth: bool = False, counted: bool = True
    ) -> Render:
        """The image of the view's splats. counted: its backward also counts the pixels that they explain."""
        if self._planes.shape[1:] != self._size:
            self._planes = np.zeros((5, *self._size), np.float32)
        planes, self._has_depth, self._counted = self._planes, depth, counted
        self._workspace.rasterize(np.array(background, np.float32), planes[:3], planes[3], planes[4] if depth else None)
        self._expected = self._expected.learn(self._workspace.rows, self._workspace.pairs())
        frozen = planes.view()
        frozen.flags.writeable = False
        return Render(frozen[:3], frozen[3], frozen[4] if depth else None, self._drawn)

    def forward(
        self,
        geometry: np.ndarray,
        colour: np.ndarray,
        slots: np.ndarray,
        camera: Camera,
        sh_degree: int,
        background: np.ndarray | tuple[float, float, float],
        depth: bool = False,
    ) -> Render:
        """The image of a view in one piece."""
        self.begin(camera, sh_degree)
        self.project(geometry, colour, slots)
        return self.rasterize(background, depth)

    def rasterize_backward(
        self,
        v_rgb: np.ndarray,
        v_alpha: np.ndarray | None = None,
        v_depth: np.ndarray | None = None,
        finite: bool = True,
    ) -> None:
        """From gradients of rgb [3, H, W], alpha and depth [H, W] to those of the splats, which stay in the workspace.

        `v_depth` needs a rasterize with depth=True. Where `finite` is false the view has no gradients.
        """
        if v_depth is not None and not self._has_depth:
            raise ValueError("v_depth needs a forward with depth=True")
        self._finite = bool(finite)
        if self._finite:
            self._workspace.rasterize_backward(v_rgb, v_alpha, v_depth, self.absgrad, self._counted)

    def project_backward(
        self,
        geometry: np.ndarray,
        colour: np.ndarray,
        slots: np.ndarray,
        first: int,
        grad_geometry: np.ndarray,
        grad_colour: np.ndarray,
    ) -> None:
        """Add the gradients of a piece, whose first row is the view's row `first`, to grad_geometry [A, 16] and grad_colour
        [A, 48] at `slots`, where its rows (values as they were projected) lie now. Pieces may come in any order.

        Columns 0:11 as geometry; 11: +1 per drawn row; 12: + norm of the screen gradient in half image sizes (with
        absgrad of the per-axis sums over pixels of its absolute value).
        """
        if self._finite:
            self._workspace.project_backward(geometry, colour, slots, first, grad_geometry, grad_colour)

    # ---- splats that travel ----

    @property
    def drawn(self) -> int:
        """Rows of the view that are drawn."""
        return self._drawn

    def splats_of(self, views: Sequence[CpuRasterizer]) -> tuple[np.ndarray, np.ndarray]:
        """The drawn rows of some views, one after the other [n, 15] f32 until the next call, and how many of each [views] i64."""
        counts = np.array([view._drawn for view in views], np.int64)
        splats, end = self._splats.rows(int(counts.sum()), SPLAT_FLOATS), np.cumsum(counts)
        for view, first, last in zip(views, (end - counts).tolist(), end.tolist(), strict=True):
            view._workspace.take_splats(splats[first:last])
        return splats, counts

    def put_splats(self, splats: np.ndarray) -> None:
        """Append drawn rows [n, 15] of several ranks, in their order: instead of `project`."""
        self._workspace.put_splats(splats)
        self._drawn += len(splats)

    def gradients_to(self, counts: np.ndarray, exist: bool) -> np.ndarray:
        """Gradients of the splats that were put here, counts [ranks] of them, for whom they came from: [n + ranks, 10 or 12] f32
        until the next call. Behind those of each rank comes a row that begins with 1, or with 0 where the view has none (or `exist`
        says so)."""
        gradients = self._gradients.rows(int(counts.sum()) + len(counts), gradient_floats(self.absgrad))
        exist, first = exist and self._finite, 0
        for k, count in enumerate(counts.tolist()):
            if exist:
                self._workspace.take_gradients(first, gradients[first + k : first + k + count])
            gradients[first + k + count] = float(exist)
            first += count
        return gradients

    def put_gradients(self, gradients: np.ndarray) -> None:
        """What came back for the view's drawn rows, [drawn + 1, 10 or 12]: instead of `rasterize_backward`."""
        self._finite = bool(gradients[-1, 0] == 1.0)
        if self._finite:
            self._workspace.put_gradients(gradients[:-1], self.absgrad)

    def compare(self, rgb: np.ndarray, photo: np.ndarray, mask: np.ndarray | None, ssim_weight: float) -> Loss:
        """The loss (`l1_ssim`) of rgb [3, H, W] against a photo [H, W, 3] u8, with its gradient."""
        began = time.perf_counter()
        loss = l1_ssim(rgb, photo, ssim_weight, mask)
        self._compare_seconds = time.perf_counter() - began
        return loss

    def expose(self, rgb: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """rgb [3, H, W] through the affine map of colours [3, 4] f32, in an image that is reused by the next call."""
        if self._seen.shape != rgb.shape:
            self._seen = np.empty_like(rgb)
        return exposure.expose(rgb, matrix, self._seen)

    def expose_backward(self, rgb: np.ndarray, matrix: np.ndarray, v_seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradients of rgb and of the map [3, 4] f64."""
        return exposure.expose_backward(rgb, matrix, v_seen)

    def temporary_bytes(self, rows: int, pixels: int, piece_rows: int | None = None) -> int:
        """Nothing of the device budget: the workspace is the host's."""
        return 0

    def least_bytes(self, rows: int, pixels: int, piece_rows: int | None = None) -> int:
        """Nothing of the device budget: the workspace is the host's."""
        return 0

    def workspace_bytes(self, rows: int, pixels: int) -> int:
        """Host memory that the workspace is expected to take for such a view, after what was seen so far."""
        return self._expected.bytes(rows, pixels)

    def least_workspace_bytes(self, rows: int, pixels: int) -> int:
        """The same with lists for one tile row at a time (`band_bytes` 0)."""
        return self._expected.least_bytes(rows, pixels)

    def radii(self) -> np.ndarray:
        """[M, 2] i32, px; (0, 0) for rows that were not drawn. A copy."""
        return self._workspace.read()[0]

    def means2d(self) -> np.ndarray:
        """[M, 2] f32, px; meaningful where radii > 0. A copy."""
        return self._workspace.read()[1]

    @property
    def host_bytes(self) -> int:
        """Host memory that the workspace holds."""
        return sum(self.held_bytes())

    def held_bytes(self) -> tuple[int, int]:
        """Host memory that the workspace holds: splats, and tile lists."""
        return self._workspace.bytes

    def pairs(self) -> int:
        """(tile, Gaussian) pairs of the last forward."""
        return self._workspace.pairs()

    def bands(self) -> int:
        """Bands of tile rows that the last forward was cut into."""
        return self._workspace.bands()

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage of the last view: project, sort, lists, forward, compare, backward, project_backward."""
        return self._workspace.seconds() | {"compare": self._compare_seconds}
