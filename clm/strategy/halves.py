"""The two rows that a row becomes when it grows: its halves along its longest axis.

Long-axis split (Deng et al. 2025, "Improving Densification in 3D Gaussian Splatting for High-Fidelity Rendering"), in place of
cloning small rows and drawing the children of large ones. Halves lie where their row's ink was and not where a draw puts them,
and differ from the first step on, where a clone has to be pulled off its double.
"""

from __future__ import annotations

import numpy as np

from clm.store.layout import LOG_SCALES, LOGIT_OPACITIES, MEANS, QUATS

ASIDE = 1.35  # standard deviations along the longest axis, to either side
LONGEST, OTHERS, FAINTER = 0.55, 0.893, 0.6  # what is left of the longest axis, of the others, and of the opacity


def halve(geometry: np.ndarray, second: np.ndarray) -> None:
    """Rows geometry [K, 12] f32 become, in place, one of their halves each: the second one where `second` [K] bool. Each is a
    function of its row alone."""
    rows, scales = np.arange(len(geometry)), geometry[:, LOG_SCALES]
    a = scales.argmax(axis=1)
    b, c = (a + 1) % 3, (a + 2) % 3
    q = geometry[:, QUATS].astype(np.float64)
    q /= np.maximum(np.sqrt((q * q).sum(axis=1)), 1e-12)[:, None]
    w, va, vb, vc = q[:, 0], q[rows, 1 + a], q[rows, 1 + b], q[rows, 1 + c]
    aside = np.where(second, -ASIDE, ASIDE) * np.exp(scales[rows, a].astype(np.float64))
    means = geometry[:, MEANS]
    # The column of the rotation that is the longest axis.
    means[rows, a] += aside * (1.0 - 2.0 * (vb * vb + vc * vc))
    means[rows, b] += aside * (2.0 * (va * vb + w * vc))
    means[rows, c] += aside * (2.0 * (va * vc - w * vb))
    scales += np.float32(np.log(OTHERS))
    scales[rows, a] += np.float32(np.log(LONGEST / OTHERS))
    opacity = FAINTER / (1.0 + np.exp(-geometry[:, LOGIT_OPACITIES].astype(np.float64)))
    geometry[:, LOGIT_OPACITIES] = np.log(opacity / (1.0 - opacity))
