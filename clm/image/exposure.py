"""An exposure: what lies between the neutral colours of a model and those of one photo, an affine map with 13 parameters.

seen = exp(log_gain) * (I + change) @ rgb + offset, with a log gain, a change of colours [3, 3] and an offset [3] per photo, all
0 where a photo is neutral. Values are of the 8-bit scale over 255, as the loss compares them. A model's colours and all gains
together are known up to one common exposure, so the mean over all photos is kept at zero: exported colours are those of the mean
photo. Everything here is f64 on the host, a few numbers a view; the maps themselves run where the picture is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

PARAMETERS = 13
LOG_GAIN, CHANGE, OFFSET = 0, slice(1, 10), slice(10, 13)


def matrix_of(parameters: np.ndarray) -> np.ndarray:
    """The affine map [3, 4] f32 of parameters [13] f64."""
    linear = np.exp(parameters[LOG_GAIN]) * (np.eye(3) + parameters[CHANGE].reshape(3, 3))
    return np.column_stack([linear, parameters[OFFSET]]).astype(np.float32)


def parameter_gradient(parameters: np.ndarray, v_matrix: np.ndarray) -> np.ndarray:
    """From the gradient of the map [3, 4] to that of the parameters [13] f64."""
    gain = np.exp(parameters[LOG_GAIN])
    linear = gain * (np.eye(3) + parameters[CHANGE].reshape(3, 3))
    v_gain = (linear * v_matrix[:, :3]).sum()
    return np.concatenate([[v_gain], (gain * v_matrix[:, :3]).reshape(-1), v_matrix[:, 3]])


def expose(rgb: np.ndarray, matrix: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """rgb [3, H, W] f32 through the map [3, 4] f32."""
    out = np.empty_like(rgb) if out is None else out
    for seen, row in zip(out, matrix, strict=True):
        _weighted(rgb, row[:3], seen)
        seen += row[3]
    return out


def expose_backward(rgb: np.ndarray, matrix: np.ndarray, v_seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of rgb [3, H, W] f32 and of the map [3, 4] f64, from that of the picture seen. The sums over pixels have a fixed
    order: no matrix products, which libraries divide among threads."""
    v_matrix, v_rgb = np.empty((3, 4)), np.empty_like(rgb)
    for c, v in enumerate(v_seen):
        for d, colour in enumerate(rgb):
            v_matrix[c, d] = np.einsum("hw,hw->", v, colour, dtype=np.float64)
        v_matrix[c, 3] = v.sum(dtype=np.float64)
    for column, out in zip(matrix[:, :3].T, v_rgb, strict=True):
        _weighted(v_seen, column, out)
    return v_rgb, v_matrix


def _weighted(planes: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """out [H, W] = the sum of planes [3, H, W] by weights [3]."""
    np.multiply(planes[0], weights[0], out=out)
    for plane, weight in zip(planes[1:], weights[1:], strict=True):
        out += plane * weight


@dataclass
class ViewExposure:
    """Of one view under way."""

    matrix: np.ndarray  # [3, 4] f32
    gradient: Any = None  # [3, 4], of the map, on the device that rendered; None until the view was differentiated
