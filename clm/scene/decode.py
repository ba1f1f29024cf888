"""One photo or mask from its file to the array that is trained on: RGB, undistorted, at training size.

EXIF orientation is ignored, because COLMAP ignored it when it calibrated the camera.
What is left out of a photo is said by a mask, a file of its own, or by the photo's alpha channel. 16 bits become 8.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from clm.errors import ClmError
from clm.scene.undistort import Training, undistort_pixels

# Survey cameras exceed Pillow's guard against decompression bombs (179 megapixels); these files are the user's own.
Image.MAX_IMAGE_PIXELS = None
_ORIENTATION = 0x0112  # EXIF; 1: as stored


class CorruptImage(ClmError):
    """A photo or mask whose header was fine but whose pixels cannot be decoded."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"Cannot decode the image {path}: {reason}.", "Replace the file or remove it from the folder.")
        self.path = path


class Header(NamedTuple):
    """What a photo says of itself before its pixels are decoded."""

    size: tuple[int, int]  # px, width and height as stored (no EXIF rotation)
    turned: bool  # EXIF says that it is to be shown turned or mirrored
    alpha: bool  # it has an alpha channel or a transparent colour


def image_header(path: Path) -> Header:
    """The header of an image file. Raises CorruptImage."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
            return Header(image.size, turned, image.has_transparency_data)
    except (OSError, ValueError, SyntaxError) as error:
        raise CorruptImage(path, _reason(error)) from None


def decode_image(path: Path, training: Training) -> np.ndarray:
    """[height, width, 3] u8 RGB at training size, alpha dropped. Raises CorruptImage."""
    with _opened(path) as image:
        return _to_training(_rgb(image), training)


def decode_small(path: Path, side: int) -> np.ndarray:
    """[h, w, 3] u8 RGB as stored (distorted, alpha dropped), its longer side at least `side` px or that of the file: as small as
    the decoder makes it for nothing. Raises CorruptImage."""
    with _opened(path) as image:
        longer = max(image.size)
        if longer > side:
            image.draft("RGB", (max(1, image.width * side // longer), max(1, image.height * side // longer)))
        return np.asarray(_rgb(image))


def decode_cut_out(path: Path, mask: Path, training: Training) -> np.ndarray:
    """[height, width, 3] u8 RGB at training size over black: of each pixel as much as is opaque, before anything is resized, so
    that no colour of what is cut away reaches what stays. mask: as of `decode_opacity`. Raises CorruptImage."""
    with _opened(path) as image:
        photo = _rgb(image)
        if mask == path:
            opacity = _alpha(image)
        else:
            with _opened(mask) as other:
                opacity = _resized(_grey(other), *photo.size)
        return _to_training(Image.composite(photo, Image.new("RGB", photo.size), opacity), training)


def decode_opacity(mask: Path, training: Training, *, alpha: bool) -> np.ndarray:
    """[height, width] u8 at training size: 0 where nothing of the photo is to be seen. mask: a file of grey values, or with
    `alpha` the photo itself, whose alpha channel is taken. Raises CorruptImage."""
    with _opened(mask) as image:
        return _to_training(_alpha(image) if alpha else _grey(image), training)


class _opened:
    """Open an image; whatever the decoder raises inside the block becomes CorruptImage."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Image.Image:
        try:
            self.image = Image.open(self.path)
        except (OSError, ValueError, SyntaxError) as error:
            raise CorruptImage(self.path, _reason(error)) from None
        return self.image

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.image.close()
        if isinstance(error, OSError | ValueError | SyntaxError | EOFError):
            raise CorruptImage(self.path, _reason(error)) from None


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _eight_bits(image: Image.Image) -> Image.Image:
    """Modes of 16 bits (I;16 and its kin, and I, as which older files are opened) and F, brought to L."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float64)
    if image.mode != "F" or values.max(initial=0) > 255:
        values = values / 257.0
    elif values.max(initial=0) <= 1.0:
        values = values * 255.0
    return Image.fromarray(np.clip(values + 0.5, 0, 255).astype(np.uint8))


def _rgb(image: Image.Image) -> Image.Image:
    return _eight_bits(image).convert("RGB")


def _alpha(image: Image.Image) -> Image.Image:
    return image.convert("RGBA").getchannel("A")


def _grey(image: Image.Image) -> Image.Image:
    """Luminance. Masks are often palettes or single-bit files, and some hold 0 and 1 instead of 0 and 255."""
    grey = _eight_bits(image).convert("L")
    return grey.point(lambda value: 255 * (value > 0)) if grey.getextrema()[1] == 1 else grey


def _to_training(image: Image.Image, training: Training) -> np.ndarray:
    if training.working is not None:
        working = training.working
        image = _resized(image, working.width, working.height)
        image = Image.fromarray(undistort_pixels(np.asarray(image), working))
    return np.ascontiguousarray(np.asarray(_resized(image, training.width, training.height)))


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    """Antialiased; large factors go through an exact box reduction first (Pillow keeps the fractional border)."""
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
