"""What the CUDA backend holds of a view between its steps, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from clm.camera import Camera
from clm.render.pixels import Raster
from clm.render.splats import Projected, SplatGradients, Splats


@dataclass(frozen=True)
class DeviceRender:
    """One rendered view, as `clm.render.cpu.Render` but on the device; the tensors are the caller's to keep."""

    rgb: Tensor  # [3, H, W] f32, background blended in, not clamped; a view of [H, W, 3 or 4]
    alpha: Tensor  # [H, W] f32
    depth: Tensor | None  # [H, W] f32 expected camera depth, scene units; 0 where nothing was drawn
    drawn: int  # splats (rows that are not finite included, which draw nothing)


@dataclass(frozen=True)
class Piece:
    """Where the drawn rows of a piece are: 8 bytes each beside the splats."""

    first: int  # number of its first row in the view
    rows: int
    begin: int  # number of its first splat in the view
    ids: Tensor  # [n] i64 of its rows, ascending


@dataclass
class View:
    """What is held between the steps of one view."""

    camera: Camera | None = None
    degree: int = 0
    rows: int = 0
    drawn: int = 0
    pieces: list[Piece] = field(default_factory=list)
    parts: list[Splats] = field(default_factory=list)  # one per piece; joined from rasterize to rasterize_backward
    graph: Projected | None = None  # of the last piece
    rasterized: bool = False
    exposed: bool = False
    raster: Raster | None = None  # from rasterize to rasterize_backward
    gradients: SplatGradients | None = None
    due: list[int] = field(default_factory=list)  # numbers of pieces whose gradients were not added yet
    finite: Tensor | None = None
    screen: tuple[Tensor, Tensor, Tensor] | None = None


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """A photo or a mask on the device, without waiting for the stream."""
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    host = torch.empty(array.shape, dtype=dtype, pin_memory=device.type == "cuda")
    host.numpy()[...] = array  # the one copy on the host, of what the cache may drop
    return host.to(device, non_blocking=True)


def backdrop_alone(
    camera: Camera, background: np.ndarray | tuple[float, float, float], depth: bool, device: torch.device
) -> DeviceRender:
    """The image of a view without rows."""
    size = camera.height, camera.width
    rgb = torch.empty((3, *size), device=device)
    for channel, value in zip(rgb, background, strict=True):
        channel.fill_(float(value))
    empty = torch.zeros(size, device=device)
    return DeviceRender(rgb, empty, empty if depth else None, 0)
