"""The backends with a `backward` for a view in one piece, which remembers what `forward` was given: for tests."""

from __future__ import annotations

from typing import Any

from clm.render import cpu


def remembering(backend: type) -> Any:
    """A subclass of the backend; one backward per forward on the device."""

    class Whole(backend):  # type: ignore[misc]
        def forward(self, geometry: Any, colour: Any, slots: Any, *view: Any, **options: Any) -> Any:
            self._given = geometry, colour, slots
            return super().forward(geometry, colour, slots, *view, **options)

        def backward(
            self,
            v_rgb: Any,
            grad_geometry: Any,
            grad_colour: Any,
            v_alpha: Any = None,
            v_depth: Any = None,
            finite: Any = True,
        ) -> None:
            """Columns of the gradients as `project_backward` says."""
            self.rasterize_backward(v_rgb, v_alpha, v_depth, finite)
            self.project_backward(*self._given, 0, grad_geometry, grad_colour)

    return Whole


CpuRasterizer = remembering(cpu.CpuRasterizer)
