"""Pictures of viewers beside ours: how far they are apart, and all of them on one sheet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_MARGIN, _LABEL = 6, 44  # px
_SAME = 1e-9  # squared levels: of equal pictures, which would be infinitely near
MOST_BYTES = 100_000  # of a sheet


def read(path: Path) -> np.ndarray:
    """[H, W, 3] f32 in 0..255."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.float32)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """dB between pictures of 0..255; ValueError where their sizes differ."""
    if one.shape != other.shape:
        raise ValueError(f"pictures of {one.shape[1]}x{one.shape[0]} and {other.shape[1]}x{other.shape[0]} px")
    error = float(((one.astype(np.float64) - other) ** 2).mean())
    return float(10 * np.log10(255**2 / max(error, _SAME)))


def write_sheet(path: Path, rows: Sequence[Sequence[tuple[str, Path | None]]], width: int) -> None:
    """A JPEG of pictures with a word above each, one row after another, each `width` px wide, as good as MOST_BYTES allow."""
    cells = [[(text, _thumbnail(file, width)) for text, file in row] for row in rows]
    tallest = [max((image.height for _, image in row if image is not None), default=width) for row in cells]
    columns = max(map(len, cells))
    sheet = Image.new(
        "RGB",
        (
            _MARGIN + columns * (width + _MARGIN),
            _MARGIN + sum(height + _LABEL + _MARGIN for height in tallest),
        ),
        (24, 24, 24),
    )
    draw, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(11), _MARGIN
    for row, height in zip(cells, tallest, strict=True):
        for column, (text, image) in enumerate(row):
            left = _MARGIN + column * (width + _MARGIN)
            draw.multiline_text((left, top), text, (235, 235, 235), font, spacing=2)
            if image is not None:
                sheet.paste(image, (left, top + _LABEL))
        top += height + _LABEL + _MARGIN
    for quality in range(90, 20, -5):
        data = io.BytesIO()
        sheet.save(data, "JPEG", quality=quality, optimize=True)
        if data.tell() <= MOST_BYTES:
            break
    path.write_bytes(data.getvalue())


def _thumbnail(file: Path | None, width: int) -> Image.Image | None:
    if file is None or not file.is_file():
        return None
    with Image.open(file) as image:
        return image.convert("RGB").resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
