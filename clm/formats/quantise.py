"""What the compressed formats share: numbers in few bits, counted where they do not fit, and turned axes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clm.store.layout import LOG_SCALES, MEANS, QUATS, SHN

ROTATION_SCALE = np.sqrt(0.5)  # no component of a unit quaternion but its largest is larger
# Of the 15 coefficients above degree 0 in 3DGS's order, those whose function changes its sign where two axes do.
_ODD_ABOUT_X = np.array([0, 1, 3, 6, 8, 10, 11, 13])  # y and z change their signs
_ODD_ABOUT_Z = np.array([0, 2, 4, 6, 8, 10, 12, 14])  # x and y do
_LOGITS: list[np.ndarray] = []


class Clipped:
    """Brings values into the range of a format, and says at the end how many were not."""

    def __init__(self, ending: str):
        self._ending, self._counts = ending, dict[str, int]()

    def __call__(self, values: np.ndarray, low: float, high: float, what: str) -> np.ndarray:
        """Values inside [low, high], a fresh array; `what` is said of those outside: `log-scales below -10`."""
        outside = int(np.count_nonzero(values < low) + np.count_nonzero(values > high))
        if outside:
            self._counts[what] = self._counts.get(what, 0) + outside
        return np.clip(values, low, high)

    def say(self, warn: Callable[[str], None]) -> None:
        if self._counts:
            what = ", ".join(f"{count:,} {name}" for name, count in self._counts.items())
            warn(f"Clipped to what {self._ending} holds: {what}.")


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) in float64, without overflow."""
    half = np.exp(-np.abs(logits.astype(np.float64)))
    return np.where(logits >= 0, 1.0, half) / (1.0 + half)


def opacity_bytes(logits: np.ndarray) -> np.ndarray:
    """Opacities [k] u8 of 0..255 from logits."""
    return np.floor(sigmoid(logits) * 255 + 0.5).astype(np.uint8)


def logits_of(opacities: np.ndarray) -> np.ndarray:
    """Logits f32 of opacities [k] u8, or of numbers 0..1; what is opaque or transparent is taken as 1e-6 from it."""
    if opacities.dtype == np.uint8:
        if not _LOGITS:
            _LOGITS.append(logits_of(np.arange(256) / 255))
        return _LOGITS[0][opacities]
    inside = np.clip(opacities.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.log(inside / (1 - inside)).astype(np.float32)


def unit_quats(geometry: np.ndarray) -> np.ndarray:
    """Quaternions wxyz [k, 4] f64 of norm 1."""
    quats = geometry[:, QUATS].astype(np.float64)
    return quats / np.sqrt((quats * quats).sum(axis=1, keepdims=True))


def linear_scales(geometry: np.ndarray, clipped: Clipped) -> np.ndarray:
    """Standard deviations [k, 3] f32 that are neither 0 nor infinite."""
    return np.exp(
        clipped(geometry[:, LOG_SCALES], -87.0, 88.0, "log-scales beyond -87 and 88").astype(np.float64)
    ).astype(np.float32)


def turn(geometry: np.ndarray, colour: np.ndarray, axis: str) -> None:
    """Turn rows by 180 degrees about the x or the z axis of the world, in place: centres, rotations, spherical harmonics. Twice is
    once not at all, but for the sign of the quaternion."""
    w, x, y, z = geometry[:, QUATS].T.copy()
    shN = colour[:, SHN].reshape(-1, 15, 3)  # a view
    if axis == "x":
        geometry[:, MEANS] *= np.array([1, -1, -1], np.float32)
        geometry[:, QUATS] = np.column_stack([-x, w, -z, y])
        shN[:, _ODD_ABOUT_X] *= -1
    else:
        geometry[:, MEANS] *= np.array([-1, -1, 1], np.float32)
        geometry[:, QUATS] = np.column_stack([-z, -y, x, w])
        shN[:, _ODD_ABOUT_Z] *= -1
