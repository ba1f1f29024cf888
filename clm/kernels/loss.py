"""The fused L1 + SSIM kernel behind shapes and checks.

Scratch is kept per calling thread and only grows; its content means nothing between calls.
"""

from __future__ import annotations

import ctypes
import threading
from ctypes import c_double, c_int64, c_void_p
from functools import cache
from typing import Any

import numpy as np

from clm.kernels import load, pointer
from clm.kernels.memory import row_array

_local = threading.local()


@cache
def _library() -> ctypes.CDLL:
    library = load()
    image: list[Any] = [c_void_p, c_void_p, c_void_p, c_int64, c_int64]
    library.clm_loss_scratch.argtypes = [c_int64, c_int64]
    library.clm_loss_scratch.restype = c_int64
    library.clm_loss.argtypes = [*image, c_double, c_void_p, c_void_p, c_void_p]
    library.clm_metrics.argtypes = [*image, c_void_p, c_void_p]
    library.clm_loss.restype = library.clm_metrics.restype = None
    return library


def _scratch(library: ctypes.CDLL, height: int, width: int) -> np.ndarray:
    need = int(library.clm_loss_scratch(height, width))
    if getattr(_local, "floats", None) is None or len(_local.floats) < need:
        _local.floats = row_array(1, need)[0]
    return _local.floats


def loss(
    rgb: np.ndarray, target: np.ndarray, mask: np.ndarray | None, ssim_weight: float
) -> tuple[float, float, float, np.ndarray]:
    """rgb [3, H, W] f32, target [H, W, 3] u8, mask [H, W] u8 or None -> total, l1, ssim, v_rgb [3, H, W] f32."""
    library = _library()
    _, height, width = rgb.shape
    out = (c_double * 3)()
    v_rgb = np.empty((3, height, width), np.float32)
    scratch = _scratch(library, height, width)
    library.clm_loss(
        pointer(rgb, np.float32, 3, None, None),
        pointer(target, np.uint8, height, width, 3),
        pointer(mask, np.uint8, height, width),
        height,
        width,
        ssim_weight,
        pointer(scratch, np.float32, None),
        out,
        pointer(v_rgb, np.float32, 3, height, width),
    )
    return out[0], out[1], out[2], v_rgb


def error_sums(rgb: np.ndarray, target: np.ndarray, mask: np.ndarray | None) -> tuple[float, float]:
    """Sums over the kept pixels and channels of the squared error and of SSIM, with rgb clamped to [0, 1]."""
    library = _library()
    _, height, width = rgb.shape
    out = (c_double * 2)()
    scratch = _scratch(library, height, width)
    library.clm_metrics(
        pointer(rgb, np.float32, 3, None, None),
        pointer(target, np.uint8, height, width, 3),
        pointer(mask, np.uint8, height, width),
        height,
        width,
        pointer(scratch, np.float32, None),
        out,
    )
    return out[0], out[1]
