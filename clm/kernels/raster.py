"""The rasteriser's kernels behind shapes and checks: one opaque workspace per view in flight.

The workspace keeps addresses of the arrays of the last `project`; this face keeps references, so they stay alive, and the
caller keeps their content unchanged until `project_backward` has run. Buffers only grow.
"""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int, c_int64, c_void_p
from functools import cache

import numpy as np

from clm.camera import Camera
from clm.errors import ResourceError
from clm.kernels import load, pointer

_STEPS = ("", "project", "rasterize", "rasterize_backward", "project_backward")
STAGES = ("project", "sort", "lists", "forward", "backward", "project_backward")


@cache
def _library() -> ctypes.CDLL:
    library = load()
    library.clm_raster_create.restype = c_void_p
    library.clm_raster_destroy.argtypes = [c_void_p]
    library.clm_raster_project.argtypes = [
        *(c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_void_p),
        *(c_int, c_int, c_int, c_int, c_void_p),
    ]
    library.clm_raster_project.restype = c_int64
    library.clm_raster_rasterize.argtypes = [c_void_p, c_void_p, c_void_p, c_void_p, c_void_p]
    library.clm_raster_rasterize.restype = c_int
    library.clm_raster_rasterize_backward.argtypes = [c_void_p, c_void_p, c_void_p, c_void_p, c_int]
    library.clm_raster_rasterize_backward.restype = c_int
    library.clm_raster_project_backward.argtypes = [c_void_p, c_void_p, c_void_p]
    library.clm_raster_project_backward.restype = None
    library.clm_raster_read.argtypes = [c_void_p, c_void_p, c_void_p]
    library.clm_raster_pairs.argtypes = [c_void_p]
    library.clm_raster_pairs.restype = c_int64
    library.clm_raster_bytes.argtypes = [c_void_p]
    library.clm_raster_bytes.restype = c_int64
    library.clm_raster_seconds.argtypes = [c_void_p, c_void_p]
    return library


def _out_of_memory() -> ResourceError:
    return ResourceError(
        "The rasteriser ran out of host memory for its (tile, Gaussian) lists.",
        "Render a smaller image (--max-size) or fewer Gaussians.",
    )


class RasterWorkspace:
    """Owns the C++ workspace. Not for two threads at once."""

    def __init__(self) -> None:
        self._library = _library()
        handle = self._library.clm_raster_create()
        if not handle:
            raise _out_of_memory()
        self._handle = c_void_p(handle)
        self._arena: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self._size = (0, 0)
        self._done = ""  # the last step that was taken

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.clm_raster_destroy(self._handle)

    def project(
        self,
        geometry: np.ndarray,
        colour: np.ndarray,
        slots: np.ndarray,
        camera: Camera,
        sh_degree: int,
        limits: np.ndarray,
        antialiased: bool,
    ) -> int:
        """Rows to splats, in order of depth. Geometry [A, 12], colour [A, 48] f32, slots [M] i32 in row order; limits [3]
        f32: near, far, radius_clip. Returns the number of rows drawn."""
        if not 0 <= sh_degree <= 3:
            raise ValueError(f"sh_degree must be 0..3, got {sh_degree}")
        if len(slots) and int(slots.view(np.uint32).max()) >= min(len(geometry), len(colour)):  # a negative one is huge
            raise IndexError(f"slots reach outside the arena of {min(len(geometry), len(colour))} rows")
        packed = camera.packed
        self._arena, self._done = None, ""
        drawn = self._library.clm_raster_project(
            self._handle,
            pointer(geometry, np.float32, None, 12),
            pointer(colour, np.float32, None, 48),
            pointer(slots, np.int32, None),
            len(slots),
            pointer(packed, np.float32, 21),
            camera.width,
            camera.height,
            sh_degree,
            int(antialiased),
            pointer(limits, np.float32, 3),
        )
        if drawn < 0:
            raise _out_of_memory()
        self._arena, self._done = (geometry, colour, slots), "project"
        self._size = (camera.height, camera.width)
        return drawn

    def rasterize(
        self, background: np.ndarray, rgb: np.ndarray, alpha: np.ndarray, depth: np.ndarray | None = None
    ) -> None:
        """The last project's splats over background [3]. Writes rgb [3, H, W], alpha [H, W], depth [H, W] or None."""
        self._check("project")
        height, width = self._size
        self._done = "project"
        code = self._library.clm_raster_rasterize(
            self._handle,
            pointer(background, np.float32, 3),
            pointer(rgb, np.float32, 3, height, width),
            pointer(alpha, np.float32, height, width),
            pointer(depth, np.float32, height, width),
        )
        if code < 0:
            raise _out_of_memory()
        self._done = "rasterize"

    def rasterize_backward(
        self, v_rgb: np.ndarray, v_alpha: np.ndarray | None, v_depth: np.ndarray | None, absgrad: bool
    ) -> None:
        """From gradients of the last rasterize's image to those of its splats, which stay in the workspace."""
        self._check("rasterize")
        height, width = self._size
        self._done = "rasterize"
        code = self._library.clm_raster_rasterize_backward(
            self._handle,
            pointer(v_rgb, np.float32, 3, height, width),
            pointer(v_alpha, np.float32, height, width),
            pointer(v_depth, np.float32, height, width),
            int(absgrad),
        )
        if code < 0:
            raise _out_of_memory()
        self._done = "rasterize_backward"

    def project_backward(self, grad_geometry: np.ndarray, grad_colour: np.ndarray) -> None:
        """Adds to grad_geometry [A, 16] and grad_colour [A, 48] at the slots of the last project."""
        self._check("rasterize_backward")
        assert self._arena is not None
        rows = len(self._arena[0])
        if len(grad_geometry) < rows or len(grad_colour) < rows:
            raise IndexError(f"gradient arrays have fewer rows than the arena ({rows})")
        self._library.clm_raster_project_backward(
            self._handle, pointer(grad_geometry, np.float32, None, 16), pointer(grad_colour, np.float32, None, 48)
        )

    def _check(self, step: str) -> None:
        """A step reads what the steps before it left in the workspace."""
        if _STEPS.index(self._done) < _STEPS.index(step):
            raise RuntimeError(f"{_STEPS[_STEPS.index(step) + 1]}() needs a {step}() of this view first")

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Copies of radii [M, 2] i32 (0 = not drawn) and means2d [M, 2] f32 of the last project."""
        rows = len(self._arena[2]) if self._arena else 0
        radii, means2d = np.zeros((rows, 2), np.int32), np.zeros((rows, 2), np.float32)
        if rows:
            self._library.clm_raster_read(
                self._handle, pointer(radii, np.int32, None, 2), pointer(means2d, np.float32, None, 2)
            )
        return radii, means2d

    def pairs(self) -> int:
        """(tile, Gaussian) pairs of the last rasterize."""
        return int(self._library.clm_raster_pairs(self._handle))

    @property
    def bytes(self) -> int:
        """Host memory of the workspace: about 120 bytes per row and 60 per (tile, Gaussian) pair of the largest view."""
        return int(self._library.clm_raster_bytes(self._handle))

    def seconds(self) -> dict[str, float]:
        """Seconds of the last call of each stage."""
        out = (c_double * len(STAGES))()
        self._library.clm_raster_seconds(self._handle, out)
        return dict(zip(STAGES, out, strict=True))
