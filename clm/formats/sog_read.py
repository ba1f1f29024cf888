"""SOG (version 2) in: `.sog`, or the folder of a meta.json. Its images are held decoded: 20 bytes a row."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from clm.errors import ClmError
from clm.formats.codebook import SIZE
from clm.formats.rows import Chunk, Rows
from clm.formats.sog_planes import CHANNELS, PALETTE_COLUMNS, Decoder, coefficients
from clm.formats.sog_write import META

_IMAGES = {"means": ("means_l", "means_u"), "quats": ("quats",), "scales": ("scales",), "sh0": ("sh0",)}
_PALETTE = ("shN_centroids", "shN_labels")
_AGAIN = "Copy it again, or write it again with the tool that made it."
_UNREADABLE = (OSError, EOFError, ValueError, OverflowError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass
class SogRows(Rows):
    """A SOG, opened: meta.json is read, the images are decoded with the first row."""

    kind = "SOG"
    meta: dict[str, Any] = field(kw_only=True, repr=False)

    def pieces(self, size: int, first: int = 0) -> Iterator[Chunk]:
        for start in range(first, self.count, size):
            yield self._decoder.rows(start, min(start + size, self.count))

    def facts(self) -> dict[str, Any]:
        files = self.path.parent.iterdir() if self.path.name == META else [self.path]
        return super().facts() | {"bytes": sum(file.stat().st_size for file in files if file.is_file())}

    @cached_property
    def _decoder(self) -> Decoder:
        planes = {}
        for part, names in _IMAGES.items():
            for name, file in zip(names, self.meta[part]["files"], strict=True):
                planes[name] = self._plane(file, CHANNELS[name])
        entries = None
        if self.sh_degree:
            palette = self.meta["shN"]
            planes["shN_labels"] = self._plane(palette["files"][1], 2)
            entries = self._entries(palette)
        low, high = (np.array(self.meta["means"][key], np.float64) for key in ("mins", "maxs"))
        return Decoder(planes, low, high, _book(self.meta["scales"]), _book(self.meta["sh0"]), entries)

    def _plane(self, file: str, channels: int) -> np.ndarray:
        image = self._image(file, channels)
        flat = image.reshape(-1, image.shape[2])[: self.count, :channels]
        if len(flat) < self.count:
            raise ClmError(f"{self.path} is damaged: {file} has {len(flat):,} of {self.count:,} pixels.", _AGAIN)
        return flat

    def _entries(self, palette: dict[str, Any]) -> np.ndarray:
        image, each = self._image(palette["files"][0], 3), coefficients(self.sh_degree)
        if image.shape[1] != PALETTE_COLUMNS * each or image.shape[0] * PALETTE_COLUMNS < palette["count"]:
            size = f"{image.shape[1]} x {image.shape[0]}"
            raise ClmError(f"{self.path} is damaged: its palette image has {size} pixels.", _AGAIN)
        return _book(palette)[image[:, :, :3].reshape(-1, 3 * each)[: palette["count"]]]

    def _image(self, file: str, channels: int) -> np.ndarray:
        """[height, width, 3 or 4] u8, with `channels` channels at least."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large is what they are
                with Image.open(io.BytesIO(_read(self.path, file))) as image:
                    return np.asarray(image.convert("RGBA" if channels == 4 else "RGB"))
        except (UnidentifiedImageError, Image.DecompressionBombError, *_UNREADABLE) as error:
            raise ClmError(f"{self.path} is damaged: {file} cannot be decoded ({error}).", _AGAIN) from None


def open_sog(path: Path) -> SogRows:
    """A `.sog` file or the meta.json of a folder; ClmError says what is missing or damaged."""
    if not path.exists():
        raise ClmError(f"No such file: {path}.")
    try:
        meta = json.loads(_read(path, META))
    except _UNREADABLE as error:
        raise ClmError(f"{path} is no SOG: its {META} cannot be read ({error}).", _AGAIN) from None
    version = meta.get("version") if isinstance(meta, dict) else None
    if version != 2:
        what = "1" if isinstance(meta, dict) and "version" not in meta and "means" in meta else f"{version!r}"
        raise ClmError(f"{path} is a SOG of version {what}; version 2 is read.", "Write it again with a newer tool.")
    if wrong := _wrong(meta):
        raise ClmError(f"{path} is damaged: {META} has no valid `{wrong}`.", _AGAIN)
    antialiased = meta.get("antialias") is True or meta.get("model") in ("antialiased", "mip")
    bands = meta["shN"]["bands"] if meta.get("shN") else 0
    return SogRows(path, meta["count"], bands, antialiased, meta=meta)


def _read(path: Path, name: str) -> bytes:
    """One file of the set."""
    if path.name == META:
        return (path.parent / name).read_bytes()
    with zipfile.ZipFile(path) as archive:
        try:
            return archive.read(name)
        except KeyError:
            raise OSError(f"there is no {name} in the archive") from None


def _wrong(meta: dict[str, Any]) -> str | None:
    """The first key that is missing or has no possible value."""
    if not isinstance(meta.get("count"), int) or meta["count"] < 0:
        return "count"
    parts = dict(_IMAGES) | ({"shN": _PALETTE} if meta.get("shN") else {})
    for part, names in parts.items():
        files = meta[part].get("files") if isinstance(meta.get(part), dict) else None
        if not isinstance(files, list) or len(files) != len(names) or not all(isinstance(file, str) for file in files):
            return f"{part}.files"
    for part in ("scales", "sh0", *(["shN"] if meta.get("shN") else [])):
        if not _numbers(meta[part].get("codebook"), SIZE, or_null=True):
            return f"{part}.codebook"
    for key in ("mins", "maxs"):
        if not _numbers(meta["means"].get(key), 3):
            return f"means.{key}"
    if meta.get("shN"):
        if meta["shN"].get("bands") not in (1, 2, 3):
            return "shN.bands"
        if not isinstance(meta["shN"].get("count"), int) or not 0 < meta["shN"]["count"] <= 1 << 16:
            return "shN.count"
    return None


def _numbers(values: Any, count: int, *, or_null: bool = False) -> bool:
    kinds = (int, float, type(None)) if or_null else (int, float)
    return isinstance(values, list) and len(values) == count and all(isinstance(value, kinds) for value in values)


def _book(part: dict[str, Any]) -> np.ndarray:
    """[256] f32; some writers left the first value out, which then is the second."""
    values = part["codebook"]
    return np.array([value if value is not None else values[1] for value in values], np.float32)
