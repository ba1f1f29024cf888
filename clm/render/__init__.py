"""Rendering: backends with one interface, and the image loss. `twin` (torch) is the slow judge of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from clm.camera import Camera
from clm.image.losses import Loss, l1_ssim, metrics
from clm.render.cpu import CpuRasterizer, Render
from clm.render.stage import Target, compare_and_differentiate, train_view
from clm.render.wish import Abandoned, Wish

__all__ = [
    "Abandoned",
    "CpuRasterizer",
    "Loss",
    "Rasterizer",
    "Render",
    "Target",
    "Wish",
    "compare_and_differentiate",
    "l1_ssim",
    "metrics",
    "train_view",
]

Colour = tuple[float, float, float]


class Rasterizer(Protocol):
    """What a backend offers for one view at a time. Arrays are its device's."""

    peak_temporaries: int  # device bytes beside the arena that a view needed so far

    band_bytes: int | None  # what lists of (tile, splat) pairs may take at a time, None: no limit; of views begun later

    def begin(self, camera: Camera, sh_degree: int) -> None:
        """A new view, of no rows yet; the former one is forgotten."""

    def project(self, geometry: Any, colour: Any, slots: Any) -> int:
        """Append the splats of the next piece, rows in order: geometry[slots] [A, 12] and colour[slots] [A, 48], raw. Returns
        how many rows are drawn. The arena may change afterwards."""

    def rasterize(self, background: Colour, depth: bool = False, counted: bool = True) -> Any:
        """The view's image (`Render`), its arrays on the device. counted: its backward also counts the pixels that each row
        explains, which growth asks for; where it does not, that is 0 and costs nothing."""

    def compare(self, rgb: Any, photo: np.ndarray, mask: np.ndarray | None, ssim_weight: float) -> Any:
        """The loss of an image on the device against a photo on the host: total, v_rgb, and whether it is finite."""

    def expose(self, rgb: Any, matrix: np.ndarray) -> Any:
        """An image on the device through an affine map of colours [3, 4] f32 (`clm.image.exposure`)."""

    def expose_backward(self, rgb: Any, matrix: np.ndarray, v_seen: Any) -> tuple[Any, Any]:
        """From the gradient of what `expose` made of rgb to those of rgb and of the map [3, 4]."""

    def rasterize_backward(self, v_rgb: Any, v_alpha: Any = None, v_depth: Any = None, finite: Any = True) -> None:
        """From gradients of the image to those of the splats, which stay here. Where `finite` is false there are none."""

    def project_backward(
        self, geometry: Any, colour: Any, slots: Any, first: int, grad_geometry: Any, grad_colour: Any
    ) -> None:
        """Add the gradients of a piece, whose first row is the view's row `first`, at `slots`, where its rows (values as they
        were projected) lie now: grad_geometry [A, 16], grad_colour [A, 48]. Each piece once, in any order; the last one first
        costs no second projection."""

    def forward(
        self,
        geometry: Any,
        colour: Any,
        slots: Any,
        camera: Camera,
        sh_degree: int,
        background: Colour,
        depth: bool = False,
    ) -> Any:
        """The image of a view in one piece."""

    @property
    def drawn(self) -> int:
        """Rows of the view that are drawn."""

    def another(self) -> Any:
        """One that projects as this one does, for a view that somebody else rasterises."""

    def splats_of(self, views: Sequence[Any]) -> tuple[Any, np.ndarray]:
        """The drawn rows of views that `another` of each projected, one after the other, [n, columns], and how many of each
        [views] i64."""

    def put_splats(self, splats: Any) -> None:
        """Instead of `project`: drawn rows [n, columns] of several ranks, in their order."""

    def gradients_to(self, counts: np.ndarray, exist: bool) -> Any:
        """Gradients of splats that were put here, counts [ranks] of them from each, for those: [n + ranks, columns]; a row behind
        those of each rank says whether there are any, which `exist` may deny."""

    def put_gradients(self, gradients: Any) -> None:
        """Instead of `rasterize_backward`: what came back for the view's drawn rows, [drawn + 1, columns]."""

    def workspace_bytes(self, rows: int, pixels: int) -> int:
        """Host memory that such a view is expected to take, tile lists for the whole image."""

    def least_workspace_bytes(self, rows: int, pixels: int) -> int:
        """The same with lists for one tile row at a time (`band_bytes` 0)."""

    @property
    def host_bytes(self) -> int:
        """Host memory that views have taken so far, and is kept for the next one."""

    def temporary_bytes(self, rows: int, pixels: int, piece_rows: int | None = None) -> int:
        """Device bytes that a view of so many rows and pixels is expected to need beside the arena, in pieces of at most
        `piece_rows` rows (None: in one): the comfortable number, tile lists for the whole image."""

    def least_bytes(self, rows: int, pixels: int, piece_rows: int | None = None) -> int:
        """The fewest device bytes that such a view can do with: tile lists for one tile row at a time. What a budget leaves
        beyond them is what `band_bytes` may say."""
