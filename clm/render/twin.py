"""The rasteriser in plain differentiable torch: slow, short, any dtype. It is the judge of the fast backends.

Same conventions as gsplat 1.5.3: `project` does activations, projection and spherical harmonics; `composite` blends the
projected Gaussians tile by tile; autograd gives every gradient. In float64 it can be checked by finite differences. The
loss that goes with it is `torch_loss.loss_terms`.
Invariant: the image does not depend on `tile`, because a Gaussian's rectangle contains every pixel it can touch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from clm.camera import Camera
from clm.kernels.numbers import ALPHA_MAX, ALPHA_MIN, BLUR, SIGMAS, TRANSMITTANCE_MIN


@dataclass
class Projection:
    """Per-Gaussian values in screen space; culled rows have radii 0. The tensors stay in the autograd graph."""

    means2d: Tensor  # [N, 2] px
    conics: Tensor  # [N, 3] inverse covariance (xx, xy, yy), 1/px^2
    opacities: Tensor  # [N] after sigmoid and, if antialiased, compensation
    colours: Tensor  # [N, 3]
    depths: Tensor  # [N] camera z
    radii: Tensor  # [N, 2] int64 px
    absgrad: Tensor  # [N, 2] sum over pixels of |dL/d mean2d|, filled by backward


def rotation_matrices(quats: Tensor) -> Tensor:
    """[N, 4] quaternions wxyz of any norm -> [N, 3, 3]."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, -1).reshape(-1, 3, 3)


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """Real spherical harmonics with INRIA's signs at unit directions [N, 3] -> [N, (degree+1)^2]."""
    x, y, z = directions.unbind(-1)
    out = [torch.full_like(x, 0.28209479177387814)]
    if degree >= 1:
        c1 = 0.4886025119029199
        out += [-c1 * y, c1 * z, -c1 * x]
    if degree >= 2:
        xx, yy, zz = x * x, y * y, z * z
        out += [1.0925484305920792 * x * y, -1.0925484305920792 * y * z, 0.31539156525252005 * (2 * zz - xx - yy)]
        out += [-1.0925484305920792 * x * z, 0.5462742152960396 * (xx - yy)]
    if degree >= 3:
        out += [-0.5900435899266435 * y * (3 * xx - yy), 2.890611442640554 * x * y * z]
        out += [-0.4570457994644658 * y * (4 * zz - xx - yy), 0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy)]
        out += [-0.4570457994644658 * x * (4 * zz - xx - yy), 1.445305721320277 * z * (xx - yy)]
        out += [-0.5900435899266435 * x * (xx - 3 * yy)]
    return torch.stack(out, -1)


def _jacobians(means_camera: Tensor, camera: Camera) -> Tensor:
    """Pinhole Jacobians [N, 2, 3] with x/z, y/z clamped to 0.15 image widths outside the image on each side."""
    x, y, z = means_camera.unbind(-1)
    margin_x, margin_y = 0.15 * camera.width / camera.fx, 0.15 * camera.height / camera.fy
    u = (x / z).clamp(-(camera.cx / camera.fx + margin_x), (camera.width - camera.cx) / camera.fx + margin_x)
    v = (y / z).clamp(-(camera.cy / camera.fy + margin_y), (camera.height - camera.cy) / camera.fy + margin_y)
    zero = torch.zeros_like(z)
    rows = [camera.fx / z, zero, -camera.fx * u / z, zero, camera.fy / z, -camera.fy * v / z]
    return torch.stack(rows, -1).reshape(-1, 2, 3)


class Footprints(NamedTuple):
    """Gaussians on the screen, before anything is culled; of rows out of range the values mean nothing."""

    means2d: Tensor  # [N, 2] px
    conics: Tensor  # [N, 3] inverse covariance (xx, xy, yy), 1/px^2
    depths: Tensor  # [N] camera z
    compensations: Tensor  # [N] sqrt of the determinants' ratio without and with the blur: what antialiasing multiplies
    variances: Tensor  # [N, 2] px^2, blur included
    valid: Tensor  # [N] bool: in range, and a covariance that can be inverted


def footprints(means: Tensor, quats: Tensor, scales: Tensor, camera: Camera) -> Footprints:
    """Means [N, 3], quaternions [N, 4] of any norm, standard deviations [N, 3] -> screen space, pixels."""
    world_to_camera = torch.as_tensor(camera.world_to_camera, dtype=means.dtype)
    rotation, translation = world_to_camera[:3, :3], world_to_camera[:3, 3]
    means_camera = means @ rotation.T + translation
    z = means_camera[:, 2]
    in_range = (z >= camera.near) & (z <= camera.far)
    # Rows out of range would put infinities into the graph; their place is taken by a harmless point.
    safe = torch.where(in_range[:, None], means_camera, torch.ones_like(means_camera))
    half = _jacobians(safe, camera) @ rotation @ (rotation_matrices(quats) * scales[:, None, :])  # [N, 2, 3]
    cov = half @ half.transpose(1, 2)
    a0, b, c0 = cov[:, 0, 0], cov[:, 0, 1], cov[:, 1, 1]
    a, c = a0 + BLUR, c0 + BLUR
    det = a * c - b * b
    ratio = (a0 * c0 - b * b) / det
    positive = ratio > 0
    compensations = torch.where(positive, torch.where(positive, ratio, torch.ones_like(ratio)).sqrt(), 0.0)
    x, y, zs = safe.unbind(-1)
    means2d = torch.stack([camera.fx * x / zs + camera.cx, camera.fy * y / zs + camera.cy], -1)
    conics = torch.stack([c / det, -b / det, a / det], -1)
    valid = in_range & (det > 0) & torch.isfinite(det)
    return Footprints(means2d, conics, z, compensations, torch.stack([a, c], -1), valid)


@torch.no_grad()
def screen_radii(f: Footprints, opacities: Tensor | None, camera: Camera, radius_clip: float = 0.0) -> Tensor:
    """Radii [N, 2] i64 px; 0 for rows that are culled. Opacities [N] are compensated ones; None: no cull by opacity."""
    extent = torch.full_like(f.depths, SIGMAS)
    drawn = f.valid
    if opacities is not None:
        extent = torch.sqrt(2 * torch.log((255 * opacities).clamp(min=1.0))).clamp(max=SIGMAS)
        drawn = drawn & (opacities >= ALPHA_MIN)
    radii = torch.ceil(extent[:, None] * f.variances.sqrt())
    size = torch.tensor([camera.width, camera.height], dtype=radii.dtype)
    drawn = drawn & ((f.means2d + radii > 0) & (f.means2d - radii < size)).all(-1) & ~(radii <= radius_clip).all(-1)
    return torch.where(drawn[:, None], radii.clamp(max=1e9), 0.0).long()


def project(
    geometry: Tensor,
    colour: Tensor,
    camera: Camera,
    sh_degree: int,
    antialiased: bool = False,
    radius_clip: float = 0.0,
) -> Projection:
    """Raw rows geometry [N, 12] and colour [N, 48] (log scales, logit opacities, SH) -> screen space, pixels."""
    means = geometry[:, 0:3]
    f = footprints(means, geometry[:, 3:7], torch.exp(geometry[:, 7:10]), camera)
    opacities = torch.sigmoid(geometry[:, 10])
    if antialiased:
        opacities = opacities * f.compensations
    radii = screen_radii(f, opacities, camera, radius_clip)
    centre = torch.as_tensor(camera.position, dtype=geometry.dtype)
    directions = torch.nn.functional.normalize(means - centre, dim=-1)
    coefficients = colour[:, : 3 * (sh_degree + 1) ** 2].reshape(len(colour), -1, 3)
    colours = (sh_basis(directions, sh_degree)[:, :, None] * coefficients).sum(1) + 0.5
    return Projection(
        f.means2d, f.conics, opacities, colours.clamp(min=0), f.depths, radii, torch.zeros_like(f.means2d)
    )


def blend(
    p: Projection, ids: Tensor, pixels: Tensor, alpha_max: float = ALPHA_MAX
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Colour [P, C], summed depth [P], final transmittance [P] of pixels [P, 2] under depth-ordered rows `ids` [n]; and
    the weight of each row [P, n]."""
    means = p.means2d[ids]
    delta = pixels[:, None, :] - means[None]  # [P, n, 2]
    if delta.requires_grad:

        def add_absolute(gradient: Tensor) -> None:
            p.absgrad.index_add_(0, ids, gradient.abs().sum(0))

        delta.register_hook(add_absolute)
    conics = p.conics[ids]
    dx, dy = delta.unbind(-1)
    sigma = 0.5 * (conics[:, 0] * dx * dx + conics[:, 2] * dy * dy) + conics[:, 1] * dx * dy
    alpha = (p.opacities[ids] * torch.exp(-sigma)).clamp(max=alpha_max)
    alpha = torch.where((sigma >= 0) & (alpha >= ALPHA_MIN), alpha, 0.0)
    after = torch.cumprod(1 - alpha, 1)
    # The product only falls, so the Gaussian that would cross the limit and all behind it are excluded together.
    alive = after.detach() > TRANSMITTANCE_MIN
    alpha = torch.where(alive, alpha, 0.0)
    after = torch.cumprod(1 - alpha, 1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
    weights = alpha * before
    return weights @ p.colours[ids], weights @ p.depths[ids], after[:, -1], weights


def composite(
    p: Projection, camera: Camera, background: Tensor, tile: int = 16, alpha_max: float = ALPHA_MAX
) -> tuple[Tensor, Tensor, Tensor]:
    """Blend front to back: rgb [3, H, W], alpha [H, W], expected depth [H, W]."""
    dtype, height, width = p.means2d.dtype, camera.height, camera.width
    order = torch.argsort(p.depths.detach(), stable=True)
    order = order[(p.radii[order] > 0).all(-1)]
    low, high = (p.means2d - p.radii).detach()[order], (p.means2d + p.radii).detach()[order]
    rows = []
    for y0 in range(0, height, tile):
        cells = []
        h = min(tile, height - y0)
        for x0 in range(0, width, tile):
            w = min(tile, width - x0)
            near_tile = (low[:, 0] < x0 + w) & (high[:, 0] > x0) & (low[:, 1] < y0 + h) & (high[:, 1] > y0)
            ids = order[near_tile]
            ys, xs = torch.meshgrid(torch.arange(y0, y0 + h), torch.arange(x0, x0 + w), indexing="ij")
            pixels = torch.stack([xs, ys], -1).reshape(-1, 2).to(dtype) + 0.5
            if len(ids):
                rgb, depth, transmittance, _ = blend(p, ids, pixels, alpha_max)
            else:
                rgb, depth = torch.zeros(len(pixels), 3, dtype=dtype), torch.zeros(len(pixels), dtype=dtype)
                transmittance = torch.ones(len(pixels), dtype=dtype)
            rgb = rgb + transmittance[:, None] * background.to(dtype)
            cell = torch.cat([rgb, 1 - transmittance[:, None], depth[:, None]], 1)
            cells.append(cell.T.reshape(5, h, w))
        rows.append(torch.cat(cells, 2))
    out = torch.cat(rows, 1)
    return out[0:3], out[3], out[4] / out[3].clamp(min=1e-10)


def rasterize(
    geometry: Tensor,
    colour: Tensor,
    camera: Camera,
    sh_degree: int,
    background: Tensor,
    antialiased: bool = False,
    radius_clip: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows -> rgb [3, H, W], alpha [H, W], expected depth [H, W]. For means2d and radii call `project`, `composite`."""
    p = project(geometry, colour, camera, sh_degree, antialiased, radius_clip)
    return composite(p, camera, background)
