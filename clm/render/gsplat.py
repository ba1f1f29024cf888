"""The CUDA backend: gsplat 1.5.3 between our arena and our loss, with the same face as `clm.render.cpu.CpuRasterizer`.

Ours are the gather, the activations with their derivatives, the addition at the slots and the statistics; gsplat projects,
sorts and blends. Invariants: nothing here waits for the device (gsplat itself reads two counts per forward, of drawn rows
and of tile pairs, and waits for its own stream to do so); gradients are added in two operations that allocate nothing,
after everything that may run out of memory, so a view that failed can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from clm.camera import Camera
from clm.errors import ClmError, OutOfDeviceMemory
from clm.gaussians.layout import (
    GRAD_DRAWN,
    GRAD_GEOMETRY_COLUMNS,
    GRAD_SCREEN,
    LOG_SCALES,
    LOGIT_OPACITIES,
    MEANS,
    QUATS,
)
from clm.kernels.rows import colour_columns
from clm.render.cuda_check import CudaFacts, check_cuda
from clm.render.temporaries import Temporaries
from clm.render.torch_loss import DeviceLoss, l1_ssim

__all__ = ["CudaFacts", "DeviceRender", "GsplatRasterizer", "Temporaries", "check_cuda", "load_ops"]

_BLUR = 0.3  # px^2 (RASTER.md 3)
_Result = TypeVar("_Result")


class Ops(NamedTuple):
    """The two functions of gsplat that are used; tests put doubles here."""

    rasterization: Callable[..., tuple[Tensor, Tensor, dict[str, Any]]]
    spherical_harmonics: Callable[..., Tensor]


@dataclass(frozen=True)
class DeviceRender:
    """One rendered view, as `clm.render.cpu.Render` but on the device; the tensors are the caller's to keep."""

    rgb: Tensor  # [3, H, W] f32, background blended in, not clamped; a view of [H, W, 3 or 4]
    alpha: Tensor  # [H, W] f32
    depth: Tensor | None  # [H, W] f32 expected camera depth, scene units; 0 where nothing was drawn
    drawn: int  # rows with radii > 0 (rows that are not finite included)


@dataclass(frozen=True)
class _View:
    """The last forward: leaves and outputs of its graph. M rows of the view, n of them drawn."""

    slots: Tensor  # [M] i32 or i64
    leaves: tuple[Tensor, ...]  # means [M, 3], quats [M, 4], scales [M, 3], opacities [M], coefficients [M, K, 3]
    image: Tensor  # [1, H, W, 3 or 4]
    alpha: Tensor  # [1, H, W, 1]
    ids: Tensor  # [n] i64 positions of drawn rows among the M, ascending
    radii: Tensor  # [n, 2] i32 px
    means2d: Tensor  # [n, 2] px


@dataclass(frozen=True)
class _Screen:
    """Where the drawn rows of the last forward are, for tests: 24 bytes per row until the next forward."""

    rows: int  # M
    ids: Tensor  # [n] i64
    radii: Tensor  # [n, 2] i32
    means2d: Tensor  # [n, 2] f32

    @staticmethod
    def empty(device: torch.device) -> _Screen:
        pairs = torch.zeros((0, 2), device=device)
        return _Screen(0, torch.zeros(0, dtype=torch.int64, device=device), pairs.to(torch.int32), pairs)

    def scattered(self, name: str) -> Tensor:
        values: Tensor = getattr(self, name)
        return values.new_zeros((self.rows, 2)).index_copy_(0, self.ids, values)


def load_ops(say: Callable[[str], None]) -> Ops:
    """Import gsplat, compiling its kernels the first time; ClmError where it cannot work here.

    `say` hears in advance that and how long a compilation takes.
    """
    facts = check_cuda()
    if not facts.compiled:
        say(
            f"Compiling gsplat's CUDA kernels with {facts.nvcc} for the first time: one to three minutes. "
            "Later runs use the compiled ones."
        )
    fix = "Run `VERBOSE=1 python -c 'import gsplat.cuda._backend'` to see the compiler's words, or pass --device cpu."
    try:
        import gsplat
        from gsplat.cuda import _backend  # compiles here, not in the middle of the first view
    except Exception as error:  # a compiler may fail with anything; the user needs one sentence
        raise ClmError(f"gsplat's CUDA kernels do not compile or load: {_first_line(error)}", fix) from error
    if _backend._C is None:
        raise ClmError("gsplat was imported, but without its CUDA kernels.", fix)
    return Ops(gsplat.rasterization, gsplat.spherical_harmonics)


class GsplatRasterizer:
    """Forward and backward of one view at a time; one backward per forward, which frees the view's graph."""

    def __init__(
        self,
        antialiased: bool = False,
        absgrad: bool = False,
        near: float = 0.01,
        far: float = 1e10,
        radius_clip: float = 0.0,
        *,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Imports gsplat, and compiles it the first time, which `say` announces. ClmError where CUDA cannot be used."""
        if not 0 < near < far:
            raise ValueError(f"want 0 < near < far, got near={near}, far={far}")
        self.antialiased = antialiased
        self.absgrad = absgrad
        self._limits = (near, far, radius_clip)
        self._ops = load_ops(say)
        self.peak_temporaries = 0  # bytes, of the views computed so far
        self._temporaries = Temporaries()
        self._view: _View | None = None  # between forward and backward
        self._screen: _Screen | None = None  # of the last forward

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
        """Draw the rows geometry[slots] [A, 12] and colour[slots] [A, 48] (raw: log scales, logit opacities), f32.

        `slots` [M] i32 or i64, unique, in ascending row order, on the arena's device. The arena may change afterwards: the
        view's rows are copied. Raises OutOfDeviceMemory.
        """
        self._view = self._screen = None  # the former view's memory goes before this one's is taken
        if len(slots) == 0:  # gsplat divides by the number of rows
            self._screen = _Screen.empty(geometry.device)
            return _backdrop_alone(camera, background, depth, geometry.device)
        view = _or_out_of_memory(
            lambda: self._draw(geometry, colour, slots, camera, sh_degree, background, depth), "drawing", len(slots)
        )
        self._view, self._screen = view, _Screen(len(slots), view.ids, view.radii, view.means2d.detach())
        image = view.image.detach()[0]
        expected = image[..., 3] if depth else None
        return DeviceRender(image[..., :3].permute(2, 0, 1), view.alpha.detach()[0, ..., 0], expected, len(view.ids))

    def backward(
        self,
        v_rgb: Tensor,
        grad_geometry: Tensor,
        grad_colour: Tensor,
        v_alpha: Tensor | None = None,
        v_depth: Tensor | None = None,
        finite: Tensor | None = None,
    ) -> None:
        """Add the gradients of the last forward to grad_geometry [A, 16] and grad_colour [A, 48] at its slots.

        Columns 0:11 as geometry; 11: +1 per drawn row; 12: + norm of the screen gradient in half image sizes (with
        absgrad of the per-axis sums over pixels of its absolute value). `v_depth` needs a forward with depth=True.
        `finite` (0-d bool, `DeviceLoss.finite`): where false nothing is added, neither gradients nor counts. Raises
        OutOfDeviceMemory before anything is added; then the view starts again from forward.
        """
        if self._screen is not None and self._screen.rows == 0:
            return
        view = self._view
        if view is None:
            raise ValueError("backward needs a forward of its own: the graph of a view is freed by its backward")
        if v_depth is not None and view.image.shape[-1] == 3:
            raise ValueError("v_depth needs a forward with depth=True")
        if len(view.ids) == 0:
            self._view = None
            return
        slots, columns = view.slots, 3 * view.leaves[-1].shape[1]
        del view  # the frame of an error that leaves here must not keep the graph alive
        rows, coefficients = _or_out_of_memory(
            lambda: self._gradient_rows(v_rgb, v_alpha, v_depth, finite), "computing the gradients of", len(slots)
        )
        grad_geometry.index_add_(0, slots, rows)
        grad_colour[:, :columns].index_add_(0, slots, coefficients)

    def loss_and_gradients(
        self,
        arena: Any,
        slots: Tensor,
        camera: Camera,
        sh_degree: int,
        background: np.ndarray | tuple[float, float, float],
        photo: np.ndarray,
        mask: np.ndarray | None,
        ssim_weight: float,
    ) -> Tensor:
        """As `CpuRasterizer.loss_and_gradients`; the loss is a 0-d tensor on the device. Raises OutOfDeviceMemory before
        anything is added. Photo [H, W, 3] u8 and mask [H, W] are on the host."""
        device, before = arena.geometry.device, self._allocated(reset=True)
        render = self.forward(arena.geometry, arena.colour, slots, camera, sh_degree, background)

        def compare() -> DeviceLoss:
            kept = None if mask is None else _upload(mask, device)
            return l1_ssim(render.rgb, _upload(photo, device), ssim_weight, kept)

        loss = _or_out_of_memory(compare, "comparing", len(slots))
        self.backward(loss.v_rgb, arena.grad_geometry, arena.grad_colour, finite=loss.finite)
        peak = self._allocated() - before
        self.peak_temporaries = max(self.peak_temporaries, peak)
        self._temporaries = self._temporaries.learn(peak, len(slots), camera.width * camera.height, sh_degree)
        return loss.total

    def temporary_bytes(self, rows: int, pixels: int) -> int:
        """What one view of so many rows and pixels is expected to need beside the arena, after what was seen so far."""
        return self._temporaries.temporary_bytes(rows, pixels)

    @staticmethod
    def _allocated(reset: bool = False) -> int:
        """Bytes that torch has handed out: now, and from now on the peak is counted (reset), or the peak since then. These
        are counters of the host."""
        if not torch.cuda.is_available():
            return 0
        if reset:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        return torch.cuda.max_memory_allocated()

    def radii(self) -> Tensor:
        """[M, 2] i32, px; (0, 0) for rows that were not drawn."""
        return self._screen_of_forward().scattered("radii")

    def means2d(self) -> Tensor:
        """[M, 2] f32, px; 0 for rows that were not drawn."""
        return self._screen_of_forward().scattered("means2d")

    def _screen_of_forward(self) -> _Screen:
        if self._screen is None:
            raise ValueError("no view was drawn yet")
        return self._screen

    def _draw(
        self,
        geometry: Tensor,
        colour: Tensor,
        slots: Tensor,
        camera: Camera,
        sh_degree: int,
        background: np.ndarray | tuple[float, float, float],
        depth: bool,
    ) -> _View:
        """Gather, activate and rasterise; the graph begins at the activated values."""
        means = geometry[:, MEANS].index_select(0, slots).requires_grad_()
        quats = geometry[:, QUATS].index_select(0, slots).requires_grad_()
        scales = geometry[:, LOG_SCALES].index_select(0, slots).exp_().requires_grad_()
        opacities = geometry[:, LOGIT_OPACITIES].index_select(0, slots).sigmoid_().requires_grad_()
        columns = colour_columns(sh_degree)
        coefficients = colour[:, :columns].index_select(0, slots).view(len(slots), columns // 3, 3).requires_grad_()
        viewmat, intrinsics, centre, backdrop = _camera_tensors(camera, background, geometry.device)
        near, far, radius_clip = self._limits
        with torch.enable_grad():
            # Not gsplat's own `sh_degree`: it would copy the coefficients of drawn rows, add their gradients by a sort, and
            # invert the view matrix, which waits for the device. This is what it does otherwise, clamp included.
            colours = self._ops.spherical_harmonics(sh_degree, means - centre, coefficients)
            colours = torch.clamp_min(colours + 0.5, 0.0)
            image, alpha, info = self._ops.rasterization(
                means,
                quats,
                scales,
                opacities,
                colours,
                viewmat[None],
                intrinsics[None],
                camera.width,
                camera.height,
                near_plane=near,
                far_plane=far,
                radius_clip=radius_clip,
                eps2d=_BLUR,
                packed=True,
                backgrounds=backdrop[None],
                render_mode="RGB+ED" if depth else "RGB",
                absgrad=self.absgrad,
                rasterize_mode="antialiased" if self.antialiased else "classic",
            )
        leaves = (means, quats, scales, opacities, coefficients)
        # The rest of `info` goes: its sorted tile lists are 12 bytes per pair.
        return _View(slots, leaves, image, alpha, info["gaussian_ids"], info["radii"], info["means2d"])

    def _gradient_rows(
        self, v_rgb: Tensor, v_alpha: Tensor | None, v_depth: Tensor | None, finite: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Gradient rows in the arena's layout: [M, 16], [M, columns]; zeros for rows that were not drawn. Takes the view."""
        view, self._view = self._view, None
        assert view is not None
        v_image = v_rgb.permute(1, 2, 0)[None]
        if view.image.shape[-1] == 4:
            last = torch.zeros_like(view.image[..., 3:]) if v_depth is None else v_depth[None, ..., None]
            v_image = torch.cat([v_image, last], -1)
        outputs, cotangents = [view.image], [v_image]
        if v_alpha is not None:
            outputs.append(view.alpha)
            cotangents.append(v_alpha[None, ..., None])
        gradients = torch.autograd.grad(outputs, (*view.leaves, view.means2d), cotangents)
        v_means, v_quats, v_scales, v_opacities, v_coefficients, v_screen = gradients
        if self.absgrad:
            v_screen = view.means2d.absgrad  # type: ignore[attr-defined]  # gsplat leaves it there
        _, _, scales, opacities, _ = (leaf.detach() for leaf in view.leaves)
        # A row that is not finite passes gsplat's culls with radius 0.
        drawn = (view.radii > 0).all(-1)
        if finite is not None:
            drawn = drawn & finite
        height, width = view.image.shape[1:3]
        screen = torch.hypot(v_screen[:, 0] * (width / 2), v_screen[:, 1] * (height / 2))
        keep = torch.zeros(len(view.slots), dtype=torch.bool, device=drawn.device).index_copy_(0, view.ids, drawn)
        rows = torch.zeros((len(view.slots), GRAD_GEOMETRY_COLUMNS), device=drawn.device)
        rows[:, MEANS] = v_means
        rows[:, QUATS] = v_quats
        torch.mul(v_scales, scales, out=rows[:, LOG_SCALES])
        torch.mul(v_opacities, opacities * (1 - opacities), out=rows[:, LOGIT_OPACITIES])
        rows[:, GRAD_DRAWN] = 1
        rows[:, GRAD_SCREEN].index_copy_(0, view.ids, screen)
        # Not a product: 0 times what is not finite is not 0.
        dropped = ~keep[:, None]
        return rows.masked_fill_(dropped, 0.0), v_coefficients.flatten(1).masked_fill_(dropped, 0.0)


def _camera_tensors(
    camera: Camera, background: np.ndarray | tuple[float, float, float], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """World to camera [4, 4], K [3, 3], camera centre [3], background [3] on the device, in one small copy."""
    parts = [camera.world_to_camera, camera.K, camera.position, background]
    flat = np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in parts]).astype(np.float32)
    host = torch.from_numpy(flat)
    if device.type == "cuda":
        host = host.pin_memory()  # from pageable memory the copy may wait for the stream
    viewmat, intrinsics, centre, backdrop = host.to(device, non_blocking=True).split([16, 9, 3, 3])
    return viewmat.view(4, 4), intrinsics.view(3, 3), centre, backdrop


def _upload(array: np.ndarray, device: torch.device) -> Tensor:
    """A photo or a mask on the device, without waiting for the stream."""
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    host = torch.empty(array.shape, dtype=dtype, pin_memory=device.type == "cuda")
    host.numpy()[...] = array  # the one copy on the host, of what the cache may drop
    return host.to(device, non_blocking=True)


def _backdrop_alone(
    camera: Camera, background: np.ndarray | tuple[float, float, float], depth: bool, device: torch.device
) -> DeviceRender:
    """The image of a view without rows."""
    size = camera.height, camera.width
    backdrop = _camera_tensors(camera, background, device)[3]
    empty = torch.zeros(size, device=device)
    return DeviceRender(backdrop[:, None, None].expand(3, *size), empty, empty if depth else None, 0)


def _or_out_of_memory(work: Callable[[], _Result], what: str, rows: int) -> _Result:
    """The result of `work`; OutOfDeviceMemory where the device's memory does not suffice.

    The new error is raised outside the handler: as its context the old one would keep alive the frames of `work`, and with
    them the memory that a second try needs.
    """
    try:
        return work()
    except RuntimeError as error:
        # What gsplat's extension or a CUDA call reports arrives as a plain RuntimeError.
        if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
            raise
    raise OutOfDeviceMemory(
        f"The device ran out of memory while {what} a view of {rows:,} Gaussians.",
        "Pass a smaller --gpu-memory (the arena leaves more room then), --max-size or --max-gaussians.",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
