"""Checkpoints: everything a run needs to go on as if it had never stopped, in a folder that appears whole or not at all.

`checkpoints/step_N/` holds `state.json`, the pages of the store (`clm.run.segments`: those that changed are written, the
others linked from the checkpoint before) and `manifest.json` (size and checksum of each file). It is written under a temporary
name, synced and renamed; what it replaces, and older ones, go only after that. Kill -9 at any moment leaves the previous
checkpoint untouched. What this run did not write is never deleted: a folder in the way is set aside. Several ranks write one
checkpoint, all of them or none: rank 0 has the folder. Reading: `restore`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from clm.errors import ClmError, ResourceError
from clm.files import leftovers, remove_leftovers, storage_failure, sync_directory, temporary_name
from clm.progress import Report, unseen
from clm.ranks import ALONE, Ranks
from clm.ranks.handshake import together
from clm.run.arrays import Damaged, Listed
from clm.run.segments import Kept, Pages, Step, write_pages
from clm.store.store import Store

T = TypeVar("T")

FORMAT = 4
FORMATS = (
    1,
    2,
    3,
    4,
)  # that are read: 1 had no manifest; 1 and 2 had one array a file, no keys and no pages; before 4 two statistics
STATE, MANIFEST = "state.json", "manifest.json"
_STEP = re.compile(r"step_(\d{1,18})")


def save_checkpoint(
    folder: Path,
    iteration: int,
    state: Mapping[str, Any],
    store: Store,
    keep: int,
    warn: Callable[[str], None] = lambda text: None,
    report: Report = unseen,
    before: Kept | None = None,
    ranks: Ranks = ALONE,
) -> Kept:
    """Write `folder/step_{iteration}` and drop all but the newest `keep` up to it. state: JSON-ready; its `run` names the run.
    store: this rank's. before: the checkpoint that it was last saved to or loaded from; where it can be linked, only pages that
    `store.changed` names are written.

    Raises ResourceError, on every rank, when a disk cannot take it; what was there before is then as it was."""
    target = folder / f"step_{iteration}"
    # One folder for all ranks: the name that rank 0 has for it.
    temporary = folder / ranks.of_first(temporary_name(target).name)
    step = _Steps(ranks, target, store.bytes)
    try:
        step(lambda: _begin(folder, temporary) if ranks.first else None)
        pages = _write(
            temporary, {"format": FORMAT, "iteration": iteration, **state}, store, before, report, ranks, step
        )
        step(lambda: _put_in_place(temporary, target, state.get("run"), warn) if ranks.first else None)
    except BaseException:
        if ranks.first:
            clean_checkpoints(folder)
        raise
    store.changed[:] = False
    if ranks.first:
        earlier = [
            p for p in checkpoints(folder) if image_of_checkpoint(p) < iteration and _belongs(p, state.get("run"))
        ]
        for old in earlier[: len(earlier) - max(keep - 1, 0)]:
            _drop(old, "pruned")
    return Kept(target, pages)


class _Steps:
    """Steps of a save, which all ranks make or none."""

    def __init__(self, ranks: Ranks, target: Path, size: int):
        self._ranks, self._target, self._size = ranks, target, size

    def __call__(self, work: Callable[[], T]) -> T:
        return together(self._ranks, lambda: self._made(work))

    def _made(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except OSError as error:
            failure = storage_failure(error, self._target, self._size, "checkpoint")
            if failure is None:
                raise
            raise ResourceError(
                failure.message, f"{failure.fix[:-1]} with --resume; the previous checkpoint is intact."
            ) from None


def _begin(folder: Path, temporary: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    clean_checkpoints(folder)
    temporary.mkdir()


def _write(
    folder: Path, state: Mapping[str, Any], store: Store, before: Kept | None, report: Report, ranks: Ranks, step: Step
) -> Pages:
    """All files of a checkpoint, the manifest last; every one is synced. Returns where this rank's pages are."""
    image = int(state["iteration"])
    if not ranks.of_first(before is not None and _belongs(before.path, state.get("run"))):
        before = None
    pages, all_pages = write_pages(folder, image, store, before, f"saving step_{image}", report, ranks, step)
    rows, count = ranks.totals(np.array([store.rows, store.pages], np.int64)).tolist()
    header = {"rows": rows, "pages": count, "page_rows": store.page_rows, "moments": store.moments}
    step(lambda: None if all_pages is None else _write_texts(folder, {**header, **state}, all_pages))
    return pages


def _write_texts(folder: Path, state: Mapping[str, Any], pages: Pages) -> None:
    content = {**state, "segments": pages.names}
    listed = {name: entry._asdict() for name, entry in pages.listed.items()}
    listed[STATE] = _write_text(folder / STATE, json.dumps(content, indent=2))
    _write_text(folder / MANIFEST, json.dumps({"format": FORMAT, "files": listed}, indent=2))
    sync_directory(folder)


def listed_files(manifest: dict[str, Any]) -> dict[str, Listed]:
    """What a checkpoint's manifest lists. Raises Damaged."""
    files = manifest.get("files")
    if not isinstance(files, dict) or STATE not in files:
        raise Damaged(f"{MANIFEST} lists no {STATE}")
    listed = {name: Listed.parse(value) for name, value in files.items()}
    wrong = [name for name, entry in listed.items() if entry is None]
    if wrong:
        raise Damaged(f"{MANIFEST} has no size and checksum of {wrong[0]}")
    return {name: entry for name, entry in listed.items() if entry is not None}


def _write_text(path: Path, text: str) -> dict[str, Any]:
    content = text.encode()
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(content), "crc32": zlib.crc32(content)}


def _put_in_place(temporary: Path, target: Path, run: str | None, warn: Callable[[str], None]) -> None:
    """Rename a whole checkpoint to its name. One of this run that is there is replaced, anything else is set aside."""
    replaced = None
    if os.path.lexists(target) and _belongs(target, run):
        replaced = temporary_name(target.with_name(f"{target.name}.replaced"))
        os.replace(target, replaced)
    elif os.path.lexists(target):
        aside = _free_name(target)
        os.replace(target, aside)
        warn(f"{target} is not of this run: it was renamed to {aside.name}.")
    os.replace(temporary, target)
    sync_directory(target.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.aside{k or ''}") for k in range(1_000_000))
    return next(name for name in names if not os.path.lexists(name))


def _belongs(path: Path, run: str | None) -> bool:
    """Whether a folder is a checkpoint of the run (format 1 does not name its run)."""
    try:
        state = json.loads((path / STATE).read_text())
        return state["format"] in FORMATS and state.get("run", run) == run
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _drop(path: Path, why: str) -> None:
    """Delete a checkpoint; killed meanwhile, it leaves no half of one."""
    temporary = temporary_name(path.with_name(f"{path.name}.{why}"))
    try:
        os.replace(path, temporary)
    except OSError:
        return  # it stays, and takes its space
    shutil.rmtree(temporary, ignore_errors=True)


def clean_checkpoints(folder: Path) -> None:
    """Remove what killed saves left. A checkpoint that was about to be replaced goes back to its name."""
    for path in leftovers(folder):
        match = re.match(r"\.(step_\d+)\.replaced\.", path.name)
        if match and not os.path.lexists(folder / match[1]):
            os.replace(path, folder / match[1])
    remove_leftovers(folder)
    for path in folder.glob(".step_*.tmp"):  # format 1 named them so
        if (
            re.fullmatch(r"\.step_\d+\.tmp", path.name)
            and path.is_dir()
            and all(_format_1_file(file) for file in path.iterdir())
        ):
            shutil.rmtree(path, ignore_errors=True)


def _format_1_file(path: Path) -> bool:
    return path.name == STATE or (path.stem in Store(0).names and path.suffix == ".npy")


def image_of_checkpoint(path: Path) -> int:
    """N of `step_N`."""
    match = _STEP.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def checkpoints(folder: Path) -> list[Path]:
    """Folders that were written as checkpoints, oldest first; `load_checkpoint` says whether they are still whole."""
    named = (p for p in folder.glob("step_*") if _STEP.fullmatch(p.name))
    return sorted((p for p in named if (p / STATE).exists() or (p / MANIFEST).exists()), key=image_of_checkpoint)


def latest_checkpoint(folder: Path) -> Path:
    """The newest checkpoint, or a ClmError that says where was looked."""
    found = checkpoints(folder)
    if not found:
        raise ClmError(f"No checkpoint in {folder}.", "Start without --resume, or pass the run with -o.")
    return found[-1]


def newest_first(path: Path) -> list[Path]:
    """`path` and the checkpoints older than it."""
    if not _STEP.fullmatch(path.name):
        return [path]
    older = [p for p in checkpoints(path.parent) if image_of_checkpoint(p) < image_of_checkpoint(path)]
    return [path, *reversed(older)]
