"""Checkpoints: everything a run needs to go on as if it had never stopped, in a folder that appears whole or not at all.

`checkpoints/step_N/` holds `state.json`, one .npy per store array and `manifest.json` (size and checksum of each). It is
written under a temporary name, synced and renamed; what it replaces, and older ones, go only after that. Kill -9 at any
moment leaves the previous checkpoint untouched. Loading checks every file before anything is used. What this run did not
write is never deleted: a folder in the way is set aside.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from clm.errors import ClmError, ResourceError
from clm.files import leftovers, remove_leftovers, storage_failure, sync_directory, temporary_name
from clm.progress import Report, tally, unseen
from clm.run.arrays import Damaged, Listed, check_array, read_array, write_array
from clm.run.checkpoint_state import FORMAT, MANIFEST, READ, STATE, WITH_PAGES, read_state
from clm.store.identity import first_keys
from clm.store.layout import PAGE_ROWS
from clm.store.store import MOST_PLACES, Store


class State(Protocol):
    """What the caller makes of `state.json`."""

    @property
    def last_stamp(self) -> int: ...


T = TypeVar("T", bound=State)
_FILL = "fill.npy"
_STEP = re.compile(r"step_(\d{1,18})")


# ---- out ----


def save_checkpoint(
    folder: Path,
    iteration: int,
    state: Mapping[str, Any],
    store: Store,
    keep: int,
    warn: Callable[[str], None] = lambda text: None,
    report: Report = unseen,
) -> Path:
    """Write `folder/step_{iteration}` and drop all but the newest `keep` up to it. state: JSON-ready; its `run` names the run.

    Raises ResourceError when the disk cannot take it; what was there before is then as it was."""
    target = folder / f"step_{iteration}"
    temporary = temporary_name(target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clean_checkpoints(folder)
        temporary.mkdir()
        _write_files(
            temporary,
            {"format": FORMAT, "iteration": iteration, **state},
            store,
            _tally(f"saving {target.name}", store, report),
        )
        _put_in_place(temporary, target, state.get("run"), warn)
    except OSError as error:
        clean_checkpoints(folder)
        failure = storage_failure(error, f"checkpoint {target}", store.bytes)
        if failure is None:
            raise
        raise ResourceError(
            failure.message, f"{failure.fix[:-1]} with --resume; the previous checkpoint is intact."
        ) from None
    except BaseException:
        clean_checkpoints(folder)
        raise
    earlier = [p for p in checkpoints(folder) if image_of_checkpoint(p) < iteration and _belongs(p, state.get("run"))]
    for old in earlier[: len(earlier) - max(keep - 1, 0)]:
        _drop(old, "pruned")
    return target


def _tally(what: str, store: Store, report: Report) -> Callable[[int], None]:
    """Reports the bytes of the store's arrays that went by."""
    row_bytes = sum(getattr(store, name)[:1].nbytes for name in store.names)
    return tally(what, store.rows * row_bytes, "B", report)


def _write_files(folder: Path, state: Mapping[str, Any], store: Store, passed: Callable[[int], None]) -> None:
    """All files of a checkpoint, the manifest last; every one is synced."""
    runs, file = list(store.runs()), "{}.npy".format
    listed = {file(name): write_array(folder / file(name), getattr(store, name), passed, runs) for name in store.names}
    listed[_FILL] = write_array(folder / _FILL, store.fill)
    header = {"rows": store.rows, "pages": store.pages, "page_rows": store.page_rows, "moments": store.moments}
    listed[STATE] = _write_text(folder / STATE, json.dumps({**header, **state}, indent=2))
    _write_text(folder / MANIFEST, json.dumps({"format": FORMAT, "files": listed}, indent=2))
    sync_directory(folder)


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
        return state["format"] in READ and state.get("run", run) == run
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


# ---- in ----


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


def _newest_first(path: Path) -> list[Path]:
    """`path` and the checkpoints older than it."""
    if not _STEP.fullmatch(path.name):
        return [path]
    older = [p for p in checkpoints(path.parent) if image_of_checkpoint(p) < image_of_checkpoint(path)]
    return [path, *reversed(older)]


def load_sound_checkpoint(
    path: Path, parse: Callable[[dict[str, Any]], T], warn: Callable[[str], None], report: Report = unseen
) -> tuple[Path, T, Store]:
    """As load_checkpoint, of `path` or, where that is damaged, of the newest older checkpoint that is whole; what is damaged
    is said. Raises Damaged about `path` when none is whole."""
    damaged: list[Damaged] = []
    for candidate in _newest_first(path):
        try:
            state, store = load_checkpoint(candidate, parse, report)
        except Damaged as error:
            damaged.append(error)
            continue
        for earlier in damaged:
            warn(f"{earlier.message} Going on from the older {candidate}.")
        return candidate, state, store
    raise damaged[0]


def load_checkpoint(path: Path, parse: Callable[[dict[str, Any]], T], report: Report = unseen) -> tuple[T, Store]:
    """State and store of a checkpoint; cull entries must be refreshed by the caller. parse: what is made of the state;
    it may raise Damaged. Raises Damaged, with what is wrong, or a ClmError for a format of another version."""
    try:
        state, listed = read_state(path)
        parsed = parse(state)
        names = _arrays_of(state)
        _check_files(path, names, state, listed)
        store = _allocate(_read_fill(path, state, listed), state)
        runs = list(store.runs())
        passed = _tally(f"loading {path.name}", store, report)
        for name in names:
            read_array(path / f"{name}.npy", getattr(store, name), listed.get(f"{name}.npy"), passed, runs)
        _check_stamps(store, parsed.last_stamp)
        if "keys" not in names:
            store.keys[:] = first_keys(0, store.rows)  # no free places
        store.identify()
        store.see_again()
    except Damaged as error:
        raise Damaged(
            f"Checkpoint {path} cannot be read: {error.message}.",
            "No other one is whole: start anew with another -o.",
        ) from None
    return parsed, store


def _arrays_of(state: dict[str, Any]) -> tuple[str, ...]:
    """Names of the arrays that a checkpoint of this format holds."""
    without = () if state["format"] >= WITH_PAGES else ("keys",)
    return tuple(name for name in Store(0).names if name not in without)


def _check_files(path: Path, names: tuple[str, ...], state: dict[str, Any], listed: dict[str, Listed]) -> None:
    """Names, sizes, shapes and types of all arrays, before any is read."""
    empty, paged = Store(0, moments=state["moments"]), state["format"] >= WITH_PAGES
    _check_names(path, {f"{name}.npy" for name in names} | ({_FILL} if paged else set()), listed)
    for name in names:
        like, file = getattr(empty, name), f"{name}.npy"
        check_array(path / file, like.dtype, (state["rows"], *like.shape[1:]), listed.get(file))


def _read_fill(path: Path, state: dict[str, Any], listed: dict[str, Listed]) -> np.ndarray:
    """Live rows of each page; where the format knows no pages, all are full. Sets `page_rows`, too."""
    if state["format"] < WITH_PAGES:
        state["page_rows"] = PAGE_ROWS
        return np.minimum(PAGE_ROWS, state["rows"] - np.arange(0, state["rows"], PAGE_ROWS)).astype(np.int32)
    pages, size = (state.get(key) for key in ("pages", "page_rows"))
    if (
        type(pages) is not int
        or type(size) is not int
        or not 0 < size <= MOST_PLACES
        or not 0 <= pages * size <= MOST_PLACES
    ):
        raise Damaged(f"`pages` and `page_rows` in {STATE} are not those of a store")
    check_array(path / _FILL, np.dtype(np.int32), (pages,), listed.get(_FILL))
    fill = np.empty(pages, np.int32)
    read_array(path / _FILL, fill, listed.get(_FILL))
    if fill.min(initial=0) < 0 or fill.max(initial=0) > size or int(fill.sum(dtype=np.int64)) != state["rows"]:
        raise Damaged(f"{_FILL} does not share {state['rows']:,} rows out over pages")
    return fill


def _allocate(fill: np.ndarray, state: dict[str, Any]) -> Store:
    try:
        return Store.of_pages(fill, moments=state["moments"], page_rows=state["page_rows"])
    except MemoryError:
        raise ResourceError(
            f"A checkpoint of {state['rows']:,} Gaussians does not fit into memory.", "Resume on a larger machine."
        ) from None


def _check_names(path: Path, wanted: set[str], listed: dict[str, Listed]) -> None:
    """Refuse arrays that should not be there, on the disk or in the manifest, and arrays that it does not list."""
    extra = sorted({file.name for file in path.glob("*.npy")} - wanted)
    if extra:
        raise Damaged(f"{extra[0]} does not belong there")
    if listed and (other := sorted(wanted.symmetric_difference(listed.keys() - {STATE}))):
        raise Damaged(f"{MANIFEST} and the arrays of a store differ in {other[0]}")


def _check_stamps(store: Store, last: int) -> None:
    """A stamp beyond the step reached would make the kernels read outside their tables."""
    for run in store.runs():
        stamps = store.stamp[run]
        if not 0 <= int(stamps.min()) <= int(stamps.max()) <= last:
            raise Damaged("stamp.npy holds steps that were never made")
