"""The image stage of a training view: rasterise, correct, compare, back. One path for both backends.

Between the projection of a view's last piece and the first backward projection lies everything that knows about images. A new
loss touches `compare_and_differentiate` alone, as does what corrects an image (an exposure) before it is compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from clm.camera import Camera
from clm.image.exposure import ViewExposure


@dataclass(frozen=True)
class Target:
    """What the image of a training view is compared with, and how."""

    photo: np.ndarray  # [H, W, 3] u8, on the host
    mask: np.ndarray | None  # [H, W] u8 or bool: what is 0 does not count
    background: tuple[float, float, float]
    ssim_weight: float = 0.2
    counted: bool = True  # whether growth will ask how many pixels each row explains
    exposure: ViewExposure | None = None  # that the photo was taken with; None: the picture is compared as it is


def compare_and_differentiate(rasterizer: Any, target: Target) -> Any:
    """From the splats that a rasteriser was given to their gradients, which stay in it, and that of the exposure, which learns
    it; returns the loss (a float, or a 0-d tensor on the device that becomes one). Of a loss that is not finite there are no
    gradients."""
    render = rasterizer.rasterize(target.background, counted=target.counted)
    exposure, seen = target.exposure, render.rgb
    if exposure is not None:
        seen = rasterizer.expose(render.rgb, exposure.matrix)
    loss = rasterizer.compare(seen, target.photo, target.mask, target.ssim_weight)
    v_rgb, v_exposure = loss.v_rgb, None
    if exposure is not None:
        v_rgb, v_exposure = rasterizer.expose_backward(render.rgb, exposure.matrix, v_rgb)
    rasterizer.rasterize_backward(v_rgb, finite=loss.finite)
    if exposure is not None:
        exposure.gradient = v_exposure
    return loss.total


def train_view(rasterizer: Any, arena: Any, slots: Any, camera: Camera, sh_degree: int, target: Target) -> Any:
    """The loss of a view in one piece, whose rows lie at `slots` of the arena (geometry, colour, grad_geometry, grad_colour);
    its gradients are added there. OutOfDeviceMemory before anything is added."""
    rasterizer.begin(camera, sh_degree)
    rasterizer.project(arena.geometry, arena.colour, slots)
    loss = compare_and_differentiate(rasterizer, target)
    rasterizer.project_backward(arena.geometry, arena.colour, slots, 0, arena.grad_geometry, arena.grad_colour)
    return loss
