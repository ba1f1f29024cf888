"""A view whose rows all lie in the arena at once: one piece, drawn and differentiated in one call each."""

from __future__ import annotations

from typing import Any

import numpy as np

from clm.camera import Camera


class WholeViews:
    """What a backend's steps (`clm.render.Rasterizer`) give a view in one piece. One backward per forward."""

    _piece: tuple[Any, Any, Any] | None = None

    def forward(
        self: Any,
        geometry: Any,
        colour: Any,
        slots: Any,
        camera: Camera,
        sh_degree: int,
        background: np.ndarray | tuple[float, float, float],
        depth: bool = False,
    ) -> Any:
        """The image of the rows geometry[slots] [A, 12] and colour[slots] [A, 48]; they stay unchanged until `backward`."""
        self.begin(camera, sh_degree)
        self.project(geometry, colour, slots)
        self._piece = geometry, colour, slots
        return self.rasterize(background, depth)

    def backward(
        self: Any,
        v_rgb: Any,
        grad_geometry: Any,
        grad_colour: Any,
        v_alpha: Any = None,
        v_depth: Any = None,
        finite: Any = True,
    ) -> None:
        """Add the gradients of the last forward to grad_geometry [A, 16] and grad_colour [A, 48] at its slots."""
        self.rasterize_backward(v_rgb, v_alpha, v_depth, finite)
        self.project_backward(*self._piece, 0, grad_geometry, grad_colour)
