"""Large COLMAP models for tests and measurements, written without COLMAP."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_points(path: Path, ids: np.ndarray, xyz: np.ndarray, rgb: np.ndarray, tracks: np.ndarray) -> None:
    """points3D.bin or .txt of points [P]: ids, xyz [P, 3], rgb [P, 3] u8, lengths of their tracks."""
    if path.suffix == ".txt":
        rows = zip(ids.tolist(), xyz.tolist(), rgb.tolist(), tracks.tolist(), strict=True)
        with open(path, "w") as file:
            file.write(f"# 3D point list\n# Number of points: {len(ids)}, mean track length: 0\n")
            for number, (x, y, z), (r, g, b), track in rows:
                file.write(f"{number} {x!r} {y!r} {z!r} {r} {g} {b} 0.5{' 1 2' * track}\n")
        return
    with open(path, "wb") as file:
        file.write(np.uint64(len(ids)).tobytes())
        for first in range(0, len(ids), 1 << 18):  # records of one length are written together, so tracks come in runs
            piece = slice(first, first + (1 << 18))
            for length in np.unique(tracks[piece]).tolist():
                those = np.flatnonzero(tracks[piece] == length) + first
                kind = [("id", "<u8"), ("xyz", "<f8", 3), ("rgb", "u1", 3), ("error", "<f8"), ("length", "<u8")]
                rows = np.zeros(len(those), np.dtype([*kind, ("track", "<u4", (length, 2))]))
                rows["id"], rows["xyz"], rows["rgb"], rows["length"] = ids[those], xyz[those], rgb[those], length
                rows.tofile(file)
