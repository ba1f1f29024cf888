"""The CUDA backend: gsplat between our arena and our loss, with the same face as `clm.render.cpu.CpuRasterizer`.

Ours are the gather, the activations with their derivatives, the addition at the slots and the statistics; gsplat projects,
sorts and blends (`clm.render.splats`, `clm.render.pixels`). Of a view's pieces only the last one keeps the graph of its
projection; the others are projected again when their gradients are added. Invariants: nothing here waits for the device beyond
what those two say; a piece's gradients are added in two operations that allocate nothing, after everything that may run out of
memory, so a piece that failed can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from clm.camera import Camera
from clm.errors import OutOfDeviceMemory
from clm.image.torch_exposure import expose, expose_backward
from clm.image.torch_losses import DeviceLoss, l1_ssim
from clm.render import pixels, travel
from clm.render import splats as seam
from clm.render.device_view import DeviceRender, Piece, View, backdrop_alone, upload
from clm.render.gsplat_ops import load_ops
from clm.render.splats import Projected, SplatGradients, Splats
from clm.render.temporaries import FIXED_BYTES, Temporaries, view_bytes

__all__ = ["DeviceRender", "GsplatRasterizer", "SplatGradients", "Splats", "Temporaries"]

_Result = TypeVar("_Result")


class GsplatRasterizer:
    """Forward and backward of one view at a time; each backward step frees what it came from."""

    def __init__(
        self,
        antialiased: bool = False,
        absgrad: bool = False,
        radius_clip: float = 0.0,
        band_bytes: int | None = None,
        *,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Imports gsplat, and compiles it the first time, which `say` announces. ClmError where CUDA cannot be used.

        band_bytes: what tile lists may take; beyond it they are built for a band of tile rows at a time. None: no limit."""
        self.antialiased = antialiased
        self.absgrad = absgrad
        self.band_bytes = band_bytes  # of views that begin from now on
        self._options = seam.Options(antialiased, absgrad, radius_clip)
        self._ops = load_ops(say)
        self.peak_temporaries = 0  # bytes of tensors, of the training views so far
        self._temporaries = Temporaries()
        self._device = torch.device("cpu")  # where the arena was seen
        self._pairs = 0  # (tile, splat) pairs that the last rasterize listed at a time
        self._in_bands = False  # whether the last image was differentiated in bands
        self._view = View()
        self._keeps_graph = True  # of the last piece's projection, until its gradients are added

    def another(self) -> GsplatRasterizer:
        """One that projects as this one does, for a view that somebody else rasterises; it keeps no graph meanwhile."""
        other = object.__new__(GsplatRasterizer)
        other.__dict__.update(self.__dict__)
        other._view, other._keeps_graph = View(), False
        return other

    def begin(self, camera: Camera, sh_degree: int) -> None:
        """A new view, of no rows yet; the former one's memory goes before this one's is taken."""
        self._view = View(camera, sh_degree)

    def project(self, geometry: Tensor, colour: Tensor, slots: Tensor) -> int:
        """Append the splats of a piece: the rows geometry[slots] [A, 12] and colour[slots] [A, 48] (raw: log scales, logit
        opacities), f32. `slots` [M] i32 or i64, unique, on the arena's device; rows ascend, from piece to piece too.

        Returns how many of them are splats (rows that are not finite included, which draw nothing). The arena may change
        afterwards: what is needed is copied. Raises OutOfDeviceMemory; then the view begins again.
        """
        if self._view.camera is None or self._view.rasterized:
            raise ValueError("project needs a begin of its own: an image has all rows of its view")
        self._device = geometry.device
        if len(slots) == 0:  # gsplat divides by the number of rows
            return 0
        self._view.graph = None  # only the last piece keeps it
        first, begin = self._view.rows, self._view.drawn
        self._view.rows += len(slots)
        projected = self._or_out_of_memory(lambda: self._graph_of(geometry, colour, slots), "projecting")
        self._view.drawn += len(projected.ids)
        self._view.pieces.append(Piece(first, len(slots), begin, projected.ids))
        self._view.parts.append(projected.splats)
        self._view.graph = projected if self._keeps_graph else None
        return len(projected.ids)

    def rasterize(
        self, background: np.ndarray | tuple[float, float, float], depth: bool = False, counted: bool = True
    ) -> DeviceRender:
        """The image of the view's splats; counted: its backward also counts the pixels that they explain. Raises
        OutOfDeviceMemory; then the view begins again."""
        if self._view.camera is None or len(self._view.parts) < min(1, self._view.drawn):
            raise ValueError("rasterize needs a begin of its own: the splats of an image are freed by its backward")
        self._view.raster = self._view.gradients = None
        self._view.rasterized, camera = True, self._view.camera

        def draw() -> DeviceRender:
            self._view.parts = [Splats.joined(self._view.parts)] if self._view.parts else []
            if self._view.drawn == 0:
                return backdrop_alone(camera, background, depth, self._device)
            splats, size = self._view.parts[0], (camera.width, camera.height)
            channels = pixels.Channels(counted, depth)
            raster = pixels.rasterize(self._ops, splats, *size, background, channels, self.absgrad, self.band_bytes)
            self._view.raster, self._pairs = raster, raster.pairs
            return DeviceRender(raster.rgb, raster.alpha.detach()[0, ..., 0], raster.depth, self._view.drawn)

        return self._or_out_of_memory(draw, "drawing")

    def compare(self, rgb: Tensor, photo: np.ndarray, mask: np.ndarray | None, ssim_weight: float) -> DeviceLoss:
        """The loss of rgb [3, H, W] against a photo [H, W, 3] u8 and a mask [H, W] on the host, with its gradient. Raises
        OutOfDeviceMemory; then the view begins again."""

        def compared() -> DeviceLoss:
            kept = None if mask is None else upload(mask, rgb.device)
            return l1_ssim(rgb, upload(photo, rgb.device), ssim_weight, kept)

        return self._or_out_of_memory(compared, "comparing")

    def expose(self, rgb: Tensor, matrix: np.ndarray) -> Tensor:
        """rgb [3, H, W] through the affine map of colours [3, 4] f32. Raises OutOfDeviceMemory; then the view begins again."""
        self._view.exposed = True
        return self._or_out_of_memory(lambda: expose(rgb, seam.on_device(matrix, rgb.device)), "exposing")

    def expose_backward(self, rgb: Tensor, matrix: np.ndarray, v_seen: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of rgb and of the map [3, 4]. Raises OutOfDeviceMemory; then the view begins again."""
        return self._or_out_of_memory(
            lambda: expose_backward(rgb, seam.on_device(matrix, rgb.device), v_seen), "computing the gradients of"
        )

    def rasterize_backward(
        self,
        v_rgb: Tensor,
        v_alpha: Tensor | None = None,
        v_depth: Tensor | None = None,
        finite: Tensor | bool = True,
    ) -> None:
        """From gradients of rgb [3, H, W], alpha and depth [H, W] to those of the splats, which stay here; frees the image's
        graph. `v_depth` needs a rasterize with depth=True. Where `finite` (0-d bool on the device, `DeviceLoss.finite`) is
        false the view has no gradients. Raises OutOfDeviceMemory; then the view begins again."""
        if not self._view.rasterized or self._view.due or (self._view.drawn and self._view.raster is None):
            raise ValueError("backward needs a forward of its own: the graph of an image is freed by its backward")
        if v_depth is not None and self._view.raster is not None and self._view.raster.depth is None:
            raise ValueError("v_depth needs a forward with depth=True")

        def differentiate() -> SplatGradients | None:
            raster, self._view.raster = self._view.raster, None
            return None if raster is None else pixels.rasterize_backward(self._ops, raster, v_rgb, v_alpha, v_depth)

        self._in_bands = self._view.raster is not None and len(self._view.raster.bands) > 1
        self._view.gradients = self._or_out_of_memory(differentiate, "computing the gradients of")
        self._view.finite = None if finite is True else torch.as_tensor(finite, device=self._device)
        self._view.due = list(range(len(self._view.pieces)))
        self._view.screen = self._where()
        self._view.parts = []
        self._learn()

    def project_backward(
        self,
        geometry: Tensor,
        colour: Tensor,
        slots: Tensor,
        first: int,
        grad_geometry: Tensor,
        grad_colour: Tensor,
    ) -> None:
        """Add the gradients of a piece, whose first row is the view's row `first`, to grad_geometry [A, 16] and grad_colour
        [A, 48] at `slots`, where its rows (values as they were projected) lie now. Each piece once, in any order.

        Columns 0:11 as geometry; 11: +1 per drawn row; 12: + norm of the screen gradient in half image sizes (with
        absgrad of the per-axis sums over pixels of its absolute value). Raises OutOfDeviceMemory before anything of the piece
        is added. Then the view begins again; where other pieces were added before, this one is repeated instead.
        """
        if len(slots) == 0:
            return
        number = self._number_due(first, len(slots))
        if number is None:
            raise ValueError(
                f"No gradients are left for a piece of {len(slots):,} rows from row {first:,} of the view on: "
                "project_backward needs a rasterize_backward of its own"
            )

        def differentiate() -> tuple[Tensor, Tensor, Tensor] | None:
            piece, graph, self._view.graph = self._view.pieces[number], self._view.graph, None
            if self._view.gradients is None or len(piece.ids) == 0:
                return None
            if graph is None or graph.ids is not piece.ids:
                graph = None  # freed before the next is made
                graph = self._graph_of(geometry, colour, slots)
            own = graph.slots if graph.given is slots else slots.index_select(0, graph.ids)
            v = self._view.gradients.rows(piece.begin, piece.begin + len(piece.ids))
            return own, *seam.project_backward(graph, v, self._view.finite)

        added = self._or_out_of_memory(differentiate, "computing the gradients of")
        if added is not None:
            seam.add_at(*added, grad_geometry, grad_colour)
        self._view.due.remove(number)
        if not self._view.due:
            self._view.gradients = None

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
        """The image of a view in one piece."""
        self.begin(camera, sh_degree)
        self.project(geometry, colour, slots)
        return self.rasterize(background, depth)

    # ---- splats that travel (`clm.render.travel`) ----

    @property
    def drawn(self) -> int:
        """Splats of the view."""
        return self._view.drawn

    def splats_of(self, views: Sequence[GsplatRasterizer]) -> tuple[Tensor, np.ndarray]:
        """The splats of some views, one after the other [n, 12] f32, and how many of each [views] i64."""
        parts = [travel.packed_splats(part) for view in views for part in view._view.parts]
        device = views[0]._device if views else self._device
        rows = torch.cat(parts) if parts else torch.zeros((0, travel.SPLAT_FLOATS), device=device)
        return rows, np.array([view.drawn for view in views], np.int64)

    def put_splats(self, splats: Tensor) -> None:
        """Append splats [n, 12] of several ranks, in their order: instead of `project`."""
        view, count = self._view, len(splats)
        self._device = splats.device
        if count:
            ids = torch.arange(count, device=splats.device)
            view.pieces.append(Piece(view.rows, count, view.drawn, ids))
            view.parts.append(travel.unpacked_splats(splats))
            view.rows, view.drawn = view.rows + count, view.drawn + count

    def gradients_to(self, counts: np.ndarray, exist: bool) -> Tensor:
        """Gradients of the splats that were put here, counts [ranks] of them, for whom they came from: [n + ranks, 10 or 12] f32.
        Behind those of each rank comes a row that begins with 1, or with 0 where the view has none (or `exist` says so)."""
        view = self._view
        finite = torch.ones((), device=self._device) if view.finite is None else view.finite.to(torch.float32)
        gradients = travel.packed_gradients(view.gradients, counts, finite * float(exist), self.absgrad)
        view.gradients, view.due = None, []
        return gradients

    def put_gradients(self, gradients: Tensor) -> None:
        """What came back for the view's splats, [drawn + 1, 10 or 12]: instead of `rasterize_backward`."""
        view = self._view
        view.rasterized, view.parts = True, []
        view.finite, view.due = gradients[-1, 0] == 1.0, list(range(len(view.pieces)))
        view.gradients = travel.unpacked_gradients(gradients[:-1], self.absgrad) if view.drawn else None

    host_bytes = 0  # splats and lists are on the device

    def workspace_bytes(self, rows: int, pixels: int) -> int:
        """Nothing of the host."""
        return 0

    def least_workspace_bytes(self, rows: int, pixels: int) -> int:
        """Nothing of the host."""
        return 0

    def temporary_bytes(self, rows: int, pixels: int, piece_rows: int | None = None) -> int:
        """What one view of so many rows and pixels is expected to need beside the arena, after what was seen so far; in
        pieces of at most `piece_rows` rows (None: in one)."""
        return self._temporaries.temporary_bytes(rows, pixels, piece_rows=piece_rows)

    def least_bytes(self, rows: int, pixels: int, piece_rows: int | None = None) -> int:
        """The same with tile lists for one tile row at a time (`band_bytes` 0)."""
        return self._temporaries.least_bytes(rows, pixels, piece_rows=piece_rows)

    def radii(self) -> Tensor:
        """[M, 2] i32, px; (0, 0) for rows that were not drawn."""
        return self._scattered(1)

    def means2d(self) -> Tensor:
        """[M, 2] f32, px; 0 for rows that were not drawn."""
        return self._scattered(2)

    def _scattered(self, column: int) -> Tensor:
        where = self._view.screen or self._where()
        values = where[column]
        return values.new_zeros((self._view.rows, 2)).index_copy_(0, where[0], values)

    def _where(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row numbers in the view [n], radii and means of its splats: 24 bytes each until the next view."""
        if not self._view.parts:
            none = torch.zeros((0, 2), device=self._device)
            return torch.zeros(0, dtype=torch.int64, device=self._device), none.to(torch.int32), none
        ids = [piece.ids + piece.first if piece.first else piece.ids for piece in self._view.pieces]
        splats = self._view.parts[0]
        return torch.cat(ids) if len(ids) > 1 else ids[0], splats.radii, splats.means2d

    def _number_due(self, first: int, rows: int) -> int | None:
        """Of a piece whose gradients were not added yet. Not the piece: the frames of an error would hold its memory."""
        pieces = self._view.pieces
        return next((i for i in self._view.due if pieces[i].first == first and pieces[i].rows == rows), None)

    def _graph_of(self, geometry: Tensor, colour: Tensor, slots: Tensor) -> Projected:
        assert self._view.camera is not None
        return seam.project(self._ops, geometry, colour, slots, self._view.camera, self._view.degree, self._options)

    def _learn(self) -> None:
        """From a training view whose pixels are done: what its own tensors take, whatever other lanes do meanwhile."""
        assert self._view.camera is not None
        count = self._view.camera.width * self._view.camera.height
        pieces = self._view.pieces
        piece = max((p.rows for p in pieces), default=0), max((len(p.ids) for p in pieces), default=0)
        peak = view_bytes(
            self._view.rows, self._view.drawn, self._pairs, count, self._view.degree, piece, self._in_bands,
            self._view.exposed,
        )  # fmt: skip
        self.peak_temporaries = max(self.peak_temporaries, peak)
        self._temporaries = self._temporaries.learn(peak + FIXED_BYTES, self._view.rows, count, self._view.degree)

    def _or_out_of_memory(self, work: Callable[[], _Result], what: str) -> _Result:
        """The result of `work`; OutOfDeviceMemory where the device's memory does not suffice, and the view is forgotten,
        unless gradients of some of its pieces were added already.

        The new error is raised outside the handler: as its context the old one would keep alive the frames of `work`, and
        with them the memory that a second try needs.
        """
        try:
            return work()
        except RuntimeError as error:
            # What gsplat's extension or a CUDA call reports arrives as a plain RuntimeError.
            if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
                raise
        rows = self._view.rows
        if not 0 < len(self._view.due) < len(self._view.pieces):
            self._view = View()
        raise OutOfDeviceMemory(
            f"The device ran out of memory while {what} a view of {rows:,} Gaussians.",
            "Pass a smaller --gpu-memory (the arena leaves more room then), --max-size or --max-gaussians.",
        )
