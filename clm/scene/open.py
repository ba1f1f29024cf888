"""The scene of a configuration: what its keys mean to `load_scene`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clm.config import Config
from clm.scene.scene import Scene, load_scene


def open_scene(data: Path, config: Config, **overrides: Any) -> Scene:
    """The scene that `config` describes; `overrides` are arguments of `load_scene`."""
    downscale = config.downscale if config.downscale == "auto" else int(config.downscale)
    options: dict[str, Any] = {
        "images": config.images,
        "model": config.model,
        "downscale": downscale,
        "max_size": config.max_size,
        "test_every": config.test_every,
        "test_list": config.test_list,
        "masks": config.masks,
        "mask_mode": config.mask_mode,
        "near": config.near,
        "far": config.far,
        "strict": config.strict,
    }
    return load_scene(data, **{**options, **overrides})
