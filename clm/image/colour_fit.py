"""Colour correction of a picture before it is measured: the affine map of colours that brings it nearest to its photo.

A model that was trained on photos of many exposures has one neutral exposure, so a held-out photo differs from its picture by
an exposure that nobody can know. The usual remedy fits it: least squares over all pixels that count, three colours and an
offset, one map for the whole picture (`color_correct_affine` of gsplat's examples is the same procedure).
Invariant: the corrected picture is never farther from the photo (in squared error) than the picture itself.
"""

from __future__ import annotations

import numpy as np

_PIECE = 1 << 16  # pixels at a time


def colour_corrected(rgb: np.ndarray, photo: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """rgb [3, H, W] f32, clamped to [0, 1], after its least-squares affine map to photo [H, W, 3] u8 [3, H, W] f32; only pixels
    where `mask` [H, W] is not 0 are fitted, all are mapped. Takes finite values."""
    picture = np.clip(rgb, 0.0, 1.0).reshape(3, -1)
    targets, keep = photo.reshape(-1, 3), None if mask is None else mask.reshape(-1) != 0
    gram, sides = np.zeros((4, 4)), np.zeros((4, 3))
    for first in range(0, picture.shape[1], _PIECE):
        at = slice(first, first + _PIECE)
        x = np.ones((4, targets[at].shape[0]))
        x[:3], y = picture[:, at], targets[at] / 255.0
        if keep is not None:
            x, y = x[:, keep[at]], y[keep[at]]
        gram += np.einsum("in,jn->ij", x, x)  # not a matrix product: no threads, so one order of additions
        sides += np.einsum("in,nc->ic", x, y)
    # The change to the picture is what is solved for: where colours do not vary, the least one is none.
    sides -= gram[:, :3]
    change = np.linalg.lstsq(gram, sides, rcond=1e-12)[0]
    matrix = (change[:3].T + np.eye(3)).astype(np.float32)
    corrected = np.einsum("cd,dn->cn", matrix, picture) + change[3].astype(np.float32)[:, None]
    return np.ascontiguousarray(corrected.reshape(rgb.shape), np.float32)
