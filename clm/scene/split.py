"""Which views are held out: every Nth by name, or those that a list names."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from clm.errors import ClmError
from clm.scene.colmap import decode_name

_LONGEST_SHOWN = 80

# What an entry may be, the most exact first.
_READINGS: tuple[Callable[[PurePosixPath], str], ...] = (
    str,
    lambda name: str(name.parent / name.stem),
    lambda name: name.name,
    lambda name: name.stem,
)


def split_views(count: int, test_every: int, messages: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Train and test indices (i32): index % test_every == 0 is test; all train where none would be left to train on."""
    index = np.arange(count, dtype=np.int32)
    held_out = index % test_every == 0 if test_every > 0 else np.zeros(count, bool)
    if held_out.all():
        messages.append(
            f"Holding out every {test_every}. of {count} images would leave none to train: none is held out."
        )
        held_out[:] = False
    return index[~held_out], index[held_out]


def split_by_list(
    names: Sequence[str], registered: Sequence[str], path: Path, messages: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Train and test indices (i32) into `names`: what the list in `path` names is test. registered: names of all images of the
    model, of which some may have no photo. ClmError for an entry that is none of them, or could be several."""
    wanted = _wanted(registered, read_list(path), path)
    held_out = np.array([name in wanted for name in names], bool)
    if held_out.all():
        raise ClmError(f"{path} holds out all {len(names)} images and leaves none to train on.", "Name fewer.")
    absent = sorted(wanted.difference(names))
    if absent:
        messages.append(f"{len(absent)} of {len(wanted)} images in {path} have no photo (first: {absent[0]}).")
    messages.append(f"{int(held_out.sum())} of {len(names)} images are held out, as {path} says.")
    index = np.arange(len(names), dtype=np.int32)
    return index[~held_out], index[held_out]


def read_list(path: Path) -> list[str]:
    """The entries of a text file, one a line; blank lines and lines that begin with # are none. ClmError where there is none."""
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise ClmError(f"The list {path} cannot be read: {error.strerror}.", "Pass a text file.") from None
    if b"\0" in content:
        raise ClmError(f"The list {path} is not a text in UTF-8.", "Write one name a line.")
    lines = [decode_name(line).strip() for line in content.splitlines()]
    entries = [str(_posix(line)) for line in lines if line and not line.startswith("#")]
    if not entries:
        raise ClmError(f"The list {path} names no image.", "Write one name a line.")
    return entries


def _wanted(registered: Sequence[str], entries: list[str], path: Path) -> set[str]:
    """The names that the entries mean."""
    known: list[dict[str, list[str]]] = []
    for reading in _READINGS:
        known.append(defaultdict(list))
        for name in registered:
            known[-1][reading(_posix(name))].append(name)
    wanted: set[str] = set()
    unknown = []
    for entry in entries:
        found = next((table[entry] for table in known if entry in table), [])
        if len(found) > 1:
            raise ClmError(
                f"`{_shown(entry)}` in {path} could be {len(found)} images: {found[0]}, {found[1]}"
                f"{', ...' if len(found) > 2 else ''}.",
                "Write the whole name.",
            )
        wanted.update(found)
        unknown += [] if found else [entry]
    if unknown:
        count = f"{len(unknown)} of {len(entries)} entries of {path} are no images of the model (first: "
        raise ClmError(f"{count}`{_shown(unknown[0])}`).", _nearest(unknown[0], known))
    return wanted


def _posix(name: str) -> PurePosixPath:
    return PurePosixPath(name.replace("\\", "/"))


def _nearest(entry: str, known: list[dict[str, list[str]]]) -> str:
    for table in known:
        if close := difflib.get_close_matches(entry, table, n=1):
            return f"Did you mean `{close[0]}`?"
    example = next(iter(known[0]))
    return f"Write names as COLMAP has them, such as `{example}`."


def _shown(entry: str) -> str:
    return entry if len(entry) <= _LONGEST_SHOWN else f"{entry[:_LONGEST_SHOWN]}..."
