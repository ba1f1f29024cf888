"""All formats of models, by the ends of their files' names: what opens them, what writes them, and in which order of rows."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from clm.errors import ClmError
from clm.formats.compressed_ply import is_compressed, open_compressed_ply, write_compressed_ply
from clm.formats.glb import open_glb, write_glb
from clm.formats.lod_read import open_finest
from clm.formats.lod_write import FIXED_BYTES, INDEX, write_lod
from clm.formats.options import Filters, Options
from clm.formats.ply_read import open_ply, parse_header
from clm.formats.ply_write import write_ply
from clm.formats.rows import Rows
from clm.formats.select import FILE, IMPORTANCE, SPACE, Selection
from clm.formats.sog_read import open_sog
from clm.formats.sog_write import ENCODED_BYTES, META, write_sog, write_sog_folder
from clm.formats.splat import open_splat, write_splat
from clm.formats.split import MANIFEST, open_split
from clm.formats.spz import open_spz, sh_bits, write_spz
from clm.values import flag_of


@dataclass(frozen=True)
class Format:
    """One format. `write` returns how many rows it wrote; its file appears whole or not at all."""

    ending: str  # of the whole name, in lower case; the whole name where it does not begin with a dot
    title: str
    open: Callable[[Path], Rows]
    write: Callable[[Path, Selection, Options], int]
    order: str  # in which it wants its rows: FILE, SPACE or IMPORTANCE (clm.formats.select)
    most_sh: int = 3  # degree
    antialiased: bool = True  # whether the file can say how its model was trained
    options: frozenset[str] = frozenset()  # fields of Options that it takes
    held: Callable[[int], int] = lambda rows: (
        0
    )  # bytes that a file of so many rows takes until it is written, beside a bucket


def _open_any_ply(path: Path) -> Rows:
    """A PLY, plain or compressed: that is told by its elements, not by its name."""
    _, elements, _, _ = parse_header(path)
    return open_compressed_ply(path) if is_compressed(elements) else open_ply(path)


def _write_ply(path: Path, selection: Selection, options: Options) -> int:
    """Degree 3 unless the user asked for another: some viewers need all coefficients."""
    asked = selection.filters.sh
    degree = 3 if asked is None else asked
    chunks = selection.chunks(f"exporting {path.name}")
    return write_ply(path, chunks, sh_degree=degree, antialiased=selection.antialiased)


def _open_split(path: Path) -> Rows:
    return open_split(path, open_rows)


def _write_no_manifest(path: Path, selection: Selection, options: Options) -> int:
    raise _lists_others()


def _lists_others() -> ClmError:
    return ClmError(
        f"{MANIFEST} lists the files of a split export.",
        "Name a file, OUT.ply or another, and --tile or --max-per-file.",
    )


def _images_held(rows: int) -> int:
    return ENCODED_BYTES * rows + FIXED_BYTES


def _leaves_held(rows: int) -> int:
    return 4 * rows + FIXED_BYTES


FORMATS = (
    Format(".ply", "PLY", _open_any_ply, _write_ply, FILE),
    Format(".compressed.ply", "compressed PLY (PlayCanvas)", _open_any_ply, write_compressed_ply, SPACE),
    Format(".spz", "SPZ, version 3 (Niantic)", open_spz, write_spz, SPACE, options=frozenset({"sh_bits"})),
    Format(".splat", "splat (antimatter15)", open_splat, write_splat, IMPORTANCE, most_sh=0, antialiased=False),
    Format(".glb", "glTF with KHR_gaussian_splatting", open_glb, write_glb, FILE),
    Format(".sog", "SOG, version 2 (PlayCanvas)", open_sog, write_sog, SPACE, held=_images_held),
    Format(META, "SOG as a folder", open_sog, write_sog_folder, SPACE, held=_images_held),
    Format(
        INDEX, "streamed SOG, a folder", open_finest, write_lod, SPACE, options=frozenset({"lod"}), held=_leaves_held
    ),
    Format(MANIFEST, "files of a split export", _open_split, _write_no_manifest, FILE),
)


def format_of(path: Path) -> Format:
    """The format that a file's name says; ClmError with the nearest that is known."""
    name, known = path.name.lower(), [f.ending for f in FORMATS]
    found = [
        f for f in FORMATS if (name.endswith(f.ending) and name != f.ending if f.ending[0] == "." else name == f.ending)
    ]
    both, ending = "".join(path.suffixes[-2:]).lower(), path.suffix.lower()
    slip = difflib.get_close_matches(both, [e for e in known if e.count(".") > 1], n=1, cutoff=0.8)
    if found and (not slip or name.endswith(slip[0])):
        return max(found, key=lambda f: len(f.ending))
    close = slip or (difflib.get_close_matches(ending, known, n=1, cutoff=0.5) if ending else [])
    ending = both if slip else ending
    fix = f"Did you mean {close[0]}? " if close else ""
    what = f"no format has the ending `{ending}`" if ending else "its name has no ending that says the format"
    raise ClmError(f"{path.name} cannot be a model: {what}.", f"{fix}Formats: {', '.join(known)}.")


def open_rows(path: Path) -> Rows:
    """The model in a file of any format; ClmError where it is none, or damaged."""
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise ClmError(f"{path} {what}.", "Pass a file of a model.")
    with open(path, "rb") as file:
        if re.match(rb"ply\s*\n", file.read(16)):  # whatever its name
            return _open_any_ply(path)
    return format_of(path).open(path)


def check_options(format: Format, filters: Filters, options: Options) -> None:
    """ClmError where something was asked for that the format cannot do, or that means nothing; before any row is read."""
    if format.ending == MANIFEST:
        raise _lists_others()
    for name in options.given():
        if name not in format.options:
            takers = ", ".join(f.ending for f in FORMATS if name in f.options)
            raise ClmError(f"{format.ending} takes no {flag_of(name)}.", f"It is for {takers}.")
    sh_bits(options.sh_bits)
    if filters.sh is not None and filters.sh > format.most_sh:
        raise ClmError(f"{format.ending} holds spherical harmonics up to degree {format.most_sh}.", "Leave out --sh.")


assert {name for f in FORMATS for name in f.options} <= {f.name for f in fields(Options)}
