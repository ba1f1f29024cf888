"""A PLY read whole, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clm.formats.ply_read import open_ply


def read_all(path: Path | str, size: int = 1 << 16) -> tuple[np.ndarray, np.ndarray]:
    """All usable rows: geometry [N, 12] and colour [N, 48]."""
    chunks = list(open_ply(path).chunks(size))
    return np.concatenate([g for g, _ in chunks]), np.concatenate([c for _, c in chunks])
