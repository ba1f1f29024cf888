"""The CUDA backend: gsplat between our arena and our loss, with the same face as `clm.render.cpu.CpuRasterizer`.

Ours are the gather, the activations with their derivatives, the addition at the slots and the statistics; gsplat projects,
sorts and blends (`clm.render.splats`). Invariants: nothing here waits for the device beyond what gsplat itself does;
gradients are added in two operations that allocate nothing, after everything that may run out of memory, so a view that
failed can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from clm.camera import Camera
from clm.errors import OutOfDeviceMemory
from clm.image.torch_losses import DeviceLoss, l1_ssim
from clm.render import splats as seam
from clm.render.gsplat_ops import load_ops
from clm.render.splats import Projected, Raster, SplatGradients, Splats
from clm.render.temporaries import FIXED_BYTES, Temporaries, view_bytes

__all__ = ["DeviceRender", "GsplatRasterizer", "SplatGradients", "Splats", "Temporaries"]

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class DeviceRender:
    """One rendered view, as `clm.render.cpu.Render` but on the device; the tensors are the caller's to keep."""

    rgb: Tensor  # [3, H, W] f32, background blended in, not clamped; a view of [H, W, 3 or 4]
    alpha: Tensor  # [H, W] f32
    depth: Tensor | None  # [H, W] f32 expected camera depth, scene units; 0 where nothing was drawn
    drawn: int  # splats (rows that are not finite included, which draw nothing)


@dataclass(frozen=True)
class _Screen:
    """Where the drawn rows of the last view are, for tests: 24 bytes per row until the next one."""

    rows: int  # M
    ids: Tensor  # [n] i64
    radii: Tensor  # [n, 2] i32
    means2d: Tensor  # [n, 2] f32

    @staticmethod
    def empty(device: torch.device) -> _Screen:
        pairs = torch.zeros((0, 2), device=device)
        return _Screen(0, torch.zeros(0, dtype=torch.int64, device=device), pairs.to(torch.int32), pairs)

    def scattered(self, name: str) -> Tensor:
        values: Tensor = getattr(self, name)
        return values.new_zeros((self.rows, 2)).index_copy_(0, self.ids, values)


class GsplatRasterizer:
    """Forward and backward of one view at a time; one backward per forward, which frees the view's graph."""

    def __init__(
        self,
        antialiased: bool = False,
        absgrad: bool = False,
        radius_clip: float = 0.0,
        *,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Imports gsplat, and compiles it the first time, which `say` announces. ClmError where CUDA cannot be used."""
        self.antialiased = antialiased
        self.absgrad = absgrad
        self._options = seam.Options(antialiased, absgrad, radius_clip)
        self._ops = load_ops(say)
        self.peak_temporaries = 0  # bytes of tensors, of the training views so far
        self._temporaries = Temporaries()
        self._projected: Projected | None = None  # between project and project_backward
        self._raster: Raster | None = None  # between rasterize and rasterize_backward
        self._screen: _Screen | None = None  # of the last project
        self._pairs = 0  # (tile, splat) pairs of the last rasterize

    def forward(
        self,
        geometry: Tensor,
        colour: Tensor,
        slots: Tensor,
        camera: Camera,
        sh_degree: int,
        background: np.ndarray | tuple[float, float, float],
        depth: bool = False,
    ) -> DeviceRender:
        """Draw the rows geometry[slots] [A, 12] and colour[slots] [A, 48] (raw: log scales, logit opacities), f32.

        `slots` [M] i32 or i64, unique, in ascending row order, on the arena's device. The arena may change afterwards: the
        view's rows are copied. Raises OutOfDeviceMemory.
        """
        self._forget()  # the former view's memory goes before this one's is taken

        def draw() -> DeviceRender:
            splats = self._project(geometry, colour, slots, camera, sh_degree) if len(slots) else None
            if splats is None:  # gsplat divides by the number of rows
                self._screen = _Screen.empty(geometry.device)
            if splats is None or len(splats.opacities) == 0:
                return _backdrop_alone(camera, background, depth, geometry.device)
            return self._rasterize(splats, camera.width, camera.height, background, depth)

        return self._or_out_of_memory(draw, "drawing", len(slots))

    def project(self, geometry: Tensor, colour: Tensor, slots: Tensor, camera: Camera, sh_degree: int) -> Splats:
        """The splats of a view; arguments as `forward`, at least one row. Raises OutOfDeviceMemory."""
        self._forget()
        return self._or_out_of_memory(
            lambda: self._project(geometry, colour, slots, camera, sh_degree), "projecting", len(slots)
        )

    def rasterize(
        self,
        splats: Splats,
        width: int,
        height: int,
        background: np.ndarray | tuple[float, float, float],
        depth: bool = False,
    ) -> DeviceRender:
        """The image of splats in row order (those of one `project`, or of several joined). Raises OutOfDeviceMemory."""
        return self._or_out_of_memory(
            lambda: self._rasterize(splats, width, height, background, depth), "drawing", len(splats.opacities)
        )

    def rasterize_backward(
        self, v_rgb: Tensor, v_alpha: Tensor | None = None, v_depth: Tensor | None = None
    ) -> SplatGradients:
        """Gradients of the splats of the last `rasterize`, whose graph this frees. Raises OutOfDeviceMemory."""
        count = self._checked_raster(v_depth)
        return self._or_out_of_memory(
            lambda: self._rasterize_backward(v_rgb, v_alpha, v_depth), "computing the gradients of", count
        )

    def project_backward(
        self, v: SplatGradients, grad_geometry: Tensor, grad_colour: Tensor, finite: Tensor | None = None
    ) -> None:
        """Add the gradients of the rows of the last `project`, whose graph this frees, as `backward` does."""
        if self._projected is None:
            raise ValueError("project_backward needs a project of its own: its graph is freed by it")
        slots = self._projected.slots
        rows, coefficients = self._or_out_of_memory(
            lambda: self._project_backward(v, finite), "computing the gradients of", len(slots)
        )
        _add_at(slots, rows, coefficients, grad_geometry, grad_colour)

    def backward(
        self,
        v_rgb: Tensor,
        grad_geometry: Tensor,
        grad_colour: Tensor,
        v_alpha: Tensor | None = None,
        v_depth: Tensor | None = None,
        finite: Tensor | None = None,
    ) -> None:
        """Add the gradients of the last forward to grad_geometry [A, 16] and grad_colour [A, 48] at its slots.

        Columns 0:11 as geometry; 11: +1 per drawn row; 12: + norm of the screen gradient in half image sizes (with
        absgrad of the per-axis sums over pixels of its absolute value). `v_depth` needs a forward with depth=True.
        `finite` (0-d bool, `DeviceLoss.finite`): where false nothing is added, neither gradients nor counts. Raises
        OutOfDeviceMemory before anything is added; then the view starts again from forward.
        """
        if self._screen is not None and self._screen.rows == 0:
            return
        if self._projected is not None and len(self._projected.ids) == 0:
            self._projected = None
            return
        self._checked_raster(v_depth)
        assert self._projected is not None and self._screen is not None
        slots = self._projected.slots

        def differentiate() -> tuple[Tensor, Tensor]:
            return self._project_backward(self._rasterize_backward(v_rgb, v_alpha, v_depth), finite)

        rows, coefficients = self._or_out_of_memory(differentiate, "computing the gradients of", self._screen.rows)
        _add_at(slots, rows, coefficients, grad_geometry, grad_colour)

    def loss_and_gradients(
        self,
        arena: Any,
        slots: Tensor,
        camera: Camera,
        sh_degree: int,
        background: np.ndarray | tuple[float, float, float],
        photo: np.ndarray,
        mask: np.ndarray | None,
        ssim_weight: float,
    ) -> Tensor:
        """As `CpuRasterizer.loss_and_gradients`; the loss is a 0-d tensor on the device. Raises OutOfDeviceMemory before
        anything is added. Photo [H, W, 3] u8 and mask [H, W] are on the host."""
        device = arena.geometry.device
        render = self.forward(arena.geometry, arena.colour, slots, camera, sh_degree, background)

        def compare() -> DeviceLoss:
            kept = None if mask is None else _upload(mask, device)
            return l1_ssim(render.rgb, _upload(photo, device), ssim_weight, kept)

        loss = self._or_out_of_memory(compare, "comparing", len(slots))
        self.backward(loss.v_rgb, arena.grad_geometry, arena.grad_colour, finite=loss.finite)
        self._learn(len(slots), render, camera.width * camera.height, sh_degree)
        return loss.total

    def temporary_bytes(self, rows: int, pixels: int) -> int:
        """What one view of so many rows and pixels is expected to need beside the arena, after what was seen so far."""
        return self._temporaries.temporary_bytes(rows, pixels)

    def _learn(self, rows: int, render: DeviceRender, pixels: int, sh_degree: int) -> None:
        """From a training view that is done: what its own tensors took, whatever other lanes did meanwhile."""
        peak = view_bytes(rows, render.drawn, self._pairs, pixels, sh_degree)
        self.peak_temporaries = max(self.peak_temporaries, peak)
        self._temporaries = self._temporaries.learn(peak + FIXED_BYTES, rows, pixels, sh_degree)

    def _project(self, geometry: Tensor, colour: Tensor, slots: Tensor, camera: Camera, sh_degree: int) -> Splats:
        self._projected = seam.project(self._ops, geometry, colour, slots, camera, sh_degree, self._options)
        splats = self._projected.splats
        self._screen = _Screen(len(slots), self._projected.ids, splats.radii, splats.means2d)
        return splats

    def _rasterize(
        self,
        splats: Splats,
        width: int,
        height: int,
        background: np.ndarray | tuple[float, float, float],
        depth: bool,
    ) -> DeviceRender:
        raster = seam.rasterize(self._ops, splats, width, height, background, depth, self.absgrad)
        self._raster, self._pairs = raster, raster.pairs
        return DeviceRender(raster.rgb, raster.alpha.detach()[0, ..., 0], raster.depth, len(splats.opacities))

    def _checked_raster(self, v_depth: Tensor | None) -> int:
        """How many splats the image has that a backward may now differentiate."""
        if self._raster is None:
            raise ValueError("backward needs a forward of its own: the graph of a view is freed by its backward")
        if v_depth is not None and self._raster.image.shape[-1] == 3:
            raise ValueError("v_depth needs a forward with depth=True")
        return self._raster.leaves[0].shape[1]

    def _rasterize_backward(self, v_rgb: Tensor, v_alpha: Tensor | None, v_depth: Tensor | None) -> SplatGradients:
        raster, self._raster = self._raster, None
        assert raster is not None
        return seam.rasterize_backward(raster, v_rgb, v_alpha, v_depth)

    def _project_backward(self, v: SplatGradients, finite: Tensor | None) -> tuple[Tensor, Tensor]:
        projected, self._projected = self._projected, None
        assert projected is not None
        return seam.project_backward(projected, v, finite)

    def _forget(self) -> None:
        self._projected = self._raster = self._screen = None

    def _or_out_of_memory(self, work: Callable[[], _Result], what: str, rows: int) -> _Result:
        """The result of `work`; OutOfDeviceMemory where the device's memory does not suffice, and the view is forgotten.

        The new error is raised outside the handler: as its context the old one would keep alive the frames of `work`, and
        with them the memory that a second try needs.
        """
        try:
            return work()
        except RuntimeError as error:
            # What gsplat's extension or a CUDA call reports arrives as a plain RuntimeError.
            if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
                raise
        self._forget()
        raise OutOfDeviceMemory(
            f"The device ran out of memory while {what} a view of {rows:,} Gaussians.",
            "Pass a smaller --gpu-memory (the arena leaves more room then), --max-size or --max-gaussians.",
        )

    def radii(self) -> Tensor:
        """[M, 2] i32, px; (0, 0) for rows that were not drawn."""
        return self._screen_of_forward().scattered("radii")

    def means2d(self) -> Tensor:
        """[M, 2] f32, px; 0 for rows that were not drawn."""
        return self._screen_of_forward().scattered("means2d")

    def _screen_of_forward(self) -> _Screen:
        if self._screen is None:
            raise ValueError("no view was drawn yet")
        return self._screen


def _upload(array: np.ndarray, device: torch.device) -> Tensor:
    """A photo or a mask on the device, without waiting for the stream."""
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    host = torch.empty(array.shape, dtype=dtype, pin_memory=device.type == "cuda")
    host.numpy()[...] = array  # the one copy on the host, of what the cache may drop
    return host.to(device, non_blocking=True)


def _backdrop_alone(
    camera: Camera, background: np.ndarray | tuple[float, float, float], depth: bool, device: torch.device
) -> DeviceRender:
    """The image of a view without rows."""
    size = camera.height, camera.width
    rgb = torch.empty((3, *size), device=device)
    for channel, value in zip(rgb, background, strict=True):
        channel.fill_(float(value))
    empty = torch.zeros(size, device=device)
    return DeviceRender(rgb, empty, empty if depth else None, 0)


def _add_at(slots: Tensor, rows: Tensor, coefficients: Tensor, grad_geometry: Tensor, grad_colour: Tensor) -> None:
    """Adds rows [n, 16] and coefficients [n, columns] at slots [n], which are unique: no order of additions to differ."""
    grad_geometry.index_add_(0, slots, rows)
    grad_colour[:, : coefficients.shape[1]].index_add_(0, slots, coefficients)
