"""From splats to an image and back on the device: gsplat's lists of (tile, splat) pairs and its blending, whole or in bands.

With a limit on the lists they are built for a band of tile rows at a time, forward and once more backward: the splats move
up by what lies above the band. Invariant: nothing here waits for the device but gsplat's own reading of the number of pairs,
and with a limit ours of the pairs of each tile row; before each, `settle` waits without holding the other lanes up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clm.errors import ResourceError
from clm.kernels.numbers import TILE as _TILE
from clm.render import splats as seam
from clm.render.gsplat_ops import Ops
from clm.render.splats import SplatGradients, Splats

PAIR_BYTES = 24  # of a pair while pairs are sorted: keys and ids, twice
MOST_PAIRS = 2**31 - 1  # gsplat keeps where a tile's pairs begin in int32

Band = tuple[int, int]  # tile rows [begin, end)


class Channels(NamedTuple):
    """What an image has beside red, green and blue, in this order: one that counts pixels, one of depths."""

    counted: bool
    depth: bool


class Leaves(NamedTuple):
    """What gsplat blends, as an image in a batch of one: so it takes a background in every release, and no image ids."""

    means2d: Tensor  # [1, n, 2]
    conics: Tensor  # [1, n, 3]
    colours: Tensor  # [1, n, 3 to 5] as `Channels` says
    opacities: Tensor  # [1, n]

    def moved_up(self, pixels: int) -> Leaves:
        """As an image sees them that begins so many pixels lower."""
        if pixels == 0:
            return self
        means2d = self.means2d.detach().clone()
        means2d[..., 1] -= pixels
        return self._replace(means2d=means2d)

    def differentiable(self) -> Leaves:
        """The same values as leaves of a new graph."""
        return Leaves(*(values.detach().requires_grad_() for values in self))


@dataclass(frozen=True)
class Raster:
    """An image and what leads from it back to its splats."""

    leaves: Leaves
    splats: Splats
    channels: Channels
    image: Tensor  # [1, H, W, 3 to 5] background blended in; then zeros, and the sum of weighted depths
    alpha: Tensor  # [1, H, W, 1]
    backdrop: Tensor  # [1, 3 to 5]
    absgrad: bool
    pairs: int  # (tile, splat) pairs that were listed at a time
    bands: tuple[Band, ...]  # with more than one, image and alpha have no graph

    @property
    def rgb(self) -> Tensor:
        """[3, H, W], a view."""
        return self.image.detach()[0, ..., :3].permute(2, 0, 1)

    @property
    def depth(self) -> Tensor | None:
        """[H, W] expected depth; 0 where nothing was drawn."""
        if not self.channels.depth:
            return None
        return self.image.detach()[0, ..., -1] / self.alpha.detach()[0, ..., 0].clamp_min(1e-10)


def rasterize(
    ops: Ops,
    splats: Splats,
    width: int,
    height: int,
    background: np.ndarray | tuple[float, float, float],
    channels: Channels,
    absgrad: bool,
    band_bytes: int | None = None,
) -> Raster:
    """Blend splats in order of depth, ties in order of their rows.

    band_bytes: what tile lists may take at a time. More pairs than gsplat can count are cut into bands, too; ResourceError
    where one tile row has as many.
    """
    blended, behind = [splats.colours], [*map(float, background), *(0.0 for wanted in channels if wanted)]
    if channels.counted:  # 0 everywhere: its gradient is what the splats weigh in the pixels that count
        blended.append(torch.zeros_like(splats.depths)[:, None])
    if channels.depth:
        blended.append(splats.depths[:, None])
    colours = torch.cat(blended, -1)
    leaves = Leaves(splats.means2d[None], splats.conics[None], colours[None], splats.opacities[None])
    backdrop = seam.on_device(np.array([behind], np.float32), splats.means2d.device)
    bands: tuple[Band, ...] = ((0, -(-height // _TILE)),)
    if band_bytes is not None:
        bands = cut_bands(_pairs_of_tile_rows(splats, width, height), band_bytes)
    if len(bands) == 1:
        own = leaves.differentiable()
        drawn = _draw(ops, splats, own, backdrop, width, height, absgrad)
        if drawn is not None:
            return Raster(own, splats, channels, drawn.image, drawn.alpha, backdrop, absgrad, drawn.pairs, bands)
        bands = cut_bands(_pairs_of_tile_rows(splats, width, height), None)
    parts = [
        _draw_band(ops, splats, leaves.moved_up(_TILE * band[0]), backdrop, width, height, absgrad, band)
        for band in bands
    ]
    image, alpha = (torch.cat(images, 1) for images in ([p.image for p in parts], [p.alpha for p in parts]))
    return Raster(leaves, splats, channels, image, alpha, backdrop, absgrad, max(p.pairs for p in parts), bands)


def rasterize_backward(
    ops: Ops, raster: Raster, v_rgb: Tensor, v_alpha: Tensor | None, v_depth: Tensor | None
) -> SplatGradients:
    """Gradients of the splats from those of rgb [3, H, W], alpha and expected depth [H, W]."""
    v_pixels = v_rgb.permute(1, 2, 0)[None]
    v_channels = [v_pixels]
    if raster.channels.counted:
        v_channels.append((v_pixels != 0).any(-1, keepdim=True).to(v_rgb.dtype))
    if raster.channels.depth:
        last, alpha = torch.zeros_like(raster.alpha), raster.alpha.detach()
        if v_depth is not None:  # depth = D / max(alpha, 1e-10)
            depth, above = raster.depth, alpha > 1e-10
            assert depth is not None
            last = v_depth[None, ..., None] / alpha.clamp_min(1e-10)
            through_alpha = torch.where(above, last * -depth[None, ..., None], 0.0)[0, ..., 0]
            v_alpha = through_alpha if v_alpha is None else v_alpha + through_alpha
        v_channels.append(last)
    v_image = torch.cat(v_channels, -1)
    v_above = None if v_alpha is None else v_alpha[None, ..., None]
    if len(raster.bands) == 1:
        gradients = _differentiated(raster.leaves, raster.image, v_image, raster.alpha, v_above)
    else:
        gradients = _differentiated_in_bands(ops, raster, v_image, v_above)
    (means2d, conics, colours, opacities), absolute = (g[0] for g in gradients.leaves), gradients.absolute
    return SplatGradients(
        means2d,
        conics,
        colours[:, :3],
        opacities,
        colours[:, -1] if v_depth is not None else None,
        means2d if absolute is None else absolute[0],
        colours[:, 3] if raster.channels.counted else None,
    )


def cut_bands(pairs: np.ndarray, band_bytes: int | None) -> tuple[Band, ...]:
    """The fewest bands of tile rows, from the top, whose pairs ([tile rows] i64) take at most `band_bytes` while they are
    sorted and are no more than gsplat can count; a tile row that takes more bytes is a band of its own."""
    if len(pairs) and int(pairs.max()) > MOST_PAIRS:
        raise ResourceError(
            f"One row of tiles has {int(pairs.max()):,} pairs of tiles and Gaussians; gsplat counts to {MOST_PAIRS:,}.",
            "Render a smaller image (--max-size) or fewer Gaussians (--max-gaussians).",
        )
    most = MOST_PAIRS if band_bytes is None else min(MOST_PAIRS, band_bytes // PAIR_BYTES)
    bands: list[Band] = []
    taken = 0
    for y, more in enumerate(pairs.tolist()):
        if bands and taken + more <= most:
            bands[-1], taken = (bands[-1][0], y + 1), taken + more
        else:
            bands.append((y, y + 1))
            taken = more
    return tuple(bands)


class _Drawn(NamedTuple):
    image: Tensor
    alpha: Tensor
    pairs: int


def _draw(
    ops: Ops, splats: Splats, leaves: Leaves, backdrop: Tensor, width: int, height: int, absgrad: bool
) -> _Drawn | None:
    """The image and its graph, if the leaves have one; None where the pairs are too many for gsplat."""
    tiles_x, tiles_y = -(-width // _TILE), -(-height // _TILE)
    seam.settle(backdrop.device)
    _, pair_keys, pair_splats = ops.isect_tiles(
        leaves.means2d.detach(), splats.radii[None], splats.depths[None], _TILE, tiles_x, tiles_y, packed=False
    )
    if len(pair_splats) > MOST_PAIRS:
        return None
    offsets = ops.isect_offset_encode(pair_keys, 1, tiles_x, tiles_y)
    del pair_keys  # 8 bytes per pair
    with torch.enable_grad():
        image, alpha = ops.rasterize_to_pixels(
            *leaves,
            width,
            height,
            _TILE,
            offsets,
            pair_splats,
            backgrounds=backdrop,
            packed=False,
            absgrad=absgrad,
        )
    return _Drawn(image, alpha, len(pair_splats))


def _draw_band(
    ops: Ops,
    splats: Splats,
    leaves: Leaves,
    backdrop: Tensor,
    width: int,
    height: int,
    absgrad: bool,
    band: Band,
) -> _Drawn:
    """The part of the image that lies in the band, from leaves that are moved up already."""
    rows = min(height, _TILE * band[1]) - _TILE * band[0]
    drawn = _draw(ops, splats, leaves, backdrop, width, rows, absgrad)
    assert drawn is not None, "bands are cut by these counts"
    return drawn


def _pairs_of_tile_rows(splats: Splats, width: int, height: int) -> np.ndarray:
    """[tile rows] i64, on the host, by gsplat's rule. Who cuts bands waits for the projection."""
    device, tiles = splats.radii.device, (-(-width // _TILE), -(-height // _TILE))
    drawn = (splats.radii > 0).all(-1)
    low, high = (
        [edges[:, axis].nan_to_num_(0.0).clamp_(0, tiles[axis]).to(torch.int64) for axis in (0, 1)]
        for edges in (
            ((splats.means2d - splats.radii) / _TILE).floor_(),
            ((splats.means2d + splats.radii) / _TILE).ceil_(),
        )
    )
    columns = torch.where(drawn, high[0] - low[0], 0)
    changes = torch.zeros(tiles[1] + 1, dtype=torch.int64, device=device)
    changes.index_add_(0, low[1], columns).index_add_(0, high[1], -columns)
    seam.settle(device)
    counts: np.ndarray = changes.cumsum(0)[:-1].cpu().numpy()  # the wait that the module's head speaks of
    return counts


class _Gradients(NamedTuple):
    leaves: tuple[Tensor, ...]  # as `Leaves`
    absolute: Tensor | None  # [1, n, 2] what gsplat leaves at the means where it is asked to

    def add_(self, more: _Gradients) -> None:
        for sums, part in zip((*self.leaves, self.absolute), (*more.leaves, more.absolute), strict=True):
            if sums is not None and part is not None:
                sums.add_(part)


def _differentiated(
    leaves: Leaves, image: Tensor, v_image: Tensor, alpha: Tensor, v_alpha: Tensor | None
) -> _Gradients:
    outputs, cotangents = [image], [v_image]
    if v_alpha is not None:
        outputs.append(alpha)
        cotangents.append(v_alpha)
    return _Gradients(torch.autograd.grad(outputs, leaves, cotangents), getattr(leaves.means2d, "absgrad", None))


def _differentiated_in_bands(ops: Ops, raster: Raster, v_image: Tensor, v_alpha: Tensor | None) -> _Gradients:
    """Each band is drawn again, and its gradients are added; two sets of them are held at a time."""
    _, height, width, _ = raster.image.shape

    def of_band(band: Band) -> _Gradients:
        at = slice(_TILE * band[0], _TILE * band[1])
        leaves = raster.leaves.moved_up(at.start).differentiable()
        drawn = _draw_band(ops, raster.splats, leaves, raster.backdrop, width, height, raster.absgrad, band)
        v_above = None if v_alpha is None else v_alpha[:, at]
        return _differentiated(leaves, drawn.image, v_image[:, at], drawn.alpha, v_above)

    total = of_band(raster.bands[0])
    for band in raster.bands[1:]:
        total.add_(of_band(band))
    return total
