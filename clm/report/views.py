"""Held-out views for the page: render, photo and error, as JPEGs of bounded size in data URIs. One view is in memory at a time."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from clm.config import still_background
from clm.pictures import colour_map, file_stems
from clm.report.facts import Facts, dig, number
from clm.scene import CorruptImage, ImageCache, Scene

WORST = BEST = 3  # views that are shown
LARGEST_ERROR = 0.25  # of full scale: what is brightest in an error map
_SIDE, _QUALITY = 960, 82  # px of the longer side, of JPEG


_Pair = tuple[np.ndarray | None, np.ndarray | None]


@dataclass(frozen=True)
class ViewPictures:
    """One held-out view. rank: worst or best. photo, error: None where there is no photo of it any more."""

    name: str
    rank: str
    figures: dict[str, Any]
    width: int  # px, of the render as it was measured
    height: int
    render: str  # data URI
    photo: str | None
    error: str | None


def held_out_views(facts: Facts, scene: Scene | None) -> list[ViewPictures]:
    """The worst of the held-out views, worst first, then the best; all of them where they are few. scene: for the photos; None
    where there is none any more. Views whose render is gone are left out."""
    per_view = dig(facts.metrics, "test", "per_view")
    if not isinstance(per_view, dict):
        return []
    order = sorted((name for name in per_view if number(per_view[name], "psnr") is not None),
                   key=lambda name: (number(per_view[name], "psnr"), name))  # fmt: skip
    stems = _stems(facts)
    folder = facts.run / "eval" / f"step_{dig(facts.metrics, 'iteration')}"
    photo_of = _photos(facts, scene)
    few = len(order) <= WORST + BEST
    chosen = [(name, "") for name in order] if few else (
        [(name, "worst") for name in order[:WORST]] + [(name, "best") for name in order[: -BEST - 1 : -1]]
    )  # fmt: skip
    pictures = []
    for name, rank in chosen:
        try:
            with Image.open(folder / f"{stems[name]}.png") as image:
                render = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, KeyError):
            continue
        photo, mask = photo_of(name, render.shape)
        pictures.append(
            ViewPictures(
                name,
                rank,
                per_view[name],
                render.shape[1],
                render.shape[0],
                data_uri(render),
                data_uri(photo) if photo is not None else None,
                data_uri(error_map(render, photo, mask)) if photo is not None else None,
            )
        )
    return pictures


def _stems(facts: Facts) -> dict[str, str]:
    """Names of views -> names of their renders, as the evaluation made them: of all views of the scene, in its order."""
    try:
        names = [str(entry["img_name"]) for entry in json.loads((facts.run / "cameras.json").read_text())]
    except (OSError, ValueError, KeyError, TypeError):
        names = list(dig(facts.metrics, "test", "per_view") or ())
    return dict(zip(names, file_stems(names), strict=True))


def _photos(facts: Facts, scene: Scene | None) -> Callable[[str, tuple[int, ...]], _Pair]:
    """By the name of a view and the shape of its picture: photo [H, W, 3] u8 and mask [H, W] bool, as the view was measured; None
    where that cannot be had."""
    views = scene.views if scene is not None else ()
    numbers = {view.name: k for k, view in enumerate(views) if view.image_path is not None}
    background = still_background(facts.config) if facts.config else (0.0, 0.0, 0.0)

    def photo_of(name: str, shape: tuple[int, ...]) -> _Pair:
        if scene is None or name not in numbers:
            return None, None
        try:
            with ImageCache(scene, 0) as cache:
                photo, mask = cache.over(numbers[name], background)
        except CorruptImage:
            return None, None
        return (photo, mask) if photo.shape == shape else (None, None)

    return photo_of


def error_map(render: np.ndarray, photo: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """[H, W, 3] u8: the mean difference of the channels (both [H, W, 3] u8), dark to light up to `LARGEST_ERROR`; black where the
    mask [H, W] leaves pixels out."""
    error = np.abs(render.astype(np.int16) - photo).mean(axis=2, dtype=np.float32) / 255
    pixels = colour_map(error / LARGEST_ERROR)
    if mask is not None:
        pixels[~mask] = 0
    return pixels


def data_uri(pixels: np.ndarray) -> str:
    """[H, W, 3] u8 as a JPEG of at most `_SIDE` pixels a side."""
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
