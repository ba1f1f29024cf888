"""What is drawn from keys, as clm.store.identity says it, in numpy."""

from __future__ import annotations

import numpy as np

from clm.store.identity import _GOLDEN, _WORD, _hashed, _mixed


def slow_normals(keys: np.ndarray, seed: int, image: int) -> np.ndarray:
    """Three standard normal numbers [K, 3] f64 for each of keys [K] u64 (Box and Muller 1958)."""
    state = _hashed(keys, 2, seed, image)
    first, second, third, fourth = (
        (_mixed(state + np.uint64(k * _GOLDEN & _WORD)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        for k in range(1, 5)
    )
    near, far = np.sqrt(-2.0 * np.log1p(-first)), np.sqrt(-2.0 * np.log1p(-third))
    return np.stack(
        [near * np.cos(2 * np.pi * second), near * np.sin(2 * np.pi * second), far * np.cos(2 * np.pi * fourth)], axis=1
    )


def quats_to_rotations(quats: np.ndarray) -> np.ndarray:
    """Rotation matrices [N, 3, 3] of quaternions wxyz [N, 4] of any norm."""
    w, x, y, z = (quats / np.maximum(np.linalg.norm(quats, axis=1, keepdims=True), 1e-12)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)
