"""The compiled half of gsplat (`gsplat.cuda._backend._C`) on the CPU, made of our twin: gsplat's own Python runs above it.

Argument lists, checks, dtypes and shapes of the results are those of gsplat 1.5.3's C++ (csrc/*.cpp; a wrong count of
arguments is a TypeError there, too). So are its oddities that callers must survive: a view without rows is the end of the
process (here an error), rows that are not finite are listed as drawn with radius 0 and get gradients that are not finite,
gradients arrive unasked for depths, an optional result that was not asked for is None.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clm.camera import Camera
from clm.render import gsplat_ops, twin
from clm.render.cuda_check import CudaFacts

CHANNELS = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 512, 513)
VERSION = "1.5.3"


class CameraModelType(enum.Enum):
    PINHOLE = 0
    ORTHO = 1
    FISHEYE = 2
    FTHETA = 3


def check_input(*tensors: Tensor | None) -> None:
    """CHECK_INPUT of Common.h, but for the device."""
    for tensor in tensors:
        if tensor is not None and not tensor.is_contiguous():
            raise RuntimeError("must be contiguous")


# ---- projection


def _camera(viewmat: Tensor, k: Tensor, width: int, height: int) -> Camera:
    values = k.double().numpy()
    return Camera(width, height, values[0, 0], values[1, 1], values[0, 2], values[1, 2], viewmat.double().numpy())


def _check_projection(means: Tensor, covars: Any, quats: Tensor, scales: Tensor, *others: Tensor, model: Any) -> None:
    check_input(means, quats, scales, *others)
    assert covars is None and model is CameraModelType.PINHOLE, "the stub knows quaternions, scales and pinholes"
    assert means.dtype == quats.dtype == scales.dtype == torch.float32
    if means.numel() == 0:
        raise RuntimeError("floating point exception: the number of rows is divided by itself")


def _project(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor | None, camera: Camera, near: float, far: float,
    radius_clip: float, compensate: bool,
) -> tuple[twin.Footprints, Tensor, Tensor]:  # fmt: skip
    """Footprints of all rows, radii [N, 2], and which rows are listed: those that draw, and those that are not finite."""
    rows = [values.double() for values in (means, quats, scales)]
    f = twin.footprints(*rows, dataclasses.replace(camera, near=near, far=far))
    effective = None if opacities is None else opacities.double() * (f.compensations if compensate else 1.0)
    radii = twin.screen_radii(f, effective, camera, radius_clip)
    bad = ~torch.isfinite(means).all(-1)
    spoiled = torch.where(bad, torch.nan, 1.0)
    f = f._replace(means2d=f.means2d * spoiled[:, None], conics=f.conics * spoiled[:, None], depths=f.depths * spoiled)
    return f, radii, (radii > 0).all(-1) | bad


def projection_ewa_3dgs_packed_fwd(
    means: Tensor, covars: Any, quats: Tensor, scales: Tensor, opacities: Tensor | None, viewmats: Tensor, ks: Tensor,
    width: int, height: int, eps2d: float, near: float, far: float, radius_clip: float, compensate: bool, model: Any,
) -> tuple[Any, ...]:  # fmt: skip
    _check_projection(means, covars, quats, scales, viewmats, ks, model=model)
    assert eps2d == twin.BLUR and means.dim() == 2 and viewmats.shape == (1, 4, 4)
    camera = _camera(viewmats[0], ks[0], width, height)
    f, radii, listed = _project(means, quats, scales, opacities, camera, near, far, radius_clip, compensate)
    ids = torch.nonzero(listed).flatten()
    return (
        torch.tensor([0, len(ids)], dtype=torch.int32),
        torch.zeros_like(ids),
        torch.zeros_like(ids),
        ids,
        radii[ids].to(torch.int32),
        f.means2d[ids].float(),
        f.depths[ids].float(),
        f.conics[ids].float(),
        f.compensations[ids].float() if compensate else None,
    )


def _project_backward(
    rows: tuple[Tensor, Tensor, Tensor], ids: Tensor, camera: Camera, v_means2d: Tensor, v_depths: Tensor,
    v_conics: Tensor, v_compensations: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of means, quaternions and scales at the rows `ids`; a row that is not finite gets NaN."""
    with torch.enable_grad():
        leaves = [values[ids].double().requires_grad_() for values in rows]
        f = twin.footprints(*leaves, dataclasses.replace(camera, near=-math.inf, far=math.inf))
        total = (f.means2d * v_means2d).sum() + (f.depths * v_depths).sum() + (f.conics * v_conics).sum()
        if v_compensations is not None:
            total = total + (f.compensations * v_compensations).sum()
        gradients = torch.autograd.grad(total, leaves)
    spoiled = torch.where(torch.isfinite(leaves[0]).all(-1, keepdim=True), 1.0, torch.nan)
    return tuple((gradient * spoiled).float() for gradient in gradients)


def projection_ewa_3dgs_packed_bwd(
    means: Tensor, covars: Any, quats: Tensor, scales: Tensor, viewmats: Tensor, ks: Tensor, width: int, height: int,
    eps2d: float, model: Any, batch_ids: Tensor, camera_ids: Tensor, gaussian_ids: Tensor, conics: Tensor,
    compensations: Tensor | None, v_means2d: Tensor, v_depths: Tensor, v_conics: Tensor,
    v_compensations: Tensor | None, viewmats_requires_grad: bool, sparse_grad: bool,
) -> tuple[Any, ...]:  # fmt: skip
    _check_projection(means, covars, quats, scales, viewmats, ks, model=model)
    check_input(batch_ids, camera_ids, gaussian_ids, conics, compensations, v_means2d, v_depths, v_conics)
    check_input(v_compensations)
    n = len(gaussian_ids)
    assert gaussian_ids.dtype == torch.int64 and conics.shape == v_conics.shape == (n, 3)
    assert v_means2d.shape == (n, 2) and v_depths.shape == (n,) and not viewmats_requires_grad
    assert v_compensations is None or (compensations is not None and v_compensations.shape == (n,))
    camera = _camera(viewmats[0], ks[0], width, height)
    packed = _project_backward(
        (means, quats, scales), gaussian_ids, camera, v_means2d, v_depths, v_conics, v_compensations
    )
    if not sparse_grad:
        packed = tuple(
            torch.zeros_like(values).index_add_(0, gaussian_ids, gradient)
            for values, gradient in zip((means, quats, scales), packed, strict=True)
        )
    v_means, v_quats, v_scales = packed
    return v_means, None, v_quats, v_scales, None


def projection_ewa_3dgs_fused_fwd(
    means: Tensor, covars: Any, quats: Tensor, scales: Tensor, opacities: Tensor | None, viewmats: Tensor, ks: Tensor,
    width: int, height: int, eps2d: float, near: float, far: float, radius_clip: float, compensate: bool, model: Any,
) -> tuple[Any, ...]:  # fmt: skip
    _check_projection(means, covars, quats, scales, viewmats, ks, model=model)
    assert eps2d == twin.BLUR and means.dim() == 2 and viewmats.shape == (1, 4, 4)
    camera = _camera(viewmats[0], ks[0], width, height)
    f, radii, listed = _project(means, quats, scales, opacities, camera, near, far, radius_clip, compensate)
    outputs = [radii.to(torch.int32), f.means2d.float(), f.depths.float(), f.conics.float()]
    for values in outputs[1:]:
        values[~listed] = torch.nan  # not initialised there
    return *(values[None].contiguous() for values in outputs), f.compensations.float()[None] if compensate else None


def projection_ewa_3dgs_fused_bwd(
    means: Tensor, covars: Any, quats: Tensor, scales: Tensor, viewmats: Tensor, ks: Tensor, width: int, height: int,
    eps2d: float, model: Any, radii: Tensor, conics: Tensor, compensations: Tensor | None, v_means2d: Tensor,
    v_depths: Tensor, v_conics: Tensor, v_compensations: Tensor | None, viewmats_requires_grad: bool,
) -> tuple[Any, ...]:  # fmt: skip
    _check_projection(means, covars, quats, scales, viewmats, ks, model=model)
    check_input(radii, conics, compensations, v_means2d, v_depths, v_conics, v_compensations)
    n = len(means)
    assert v_means2d.shape == (1, n, 2) and v_depths.shape == (1, n) and v_conics.shape == (1, n, 3)
    ids = torch.nonzero((radii[0] > 0).all(-1)).flatten()
    camera, none = _camera(viewmats[0], ks[0], width, height), v_compensations is None
    packed = _project_backward(
        (means, quats, scales), ids, camera, v_means2d[0, ids], v_depths[0, ids], v_conics[0, ids],
        None if none else v_compensations[0, ids],
    )  # fmt: skip
    v_means, v_quats, v_scales = (
        torch.zeros_like(values).index_add_(0, ids, gradient)
        for values, gradient in zip((means, quats, scales), packed, strict=True)
    )
    return v_means, None, v_quats, v_scales, None


# ---- spherical harmonics


def _check_harmonics(degree: int, dirs: Tensor, coeffs: Tensor, masks: Tensor | None) -> None:
    check_input(dirs, coeffs, masks)
    assert coeffs.shape[-1] == 3 and dirs.shape[-1] == 3 and coeffs.shape[:-2] == dirs.shape[:-1]
    assert (degree + 1) ** 2 <= coeffs.shape[-2]


def _harmonics(degree: int, dirs: Tensor, coeffs: Tensor) -> Tensor:
    basis = twin.sh_basis(torch.nn.functional.normalize(dirs, dim=-1), degree)
    return (basis[:, :, None] * coeffs[:, : (degree + 1) ** 2]).sum(1)


def spherical_harmonics_fwd(degree: int, dirs: Tensor, coeffs: Tensor, masks: Tensor | None) -> Tensor:
    _check_harmonics(degree, dirs, coeffs, masks)
    k = coeffs.shape[-2]
    colours = _harmonics(degree, dirs.reshape(-1, 3).double(), coeffs.reshape(-1, k, 3).double()).float()
    if masks is not None:
        colours[~masks.reshape(-1)] = 0
    return colours.reshape(dirs.shape)


def spherical_harmonics_bwd(
    bases: int, degree: int, dirs: Tensor, coeffs: Tensor, masks: Tensor | None, v_colours: Tensor, compute_v_dirs: bool
) -> tuple[Tensor, Tensor | None]:
    _check_harmonics(degree, dirs, coeffs, masks)
    check_input(v_colours)
    assert bases == coeffs.shape[-2] and v_colours.shape == dirs.shape
    keep = torch.ones(dirs.shape[:-1], dtype=torch.bool) if masks is None else masks
    with torch.enable_grad():
        leaves = [dirs.reshape(-1, 3).double(), coeffs.reshape(-1, bases, 3).double()]
        for leaf in leaves:
            leaf.requires_grad_()
        total = (_harmonics(degree, *leaves) * v_colours.reshape(-1, 3))[keep.reshape(-1)].sum()
        v_dirs, v_coeffs = torch.autograd.grad(total, leaves, materialize_grads=True)
    v_dirs, v_coeffs = v_dirs.float().reshape(dirs.shape), v_coeffs.float().reshape(coeffs.shape)
    return v_coeffs, v_dirs if compute_v_dirs else None


# ---- tiles


def _bits(count: int) -> int:
    return math.floor(math.log2(count)) + 1


def intersect_tile(
    means2d: Tensor, radii: Tensor, depths: Tensor, image_ids: Tensor | None, gaussian_ids: Tensor | None, images: int,
    tile_size: int, tile_width: int, tile_height: int, sort: bool, segmented: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    check_input(means2d, radii, depths)
    assert radii.dtype == torch.int32 and means2d.dtype == depths.dtype == torch.float32
    assert radii.shape == means2d.shape and depths.shape == means2d.shape[:-1]
    packed = means2d.dim() == 2
    if packed and (image_ids is None or gaussian_ids is None):
        raise RuntimeError("When packed is set, image_ids and gaussian_ids must be provided.")
    assert _bits(images) + _bits(tile_width * tile_height) <= 32 and not segmented
    flat, extent = means2d.reshape(-1, 2).double().numpy(), radii.reshape(-1, 2).numpy()
    count = np.zeros(len(flat), np.int32)
    grid = np.array([tile_width, tile_height])
    drawn = np.flatnonzero((extent > 0).all(1))
    low = np.clip(np.floor((flat[drawn] - extent[drawn]) / tile_size), 0, grid).astype(int)
    high = np.clip(np.ceil((flat[drawn] + extent[drawn]) / tile_size), 0, grid).astype(int)
    count[drawn] = (high - low).prod(1)
    bits = depths.reshape(-1).numpy().view(np.uint32).astype(np.int64)
    image_of = image_ids.numpy() if packed else np.arange(len(flat)) // max(1, len(flat) // images)
    keys, values = [], []
    for row, (x0, y0), (x1, y1) in zip(drawn, low, high, strict=True):
        ys, xs = np.mgrid[y0:y1, x0:x1]
        tiles = (ys * tile_width + xs).reshape(-1).astype(np.int64)
        high_bits = np.int64(image_of[row]) << (32 + _bits(tile_width * tile_height))
        keys.append(high_bits | (tiles << 32) | bits[row])
        values.append(np.full(len(tiles), row, np.int32))
    isect_ids = np.concatenate([np.zeros(0, np.int64), *keys])
    flatten_ids = np.concatenate([np.zeros(0, np.int32), *values])
    if sort:
        order = np.argsort(isect_ids, kind="stable")
        isect_ids, flatten_ids = isect_ids[order], flatten_ids[order]
    return torch.from_numpy(count).reshape(depths.shape), torch.from_numpy(isect_ids), torch.from_numpy(flatten_ids)


def intersect_offset(isect_ids: Tensor, images: int, tile_width: int, tile_height: int) -> Tensor:
    check_input(isect_ids)
    tiles = tile_width * tile_height
    high = isect_ids.numpy() >> 32
    places = (high >> _bits(tiles)) * tiles + (high & ((1 << _bits(tiles)) - 1))
    offsets = np.searchsorted(places, np.arange(images * tiles)).astype(np.int32)
    return torch.from_numpy(offsets).reshape(images, tile_height, tile_width)


# ---- pixels


def _tiles(
    width: int, height: int, tile_size: int, tile_offsets: Tensor, flatten_ids: Tensor
) -> Iterator[tuple[int, Any, int, Tensor]]:
    """(image, index of its pixels in [H, W], first pair, rows in depth order) of every tile."""
    images, tile_height, tile_width = tile_offsets.reshape(-1, *tile_offsets.shape[-2:]).shape
    bounds = [*tile_offsets.reshape(-1).tolist(), len(flatten_ids)]
    for index in range(images * tile_height * tile_width):
        image, tile = divmod(index, tile_height * tile_width)
        y, x = (tile_size * place for place in divmod(tile, tile_width))
        place = np.s_[y : min(y + tile_size, height), x : min(x + tile_size, width)]
        yield image, place, bounds[index], flatten_ids[bounds[index] : bounds[index + 1]].long()


def _centres(place: tuple[slice, slice]) -> Tensor:
    ys, xs = torch.meshgrid(*(torch.arange(part.start, part.stop) for part in place), indexing="ij")
    return torch.stack([xs, ys], -1).reshape(-1, 2).double() + 0.5


def _rasterize(
    splats: twin.Projection, backgrounds: Tensor, width: int, height: int, tile_size: int, tile_offsets: Tensor,
    flatten_ids: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Colours [I, H, W, C], alphas [I, H, W, 1], index of the last pair of each pixel [I, H, W]; differentiable."""
    images, channels = len(backgrounds), backgrounds.shape[1]
    shape = images, height, width
    colours, last = torch.zeros(*shape, channels, dtype=torch.float64), torch.zeros(shape, dtype=torch.int32)
    remaining = torch.ones(*shape, 1, dtype=torch.float64)
    limit = gsplat_ops.alpha_limit(VERSION)
    for image, place, first, ids in _tiles(width, height, tile_size, tile_offsets, flatten_ids):
        if len(ids) == 0:
            continue
        area = tuple(part.stop - part.start for part in place)
        colour, _, transmittance, weights = twin.blend(splats, ids, _centres(place), limit)
        colours[image][place] = colour.reshape(*area, channels)
        remaining[image][place] = transmittance.reshape(*area, 1)
        touched = weights.detach() > 0
        reach = torch.where(touched, torch.arange(len(ids)), -1).max(1).values
        last[image][place] = torch.where(reach >= 0, first + reach, 0).to(torch.int32).reshape(area)
    return colours + remaining * backgrounds[:, None, None], 1 - remaining, last


def _check_pixels(
    means2d: Tensor, conics: Tensor, colors: Tensor, opacities: Tensor, backgrounds: Tensor | None, masks: Any,
    tile_offsets: Tensor, flatten_ids: Tensor,
) -> None:  # fmt: skip
    check_input(means2d, conics, colors, opacities, backgrounds, tile_offsets, flatten_ids)
    if colors.shape[-1] not in CHANNELS:
        raise RuntimeError(f"Unsupported number of channels: {colors.shape[-1]}")
    assert masks is None and tile_offsets.dtype == flatten_ids.dtype == torch.int32
    images, rows = math.prod(tile_offsets.shape[:-2]), means2d.shape[:-1]
    assert conics.shape == (*rows, 3) and colors.shape[:-1] == rows and opacities.shape == rows
    # What the kernel reads without a check: one background per image.
    assert backgrounds is None or backgrounds.numel() == images * colors.shape[-1]


def _splats(means2d: Tensor, conics: Tensor, colors: Tensor, opacities: Tensor) -> twin.Projection:
    """In float64, and without the dimensions of images."""
    means2d, conics, colors = (values.double().flatten(0, -2) for values in (means2d, conics, colors))
    n = len(means2d)
    nothing = torch.zeros(n, dtype=torch.float64), torch.ones(n, 2, dtype=torch.int64), torch.zeros_like(means2d)
    return twin.Projection(means2d, conics, opacities.double().flatten(), colors, *nothing)


def _behind(backgrounds: Tensor | None, tile_offsets: Tensor, channels: int) -> Tensor:
    images = math.prod(tile_offsets.shape[:-2])
    if backgrounds is None:
        return torch.zeros(images, channels, dtype=torch.float64)
    return backgrounds.double().reshape(images, channels)


def rasterize_to_pixels_3dgs_fwd(
    means2d: Tensor, conics: Tensor, colors: Tensor, opacities: Tensor, backgrounds: Tensor | None, masks: Any,
    width: int, height: int, tile_size: int, tile_offsets: Tensor, flatten_ids: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    _check_pixels(means2d, conics, colors, opacities, backgrounds, masks, tile_offsets, flatten_ids)
    behind = _behind(backgrounds, tile_offsets, colors.shape[-1])
    splats = _splats(means2d, conics, colors, opacities)
    outputs = _rasterize(splats, behind, width, height, tile_size, tile_offsets, flatten_ids)
    images = tile_offsets.shape[:-2]
    colours, alphas, last = (values.reshape(*images, *values.shape[1:]) for values in outputs)
    return colours.float(), alphas.float(), last


def rasterize_to_pixels_3dgs_bwd(
    means2d: Tensor, conics: Tensor, colors: Tensor, opacities: Tensor, backgrounds: Tensor | None, masks: Any,
    width: int, height: int, tile_size: int, tile_offsets: Tensor, flatten_ids: Tensor, render_alphas: Tensor,
    last_ids: Tensor, v_render_colors: Tensor, v_render_alphas: Tensor, absgrad: bool,
) -> tuple[Any, ...]:  # fmt: skip
    _check_pixels(means2d, conics, colors, opacities, backgrounds, masks, tile_offsets, flatten_ids)
    check_input(render_alphas, last_ids, v_render_colors, v_render_alphas)
    shape = *tile_offsets.shape[:-2], height, width
    assert render_alphas.shape == v_render_alphas.shape == (*shape, 1) and last_ids.shape == shape
    assert v_render_colors.shape == (*shape, colors.shape[-1]) and v_render_colors.dtype == torch.float32
    behind = _behind(backgrounds, tile_offsets, colors.shape[-1])
    with torch.enable_grad():
        splats = _splats(*(values.detach() for values in (means2d, conics, colors, opacities)))
        leaves = (splats.means2d, splats.conics, splats.colours, splats.opacities)
        for leaf in leaves:
            leaf.requires_grad_()
        colours, alphas, _ = _rasterize(splats, behind, width, height, tile_size, tile_offsets, flatten_ids)
        total = (colours * v_render_colors.reshape(colours.shape)).sum()
        total = total + (alphas * v_render_alphas.reshape(alphas.shape)).sum()
        if total.requires_grad:
            gradients = torch.autograd.grad(total, leaves)
        else:  # no pair at all
            gradients = tuple(torch.zeros_like(leaf) for leaf in leaves)
    absolute = splats.absgrad.float().reshape(means2d.shape) if absgrad else None
    inputs = (means2d, conics, colors, opacities)
    return absolute, *(g.float().reshape(value.shape) for g, value in zip(gradients, inputs, strict=True))


# ---- in gsplat's place

FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        projection_ewa_3dgs_packed_fwd, projection_ewa_3dgs_packed_bwd, projection_ewa_3dgs_fused_fwd,
        projection_ewa_3dgs_fused_bwd, spherical_harmonics_fwd, spherical_harmonics_bwd, intersect_tile,
        intersect_offset, rasterize_to_pixels_3dgs_fwd, rasterize_to_pixels_3dgs_bwd,
    )
}  # fmt: skip
PROJECTION, PIXELS, PIXELS_BACKWARD = (
    "projection_ewa_3dgs_packed_fwd", "rasterize_to_pixels_3dgs_fwd", "rasterize_to_pixels_3dgs_bwd"
)  # fmt: skip


def facts() -> CudaFacts:
    return CudaFacts("A GPU", 24 * 2**30, "2.11", "13.0", None, None, VERSION, True)


def install(
    monkeypatch: pytest.MonkeyPatch,
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
    **replaced: Callable[..., Any],
) -> None:
    """gsplat's own Python runs on this machine, without CUDA; `replaced` functions stand for those of the stub."""
    kernels = types.SimpleNamespace(CameraModelType=CameraModelType, **CameraModelType.__members__)
    for name, function in {**FUNCTIONS, **replaced}.items():
        assert name in FUNCTIONS, name
        setattr(kernels, name, wrap(function))
    module = types.ModuleType("gsplat.cuda._backend")
    module._C = kernels  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gsplat.cuda._backend", module)
    monkeypatch.setattr(gsplat_ops, "check_cuda", facts)
