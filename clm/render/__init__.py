"""Rendering: backends with one interface, and the image loss. `twin` (torch) is the slow judge of both."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from clm.camera import Camera
from clm.image.losses import Loss, l1_ssim, metrics
from clm.render.cpu import CpuRasterizer, Render

__all__ = ["CpuRasterizer", "Loss", "Rasterizer", "Render", "l1_ssim", "metrics"]

Colour = tuple[float, float, float]


class Rasterizer(Protocol):
    """What a backend offers. Arrays are its device's; `arena` has geometry, colour, grad_geometry and grad_colour."""

    peak_temporaries: int  # device bytes beside the arena that a view needed so far

    def forward(
        self,
        geometry: Any,
        colour: Any,
        slots: Any,
        camera: Camera,
        sh_degree: int,
        background: Colour,
        depth: bool = False,
    ) -> Any: ...

    def loss_and_gradients(
        self,
        arena: Any,
        slots: Any,
        camera: Camera,
        sh_degree: int,
        background: Colour,
        photo: np.ndarray,
        mask: np.ndarray | None,
        ssim_weight: float,
    ) -> Any:
        """Render, compare with the photo, add gradients to the arena's gradient rows at `slots`; returns the loss (float
        or something that becomes one). A loss that is not finite adds nothing."""

    def temporary_bytes(self, rows: int, pixels: int) -> int:
        """Device bytes that a view of so many rows and pixels is expected to need beside the arena."""
