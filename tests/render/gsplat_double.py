"""gsplat's two functions on the CPU, made of our twin: the same arguments, shapes and `info`, the same autograd behaviour.

Every call is bound to the real function's signature, so a wrong keyword cannot hide here. Where gsplat 1.5.3 does
something odd that callers must survive, the double does it too: rows that are not finite are listed as drawn with radius 0
and get gradients that are not finite, and a view without rows is an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import gsplat
import numpy as np
import pytest
import torch
from torch import Tensor

from clm.camera import Camera
from clm.render import gsplat as backend
from clm.render import twin


def spherical_harmonics(*args: Any, **kwargs: Any) -> Tensor:
    """SH at directions of any length, [N, 3]: no 0.5, no clamp."""
    call = inspect.signature(gsplat.spherical_harmonics).bind(*args, **kwargs).arguments
    degree, directions, coefficients = call["degrees_to_use"], call["dirs"], call["coeffs"]
    # gsplat takes more bands than it uses; copying those to it would be waste.
    assert coefficients.shape == (len(directions), (degree + 1) ** 2, 3) and coefficients.is_contiguous()
    basis = twin.sh_basis(torch.nn.functional.normalize(directions, dim=-1), degree)
    return (basis[:, :, None] * coefficients).sum(1)


def rasterization(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """One packed pinhole camera with post-activation colours [N, 3]."""
    bound = inspect.signature(gsplat.rasterization).bind(*args, **kwargs)
    bound.apply_defaults()
    call = bound.arguments
    means, quats, scales, opacities, colours = (
        call[name] for name in ("means", "quats", "scales", "opacities", "colors")
    )
    n = len(means)
    assert n > 0, "gsplat divides by the number of rows"
    shapes = {"means": (n, 3), "quats": (n, 4), "scales": (n, 3), "opacities": (n,), "colors": (n, 3)}
    shapes |= {"viewmats": (1, 4, 4), "Ks": (1, 3, 3), "backgrounds": (1, 3)}
    for name, shape in shapes.items():
        assert tuple(call[name].shape) == shape and call[name].dtype == torch.float32, name
    assert call["packed"] and call["sh_degree"] is None and not call["sparse_grad"] and call["tile_size"] == 16
    assert call["eps2d"] == twin.BLUR and call["camera_model"] == "pinhole" and call["covars"] is None
    camera = _camera(call)
    # The twin takes raw rows; in float64 the way back costs nothing that float32 would notice.
    logits = torch.logit(opacities.double())
    rows = torch.cat([means.double(), quats.double(), scales.double().log(), logits[:, None]], 1)
    p = twin.project(
        torch.cat([rows, torch.zeros(n, 1, dtype=torch.float64)], 1),
        torch.zeros(n, 48, dtype=torch.float64),
        camera,
        0,
        call["rasterize_mode"] == "antialiased",
        call["near_plane"],
        call["far_plane"],
        call["radius_clip"],
    )
    bad = ~torch.isfinite(means).all(-1)
    ids = torch.nonzero((p.radii > 0).all(-1) | bad).flatten()
    spoiled = torch.where(bad, torch.nan, 1.0)[:, None]  # 0 times nan: the gradients of bad rows
    means2d = (p.means2d * spoiled)[ids].float()
    packed = twin.Projection(
        means2d.double(), p.conics[ids], p.opacities[ids], colours.double()[ids], p.depths[ids], p.radii[ids],
        torch.zeros(len(ids), 2, dtype=torch.float64),
    )  # fmt: skip
    if call["absgrad"]:

        def leave_absgrad(gradient: Tensor) -> None:
            means2d.absgrad = packed.absgrad.float()  # type: ignore[attr-defined]

        means2d.register_hook(leave_absgrad)
    rgb, alpha, depth = twin.composite(packed, camera, call["backgrounds"][0].double())
    planes = {"RGB": [*rgb], "RGB+ED": [*rgb, depth]}[call["render_mode"]]
    info = {
        "gaussian_ids": ids,
        "radii": p.radii[ids].to(torch.int32),
        "means2d": means2d,
        "width": camera.width,
        "height": camera.height,
        "n_cameras": 1,
    }
    return torch.stack(planes, -1).float()[None], alpha.float()[None, ..., None], info


def _camera(call: dict[str, Any]) -> Camera:
    k, viewmat = call["Ks"][0].double().numpy(), call["viewmats"][0].double().numpy()
    assert k[0, 1] == 0 and np.array_equal(k[2], (0, 0, 1))
    return Camera(call["width"], call["height"], k[0, 0], k[1, 1], k[0, 2], k[1, 2], viewmat)


def install(monkeypatch: pytest.MonkeyPatch, rasterization: Callable[..., Any] = rasterization) -> None:
    """Makes `GsplatRasterizer` use the doubles, on a machine without CUDA."""
    ops = backend.Ops(rasterization, spherical_harmonics)
    monkeypatch.setattr(backend, "load_ops", lambda say: ops)
