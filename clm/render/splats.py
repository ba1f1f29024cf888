"""The seam between rows and pixels on the device: `project` makes splats of rows, and has its backward; `clm.render.pixels`
goes on from there. gsplat's public functions do the work of kernels, the graph of autograd is cut at the splats.

Only rows that are drawn are gathered in colour, and gradients have one row per drawn row: nothing of the view's size is
filled, nothing is added by a sort. Invariant: nothing here waits for the device but what gsplat reads itself, the count of
drawn rows; before that, `settle` waits without holding the other lanes up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clm.camera import Camera
from clm.kernels import numbers
from clm.kernels.rows import colour_columns
from clm.render.gsplat_ops import Ops
from clm.store.layout import (
    GRAD_DRAWN,
    GRAD_GEOMETRY_COLUMNS,
    GRAD_PIXELS,
    GRAD_SCREEN,
    GRAD_SQUARES,
    LOG_SCALES,
    LOGIT_OPACITIES,
    MEANS,
    QUATS,
)


class Splats(NamedTuple):
    """Drawn rows as one view sees them, in row order; 48 bytes each. None of the tensors is in a graph."""

    means2d: Tensor  # [n, 2] px
    conics: Tensor  # [n, 3] inverse covariance (xx, xy, yy), 1/px^2
    colours: Tensor  # [n, 3] not negative
    opacities: Tensor  # [n] after sigmoid and, if antialiased, compensation
    depths: Tensor  # [n] camera z, scene units
    radii: Tensor  # [n, 2] i32 px; 0 for a row that is not finite, which draws nothing

    @staticmethod
    def joined(parts: list[Splats]) -> Splats:
        """Those of several pieces, in their order."""
        return parts[0] if len(parts) == 1 else Splats(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


class SplatGradients(NamedTuple):
    """dL/d of the splats' columns."""

    means2d: Tensor  # [n, 2]
    conics: Tensor  # [n, 3]
    colours: Tensor  # [n, 3]
    opacities: Tensor  # [n]
    depths: Tensor | None  # [n]; None without a depth image
    screen: Tensor  # [n, 2] what the screen statistic takes: means2d, or with absgrad the sums of absolute values
    pixels: (
        Tensor | None
    )  # [n] alpha T over the pixels that the loss looks at: how much of the image the splat explains

    def rows(self, begin: int, end: int) -> SplatGradients:
        """Those of splats begin to end, as views."""
        return SplatGradients(*(None if values is None else values[begin:end] for values in self))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Projected:
    """The splats of a piece and the graph behind them; n of the piece's M rows are drawn."""

    splats: Splats
    ids: Tensor  # [n] i64 positions among the M, ascending
    given: Tensor  # [M] arena slots of the piece
    slots: Tensor  # [n] those of the drawn rows
    size: tuple[int, int]  # width, height, px
    rows: tuple[Tensor, Tensor, Tensor]  # leaves: means [M, 3], quats [M, 4], scales [M, 3]
    opacities: Tensor  # [n] before compensation
    screen: tuple[Tensor, Tensor, Tensor, Tensor | None]  # outputs: means2d, depths, conics, compensations [n]
    lights: tuple[Tensor, Tensor]  # leaves: directions [n, 3], coefficients [n, K, 3]
    shade: Tensor  # output: spherical harmonics [n, 3]


@dataclass(frozen=True)
class Options:
    """What is the same for all views."""

    antialiased: bool = False
    absgrad: bool = False
    radius_clip: float = 0.0  # px


def settle(device: torch.device) -> None:
    """Wait, without the GIL, until the device has done all that the current stream was given.

    gsplat's extension waits for the stream in C++ with the GIL held (it reads a count to know how much to allocate), and
    meanwhile the threads of all other lanes stand still. After this wait, which releases it, what is left of that one is
    the kernel that counts.
    """
    if device.type != "cuda":
        return
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # sleeps; a spinning wait takes a core
    event.record(torch.cuda.current_stream(device))  # type: ignore[no-untyped-call]
    event.synchronize()  # type: ignore[no-untyped-call]


def project(
    ops: Ops, geometry: Tensor, colour: Tensor, slots: Tensor, camera: Camera, sh_degree: int, options: Options
) -> Projected:
    """The rows geometry[slots] [A, 12] and colour[slots] [A, 48] (raw) of a view as splats. M = len(slots) > 0."""
    means = geometry[:, MEANS].index_select(0, slots).requires_grad_()
    quats = geometry[:, QUATS].index_select(0, slots).requires_grad_()
    scales = geometry[:, LOG_SCALES].index_select(0, slots).exp_().requires_grad_()
    # An opacity that is not a number would pass gsplat's culls and blend as an opaque one.
    opacities = geometry[:, LOGIT_OPACITIES].index_select(0, slots).sigmoid_().nan_to_num_(0.0)
    viewmat, intrinsics, centre = _camera_tensors(camera, geometry.device)
    settle(geometry.device)
    with torch.enable_grad():
        packed = ops.fully_fused_projection(
            means,
            None,
            quats,
            scales,
            viewmat[None],
            intrinsics[None],
            camera.width,
            camera.height,
            eps2d=numbers.BLUR,
            near_plane=camera.near,
            far_plane=camera.far,
            radius_clip=options.radius_clip,
            packed=True,
            sparse_grad=True,  # gradients have one row per drawn row
            calc_compensations=options.antialiased,
            opacities=opacities,
        )
    ids = packed[2]
    radii, means2d, depths, conics, compensations = packed[-5:]  # later releases have one result more before them
    # A covariance that is not finite passes gsplat's culls (a mean that is not finite has radius 0 already).
    radii.mul_(conics.detach().sum(-1, keepdim=True) < torch.inf)
    drawn_opacities = opacities.index_select(0, ids)
    del opacities
    own = slots.index_select(0, ids)
    directions = means.detach().index_select(0, ids).sub_(centre).requires_grad_()
    columns = colour_columns(sh_degree)
    coefficients = colour[:, :columns].index_select(0, own).view(len(own), columns // 3, 3).requires_grad_()
    with torch.enable_grad():
        shade = ops.spherical_harmonics(degrees_to_use=sh_degree, dirs=directions, coeffs=coefficients)
    splats = Splats(
        means2d.detach(),
        conics.detach(),
        torch.add(shade.detach(), 0.5).clamp_min_(0.0),
        drawn_opacities if compensations is None else drawn_opacities * compensations.detach(),
        depths.detach(),
        radii,
    )
    screen = means2d, depths, conics, compensations
    size = camera.width, camera.height
    lights = directions, coefficients
    return Projected(splats, ids, slots, own, size, (means, quats, scales), drawn_opacities, screen, lights, shade)


def project_backward(projected: Projected, v: SplatGradients, finite: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Gradient rows [n, 16] and gradients of the coefficients [n, columns] of the drawn rows, in the arena's layout.

    Zeros for rows that are not finite, and for all where `finite` (0-d bool) is false.
    """
    v_means, v_quats, v_scales, v_opacities = _geometry_gradients(projected, v)
    shown = torch.where(projected.splats.colours > 0, v.colours, 0.0)
    v_directions, v_coefficients = torch.autograd.grad(projected.shade, projected.lights, shown)
    keep = (projected.splats.radii > 0).all(-1)
    if finite is not None:
        keep &= finite
    opacities, (width, height) = projected.opacities, projected.size
    rows = torch.empty((len(keep), GRAD_GEOMETRY_COLUMNS), device=keep.device)
    torch.add(v_means, v_directions, out=rows[:, MEANS])
    rows[:, QUATS] = v_quats
    torch.mul(v_scales, projected.rows[2].detach().index_select(0, projected.ids), out=rows[:, LOG_SCALES])
    torch.mul(v_opacities, opacities * (1 - opacities), out=rows[:, LOGIT_OPACITIES])
    rows[:, GRAD_DRAWN] = 1
    torch.hypot(v.screen[:, 0] * (width / 2), v.screen[:, 1] * (height / 2), out=rows[:, GRAD_SCREEN])
    rows[:, GRAD_PIXELS:] = 0
    if v.pixels is not None:
        rows[:, GRAD_PIXELS] = v.pixels
        torch.square(v.pixels, out=rows[:, GRAD_SQUARES])
    # Not a product: 0 times what is not finite is not 0.
    dropped = ~keep[:, None]
    return rows.masked_fill_(dropped, 0.0), v_coefficients.flatten(1).masked_fill_(dropped, 0.0)


def _geometry_gradients(projected: Projected, v: SplatGradients) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of means, quaternions, scales and opacities of the drawn rows."""
    means2d, depths, conics, compensations = projected.screen
    outputs, cotangents, v_opacities = [means2d, conics], [v.means2d, v.conics], v.opacities
    if v.depths is not None:
        outputs.append(depths)
        cotangents.append(v.depths)
    if compensations is not None:
        outputs.append(compensations)
        cotangents.append(v.opacities * projected.opacities)
        v_opacities = v.opacities * compensations.detach()
    sparse = torch.autograd.grad(outputs, projected.rows, cotangents)
    v_means, v_quats, v_scales = (gradient._values() for gradient in sparse)  # in the order of `ids`
    return v_means, v_quats, v_scales, v_opacities


def _camera_tensors(camera: Camera, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """World to camera [4, 4], K [3, 3], camera centre [3] on the device, in one small copy."""
    parts = [camera.world_to_camera, camera.K, camera.position]
    flat = np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in parts]).astype(np.float32)
    viewmat, intrinsics, centre = on_device(flat, device).split([16, 9, 3])
    return viewmat.view(4, 4), intrinsics.view(3, 3), centre


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    host = torch.from_numpy(values)
    if device.type == "cuda":
        host = host.pin_memory()  # from pageable memory the copy may wait for the stream
    return host.to(device, non_blocking=True)


def add_at(slots: Tensor, rows: Tensor, coefficients: Tensor, grad_geometry: Tensor, grad_colour: Tensor) -> None:
    """Adds rows [n, 16] and coefficients [n, columns] at slots [n], which are unique: no order of additions to differ."""
    grad_geometry.index_add_(0, slots, rows)
    grad_colour[:, : coefficients.shape[1]].index_add_(0, slots, coefficients)
