"""A scene in a few plain values: equal for two processes that train on the same one, wherever it lies on their disks."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from clm.scene.scene import Scene


def fingerprint(scene: Scene) -> dict[str, Any]:
    """By name, in the order in which a reader wants to know. Numbers that were computed are compared as float32, because two
    machines may round the last bits of a double differently. The scene's points must not be forgotten yet."""
    cameras = [view.camera for view in scene.views]
    return {
        "number of photos": len(scene.views),
        "photos' names": _checksum("\n".join(view.name for view in scene.views).encode()),
        "sizes of photos": _checksum(np.array([(c.width, c.height) for c in cameras], np.int64)),
        "number of held-out photos": len(scene.test),
        "held-out photos": _checksum(np.asarray(scene.test, np.int64)),
        "photos to train on": _checksum(np.asarray(scene.train, np.int64)),
        "masks": _checksum(np.array([view.mask_path is not None for view in scene.views])),
        "cameras": _checksum(np.array([camera.packed for camera in cameras], np.float32)),
        "number of points": len(scene.points),
        "points": _checksum(scene.points),
        "colours of points": _checksum(scene.point_colors),
        "scene scale": float(f"{scene.scale:.6g}"),
        "near plane": float(f"{cameras[0].near:.6g}") if cameras else 0.0,
    }


def _checksum(values: bytes | np.ndarray) -> str:
    data = values if isinstance(values, bytes) else np.ascontiguousarray(values).tobytes()
    return f"{zlib.crc32(data):08x}"
