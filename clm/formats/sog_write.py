"""SOG (version 2) out: `.sog`, a zip of meta.json and lossless WebP images, or a folder of the same files.

A file's images are held whole: 19 bytes a row, its palette and the sample that it was fitted on (at most 100 MiB each), and what
the encoder takes for one image at a time, about 30 bytes a row. Rows pass twice: once to be surveyed, once to be encoded.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from clm import __version__
from clm.errors import ClmError
from clm.files import atomic_folder, atomic_write
from clm.formats.options import Options
from clm.formats.rows import Chunk
from clm.formats.select import Selection
from clm.formats.sog_planes import CHANNELS, Books, Planes, Survey, centroid_image
from clm.progress import Report, counted, pending

ENCODED_BYTES = 60  # a row of the file that is being written holds, planes and the encoder's memory together
META = "meta.json"
MOST_ROWS = 16_380**2  # WebP images have at most 16,383 pixels a side
_SET = re.compile(r"meta\.json|.*\.webp")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same rows give the same bytes

Put = Callable[[str, bytes], None]  # one file of the set, by its name


def write_sog(path: Path, rows: Selection, options: Options) -> int:
    """A zip; returns the rows written."""
    _refuse_many(path, rows.count)
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        encode(rows, lambda name, data: archive.writestr(zipfile.ZipInfo(name, _EPOCH), data), path.name)
    return rows.count


def write_sog_folder(path: Path, rows: Selection, options: Options) -> int:
    """The folder of a path `FOLDER/meta.json`; returns the rows written."""
    _refuse_many(path, rows.count)
    with atomic_folder(path.parent, _SET) as folder:
        encode(rows, partial(into_folder, folder), path.parent.name)
    return rows.count


def into_folder(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)


def _refuse_many(path: Path, count: int) -> None:
    if count > MOST_ROWS:
        raise ClmError(
            f"{path.name} would hold {count:,} Gaussians; a SOG holds {MOST_ROWS:,}.",
            "Write lod-meta.json, or several files with --max-per-file.",
        )


def encode(rows: Selection, put: Put, name: str) -> None:
    """The files of a selection's rows, in its order; meta.json is the last."""
    survey = Survey(rows.count, rows.sh_degree)
    for chunk in rows.chunks(f"surveying {name}"):
        survey.add(*chunk)
    encode_chunks(rows.chunks(f"exporting {name}"), survey, put, antialiased=rows.antialiased, report=rows.report)


def encode_chunks(chunks: Iterable[Chunk], survey: Survey, put: Put, *, antialiased: bool, report: Report) -> None:
    """The files of rows that were surveyed, which come once more as chunks."""
    with pending("fitting codebooks and palette", report):
        books = survey.books()
    planes = Planes(survey.count, books)
    for chunk in chunks:
        planes.add(*chunk)
    names = [*CHANNELS] + ["shN_labels"] * (books.palette is not None)
    for plane in counted(names, "compressing images", len(names), "images", report):
        put(f"{plane}.webp", _webp(planes.image(plane)))
    put(META, json.dumps(_meta(survey, books, antialiased, put)).encode())


def _webp(image: np.ndarray) -> bytes:
    """Lossless; the colours under zero opacity, too."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "WEBP", lossless=True, exact=True, quality=40, method=1)
    return out.getvalue()


def _meta(survey: Survey, books: Books, antialiased: bool, put: Put) -> dict:
    meta = {
        "version": 2,
        "asset": {"generator": f"clm {__version__}"},
        "count": survey.count,
        "antialias": antialiased,
        "means": {"mins": books.low.tolist(), "maxs": books.high.tolist(), "files": ["means_l.webp", "means_u.webp"]},
        "scales": {"codebook": _short(books.scales), "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": _short(books.sh0), "files": ["sh0.webp"]},
    }
    if books.palette is not None:
        image, book = centroid_image(books.palette)
        put("shN_centroids.webp", _webp(image))
        meta["shN"] = {
            "count": len(books.palette.entries),
            "bands": survey.sh_degree,
            "codebook": _short(book),
            "files": ["shN_centroids.webp", "shN_labels.webp"],
        }
    return meta


def _short(values: np.ndarray) -> list[float]:
    """f32 in as few digits as give them back."""
    return [float(str(value)) for value in values]
