"""Splats for a browser that draws by itself: Gaussians in its frame, with the colours that the current camera sees.

A browser's splats have no spherical harmonics: each has one colour, which is right from one place only. So colours are evaluated
anew here where the camera comes to rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from clm.store.layout import LOG_SCALES, LOGIT_OPACITIES, MEANS, QUATS
from clm.store.store import Store
from clm.view.frame import Frame

MOST_SPLATS = 1_000_000  # a browser sorts and holds 32 bytes of each
_CHUNK = 1 << 16
_C1 = 0.4886025119029199
_C2 = (1.0925484305920792, -1.0925484305920792, 0.31539156525252005, -1.0925484305920792, 0.5462742152960396)
_C3 = (
    -0.5900435899266435,
    2.890611442640554,
    -0.4570457994644658,
    0.3731763325901154,
    -0.4570457994644658,
    1.445305721320277,
    -0.5900435899266435,
)  # fmt: skip
SH_C0 = 0.28209479177387814


class Splats(NamedTuple):
    """In the browser's frame, all f32."""

    centers: np.ndarray  # [n, 3]
    covariances: np.ndarray  # [n, 3, 3]
    opacities: np.ndarray  # [n, 1]


@dataclass(frozen=True, eq=False)
class BrowserModel:
    """The rows of a model that a browser may draw. means [n, 3], colour [n, 48] f32 are the model's own."""

    splats: Splats
    means: np.ndarray
    colour: np.ndarray
    sh_degree: int

    @staticmethod
    def of(store: Store, sh_degree: int, frame: Frame) -> BrowserModel:
        """Of a store without moments, whose rows all go to the browser: 264 bytes of each here."""
        parts = list(store.exact_chunks(None))
        geometry, colour = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
        means = np.ascontiguousarray(geometry[:, MEANS])
        opacities = 1.0 / (1.0 + np.exp(-geometry[:, LOGIT_OPACITIES].reshape(-1, 1)))
        splats = Splats(
            frame.to_browser(means).astype(np.float32),
            covariances(geometry[:, QUATS], geometry[:, LOG_SCALES], frame.scale),
            opacities.astype(np.float32),
        )
        return BrowserModel(splats, means, colour, sh_degree)

    def colours(self, position: np.ndarray) -> np.ndarray:
        """[n, 3] f32 in 0..1, as a camera at `position` [3] (of the model's frame) sees them."""
        out = np.empty((len(self.means), 3), np.float32)
        for first in range(0, len(out), _CHUNK):
            part = slice(first, first + _CHUNK)
            directions = self.means[part] - position.astype(np.float32)
            directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-20)
            basis = sh_basis(directions, self.sh_degree)
            coefficients = self.colour[part].reshape(-1, 16, 3)[:, : basis.shape[1]]
            out[part] = np.clip(0.5 + np.einsum("nk,nkc->nc", basis, coefficients), 0.0, 1.0)
        return out


def sh_basis(directions: np.ndarray, degree: int) -> np.ndarray:
    """Real spherical harmonics with INRIA's signs at unit directions [n, 3]: [n, (degree + 1)^2] f32."""
    x, y, z = directions.T
    columns = [np.full(len(directions), SH_C0, np.float32)]
    if degree > 0:
        columns += [-_C1 * y, _C1 * z, -_C1 * x]
    if degree > 1:
        xx, yy, zz = x * x, y * y, z * z
        columns += [
            _C2[0] * x * y,
            _C2[1] * y * z,
            _C2[2] * (2 * zz - xx - yy),
            _C2[3] * x * z,
            _C2[4] * (xx - yy),
        ]
    if degree > 2:
        columns += [
            _C3[0] * y * (3 * xx - yy),
            _C3[1] * x * y * z,
            _C3[2] * y * (4 * zz - xx - yy),
            _C3[3] * z * (2 * zz - 3 * xx - 3 * yy),
            _C3[4] * x * (4 * zz - xx - yy),
            _C3[5] * z * (xx - yy),
            _C3[6] * x * (xx - 3 * yy),
        ]
    return np.stack(columns, axis=1).astype(np.float32)


def covariances(quats: np.ndarray, log_scales: np.ndarray, scale: float) -> np.ndarray:
    """[n, 3, 3] f32 of quaternions [n, 4] (wxyz, any length) and log-scales [n, 3], lengths times `scale`."""
    w, x, y, z = (quats / np.maximum(np.linalg.norm(quats, axis=1, keepdims=True), 1e-20)).T
    rotation = np.empty((len(quats), 3, 3), np.float32)
    rotation[:, 0] = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], axis=1)
    rotation[:, 1] = np.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], axis=1)
    rotation[:, 2] = np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], axis=1)
    axes = rotation * (np.exp(log_scales) * scale)[:, None, :]
    return axes @ axes.transpose(0, 2, 1)
