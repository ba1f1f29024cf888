"""The rasteriser's kernels behind shapes and checks: one opaque workspace per view in flight.

`begin`, then `project` for each piece of the view, `rasterize`, `rasterize_backward`, and `project_backward` for each piece,
in any order. No address of an array outlives the call: a piece's rows may lie elsewhere when its gradients are added.
"""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int, c_int64, c_void_p
from functools import cache

import numpy as np

from clm.camera import Camera
from clm.errors import ResourceError
from clm.kernels import load, pointer

_STEPS = ("", "begin", "project", "rasterize", "rasterize_backward", "project_backward")
MAX_SIDE = 16 * 65535  # px: a tile row's number fits 16 bits, a pair's number among its row's fits 32
MAX_ROWS = 2**31 - 1  # of a view: slots are i32
SPLAT_FLOATS = 15  # of a splat that travels: 60 bytes
STAGES = ("project", "sort", "lists", "forward", "backward", "project_backward")


@cache
def _library() -> ctypes.CDLL:
    library = load()
    library.clm_raster_create.argtypes = []
    library.clm_raster_create.restype = c_void_p
    library.clm_raster_destroy.argtypes = [c_void_p]
    library.clm_raster_destroy.restype = None
    library.clm_raster_begin.argtypes = [c_void_p, c_void_p, *(c_int,) * 4, c_void_p, c_int64]
    library.clm_raster_begin.restype = None
    library.clm_raster_project.argtypes = [c_void_p, c_void_p, c_void_p, c_void_p, c_int64]
    library.clm_raster_project.restype = c_int64
    library.clm_raster_rasterize.argtypes = [c_void_p, c_void_p, c_void_p, c_void_p, c_void_p]
    library.clm_raster_rasterize.restype = c_int
    library.clm_raster_rasterize_backward.argtypes = [c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_int]
    library.clm_raster_rasterize_backward.restype = c_int
    library.clm_raster_project_backward.argtypes = [*(c_void_p,) * 4, c_int64, c_int64, c_void_p, c_void_p]
    library.clm_raster_project_backward.restype = None
    library.clm_raster_take_splats.argtypes = [c_void_p, c_void_p]
    library.clm_raster_take_splats.restype = None
    library.clm_raster_put_splats.argtypes = [c_void_p, c_void_p, c_int64]
    library.clm_raster_put_splats.restype = c_int
    library.clm_raster_take_gradients.argtypes = [c_void_p, c_int64, c_int64, c_void_p]
    library.clm_raster_take_gradients.restype = None
    library.clm_raster_put_gradients.argtypes = [c_void_p, c_void_p, c_int]
    library.clm_raster_put_gradients.restype = c_int
    library.clm_raster_read.argtypes = [c_void_p, c_void_p, c_void_p]
    library.clm_raster_read.restype = None
    library.clm_raster_pairs.argtypes = [c_void_p]
    library.clm_raster_pairs.restype = c_int64
    library.clm_raster_bands.argtypes = [c_void_p]
    library.clm_raster_bands.restype = c_int64
    library.clm_raster_bytes.argtypes = [c_void_p, c_void_p]
    library.clm_raster_bytes.restype = None
    library.clm_raster_seconds.argtypes = [c_void_p, c_void_p]
    library.clm_raster_seconds.restype = None
    return library


def gradient_floats(absgrad: bool) -> int:
    """Of the gradient of a splat that travels: 40 bytes, or 48."""
    return 12 if absgrad else 10


def _out_of_memory() -> ResourceError:
    return ResourceError(
        "The rasteriser ran out of host memory for its (tile, Gaussian) lists.",
        "Render a smaller image (--max-size) or fewer Gaussians.",
    )


def _check_slots(slots: np.ndarray, rows: int) -> None:
    if len(slots) and int(slots.view(np.uint32).max()) >= rows:  # a negative one is huge
        raise IndexError(f"slots reach outside the arena of {rows} rows")


class RasterWorkspace:
    """Owns the C++ workspace. Not for two threads at once."""

    def __init__(self) -> None:
        self._library = _library()
        handle = self._library.clm_raster_create()
        if not handle:
            raise _out_of_memory()
        self._handle = c_void_p(handle)
        self.rows = 0  # of the view so far
        self._size = (0, 0)
        self._done = ""  # the last step that was taken

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.clm_raster_destroy(self._handle)

    def begin(
        self, camera: Camera, sh_degree: int, limits: np.ndarray, antialiased: bool, band_bytes: int | None
    ) -> None:
        """A view without rows. limits [3] f32: near, far, radius_clip. band_bytes: what tile lists may take at a time, None
        for no limit; one tile row is listed however much it takes."""
        if not 0 <= sh_degree <= 3:
            raise ValueError(f"sh_degree must be 0..3, got {sh_degree}")
        if not 0 < max(camera.width, camera.height) <= MAX_SIDE:
            raise ValueError(f"an image has 1 to {MAX_SIDE} pixels a side, not {camera.width} x {camera.height}")
        self._done, self.rows = "", 0
        self._size = (camera.height, camera.width)
        self._library.clm_raster_begin(
            self._handle,
            pointer(camera.packed, np.float32, 21),
            camera.width,
            camera.height,
            sh_degree,
            int(antialiased),
            pointer(limits, np.float32, 3),
            -1 if band_bytes is None else max(0, band_bytes),
        )
        self._done = "begin"

    def project(self, geometry: np.ndarray, colour: np.ndarray, slots: np.ndarray) -> int:
        """Appends a piece: geometry [A, 12], colour [A, 48] f32, slots [M] i32 in row order. Returns how many of its rows
        are drawn."""
        self._check("project", "begin")
        if self._done not in ("begin", "project"):
            raise RuntimeError("project() after rasterize() needs a begin() first: the image has all rows of its view")
        _check_slots(slots, min(len(geometry), len(colour)))
        if self.rows + len(slots) > MAX_ROWS:
            raise ValueError(f"a view has at most {MAX_ROWS:,} rows")
        drawn = self._library.clm_raster_project(
            self._handle,
            pointer(geometry, np.float32, None, 12),
            pointer(colour, np.float32, None, 48),
            pointer(slots, np.int32, None),
            len(slots),
        )
        if drawn < 0:
            raise _out_of_memory()
        self.rows += len(slots)
        self._done = "project"
        return int(drawn)

    def rasterize(
        self, background: np.ndarray, rgb: np.ndarray, alpha: np.ndarray, depth: np.ndarray | None = None
    ) -> None:
        """The view's splats over background [3]. Writes rgb [3, H, W], alpha [H, W], depth [H, W] or None."""
        self._check("rasterize", "begin")
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
        self,
        v_rgb: np.ndarray,
        v_alpha: np.ndarray | None,
        v_depth: np.ndarray | None,
        absgrad: bool,
        counted: bool = True,
    ) -> None:
        """From gradients of the last rasterize's image to those of its splats, which stay in the workspace; `counted`: also how
        many pixels they explain (0 otherwise)."""
        self._check("rasterize_backward", "rasterize")
        height, width = self._size
        self._done = "rasterize"
        code = self._library.clm_raster_rasterize_backward(
            self._handle,
            pointer(v_rgb, np.float32, 3, height, width),
            pointer(v_alpha, np.float32, height, width),
            pointer(v_depth, np.float32, height, width),
            int(absgrad),
            int(counted),
        )
        if code < 0:
            raise _out_of_memory()
        self._done = "rasterize_backward"

    def project_backward(
        self,
        geometry: np.ndarray,
        colour: np.ndarray,
        slots: np.ndarray,
        first: int,
        grad_geometry: np.ndarray,
        grad_colour: np.ndarray,
    ) -> None:
        """Adds to grad_geometry [A, 16] and grad_colour [A, 48] at the slots [M] i32 where the rows of a piece lie now; the
        first of them is the view's row `first`, and their values are those that were projected."""
        self._check("project_backward", "rasterize_backward")
        _check_slots(slots, min(map(len, (geometry, colour, grad_geometry, grad_colour))))
        if not 0 <= first <= self.rows - len(slots):
            raise IndexError(f"rows {first} to {first + len(slots)} are not all among the view's {self.rows}")
        self._library.clm_raster_project_backward(
            self._handle,
            pointer(geometry, np.float32, None, 12),
            pointer(colour, np.float32, None, 48),
            pointer(slots, np.int32, None),
            len(slots),
            first,
            pointer(grad_geometry, np.float32, None, 16),
            pointer(grad_colour, np.float32, None, 48),
        )

    # ---- splats that travel ----

    def take_splats(self, out: np.ndarray) -> None:
        """The drawn rows of the view, in row order, to out [drawn, 15] f32."""
        self._check("take_splats", "begin")
        self._library.clm_raster_take_splats(self._handle, pointer(out, np.float32, None, SPLAT_FLOATS))

    def put_splats(self, splats: np.ndarray) -> None:
        """Append splats [n, 15] f32 as further rows of the view, all of them drawn."""
        self._check("put_splats", "begin")
        if self._done not in ("begin", "project"):
            raise RuntimeError(
                "put_splats() after rasterize() needs a begin() first: the image has all rows of its view"
            )
        if self.rows + len(splats) > MAX_ROWS:
            raise ValueError(f"a view has at most {MAX_ROWS:,} rows")
        address = pointer(splats, np.float32, None, SPLAT_FLOATS)
        if self._library.clm_raster_put_splats(self._handle, address, len(splats)) < 0:
            raise _out_of_memory()
        self.rows += len(splats)
        self._done = "project"

    def take_gradients(self, first: int, out: np.ndarray) -> None:
        """Gradients of the view's rows from `first` on, which were put here as splats, to out [n, gradient_floats(absgrad)]."""
        self._check("take_gradients", "rasterize_backward")
        if not 0 <= first <= self.rows - len(out):
            raise IndexError(f"rows {first} to {first + len(out)} are not all among the view's {self.rows}")
        address = pointer(out, np.float32, None, None)
        self._library.clm_raster_take_gradients(self._handle, first, len(out), address)

    def put_gradients(self, gradients: np.ndarray, absgrad: bool) -> None:
        """Gradients [drawn, gradient_floats(absgrad)] of the view's drawn rows, which somebody else rasterised."""
        self._check("put_gradients", "begin")
        address = pointer(gradients, np.float32, None, gradient_floats(absgrad))
        if self._library.clm_raster_put_gradients(self._handle, address, int(absgrad)) < 0:
            raise _out_of_memory()
        self._done = "rasterize_backward"

    def _check(self, call: str, step: str) -> None:
        """A step reads what the steps before it left in the workspace."""
        if _STEPS.index(self._done) < _STEPS.index(step):
            raise RuntimeError(f"{call}() needs a {step}() of this view first")

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Copies of radii [M, 2] i32 (0 = not drawn) and means2d [M, 2] f32 of the view's rows so far."""
        rows = self.rows
        radii, means2d = np.zeros((rows, 2), np.int32), np.zeros((rows, 2), np.float32)
        if rows:
            self._library.clm_raster_read(
                self._handle, pointer(radii, np.int32, None, 2), pointer(means2d, np.float32, None, 2)
            )
        return radii, means2d

    def pairs(self) -> int:
        """(tile, Gaussian) pairs of the last rasterize."""
        return int(self._library.clm_raster_pairs(self._handle))

    def bands(self) -> int:
        """Bands of tile rows that the last rasterize was cut into."""
        return int(self._library.clm_raster_bands(self._handle))

    @property
    def bytes(self) -> tuple[int, int]:
        """Host memory of splats and of tile lists, of the largest view so far."""
        out = (c_int64 * 2)()
        self._library.clm_raster_bytes(self._handle, out)
        return out[0], out[1]

    def seconds(self) -> dict[str, float]:
        """Seconds of each stage of the last view."""
        out = (c_double * len(STAGES))()
        self._library.clm_raster_seconds(self._handle, out)
        return dict(zip(STAGES, out, strict=True))
