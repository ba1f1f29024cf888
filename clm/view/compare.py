"""What is laid over a picture from where a photo was taken: the photo, part of it, in turns, or where the two differ."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from clm.camera import Camera
from clm.report.views import error_map
from clm.view.frame import rectangle

MODEL, PHOTO, SLIDER, BLINK, ERROR = "model", "photo", "slider", "blink", "error"
WAYS = (MODEL, PHOTO, SLIDER, BLINK, ERROR)
_LINE = 2  # px between the two sides of the slider


class Photo(NamedTuple):
    """A photo as it is trained on; mask: False where it does not count."""

    pixels: np.ndarray  # [H, W, 3] u8
    mask: np.ndarray | None  # [H, W] bool


def overlaid(
    picture: np.ndarray, camera: Camera, photo: Photo | None, way: str, split: float = 0.5, blinked: bool = False
) -> np.ndarray:
    """picture [H, W, 3] u8 of `inside(camera)`, with the photo of that camera laid over its place. way: one of `WAYS`. split:
    share of its width that the slider shows of it. blinked: whether it is the photo's turn. The picture itself without a photo."""
    shown = way == PHOTO or (way == BLINK and blinked)
    if photo is None or way == MODEL or (way == BLINK and not blinked):
        return picture
    height, width = picture.shape[:2]
    left, top, right, bottom = rectangle(camera, width, height)
    place, size = (slice(top, bottom), slice(left, right)), (right - left, bottom - top)
    pixels, result = _resized(photo.pixels, size), picture.copy()
    if shown:
        result[place] = pixels
    elif way == ERROR:
        mask = None
        if photo.mask is not None:
            mask = _resized(photo.mask.astype(np.uint8) * 255, size) >= 128
        result[place] = error_map(picture[place], pixels, mask)
    else:
        cut = round(min(max(split, 0.0), 1.0) * size[0])
        result[place][:, :cut] = pixels[:, :cut]
        if 0 < cut < size[0]:
            result[place][:, max(0, cut - _LINE // 2) : cut + _LINE // 2] = 255
    return result


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W, ...] u8 at (width, height) px."""
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))
