"""Checkpoints: everything a run needs to go on as if it had never stopped, in a folder that appears whole or not at all.

`checkpoints/step_N/` holds `state.json`, one .npy per store array and `manifest.json` (size and checksum of each). It is
written under a temporary name, synced and renamed; what it replaces, and older ones, go only after that. Kill -9 at any
moment leaves the previous checkpoint untouched. Loading checks every file before anything is used. What this run did not
write is never deleted: a folder in the way is set aside.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from clm.errors import ClmError, ResourceError
from clm.files import leftovers, remove_leftovers, storage_failure, sync_directory, temporary_name
from clm.progress import Report, tally, unseen
from clm.run.arrays import Damaged, Listed, check_array, read_array, read_listed, write_array
from clm.store.identity import first_keys
from clm.store.store import MOMENT_TYPES, Store


class State(Protocol):
    """What the caller makes of `state.json`."""

    @property
    def last_stamp(self) -> int: ...


T = TypeVar("T", bound=State)
FORMAT = 3
_READ = (1, 2, 3)  # format 1 had no manifest, formats 1 and 2 no keys
_WITH_KEYS = 3
_STATE, _MANIFEST = "state.json", "manifest.json"
_LONGEST_STATE = 1 << 26  # bytes
_MOST_ROWS = 2**31 - 1
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
    return tally(what, sum(getattr(store, name).nbytes for name in store.names), "B", report)


def _write_files(folder: Path, state: Mapping[str, Any], store: Store, passed: Callable[[int], None]) -> None:
    """All files of a checkpoint, the manifest last; every one is synced."""
    listed = {f"{name}.npy": write_array(folder / f"{name}.npy", getattr(store, name), passed) for name in store.names}
    header = {"rows": store.rows, "moments": store.moments}
    listed[_STATE] = _write_text(folder / _STATE, json.dumps({**header, **state}, indent=2))
    _write_text(folder / _MANIFEST, json.dumps({"format": FORMAT, "files": listed}, indent=2))
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
        state = json.loads((path / _STATE).read_text())
        return state["format"] in _READ and state.get("run", run) == run
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
    return path.name == _STATE or (path.stem in Store(0).names and path.suffix == ".npy")


# ---- in ----


def image_of_checkpoint(path: Path) -> int:
    """N of `step_N`."""
    match = _STEP.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def checkpoints(folder: Path) -> list[Path]:
    """Folders that were written as checkpoints, oldest first; `load_checkpoint` says whether they are still whole."""
    named = (p for p in folder.glob("step_*") if _STEP.fullmatch(p.name))
    return sorted((p for p in named if (p / _STATE).exists() or (p / _MANIFEST).exists()), key=image_of_checkpoint)


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
        state, listed = _read_state(path)
        parsed = parse(state)
        names = _arrays_of(state)
        _check_files(path, names, state["rows"], state["moments"], listed)
        store = _allocate(state["rows"], state["moments"])
        passed = _tally(f"loading {path.name}", store, report)
        for name in names:
            read_array(path / f"{name}.npy", getattr(store, name), listed.get(f"{name}.npy"), passed)
        _check_stamps(store, parsed.last_stamp)
        if "keys" not in names:
            store.keys[:] = first_keys(0, store.rows)
        store.identify(0, store.rows)
    except Damaged as error:
        raise Damaged(
            f"Checkpoint {path} cannot be read: {error.message}.",
            "No other one is whole: start anew with another -o.",
        ) from None
    return parsed, store


def _arrays_of(state: dict[str, Any]) -> tuple[str, ...]:
    """Names of the arrays that a checkpoint of this format holds."""
    without = () if state["format"] >= _WITH_KEYS else ("keys",)
    return tuple(name for name in Store(0).names if name not in without)


def _check_files(path: Path, names: tuple[str, ...], rows: int, moments: str, listed: dict[str, Listed]) -> None:
    """Names, sizes, shapes and types of all arrays, before any is read."""
    empty = Store(0, moments=moments)
    _check_names(path, {f"{name}.npy" for name in names}, listed)
    for name in names:
        like, file = getattr(empty, name), f"{name}.npy"
        check_array(path / file, like.dtype, (rows, *like.shape[1:]), listed.get(file))


def _allocate(rows: int, moments: str) -> Store:
    try:
        store = Store(rows, moments=moments)
    except MemoryError:
        raise ResourceError(
            f"A checkpoint of {rows:,} Gaussians does not fit into memory.", "Resume on a larger machine."
        ) from None
    store.rows = rows
    return store


def _read_state(path: Path) -> tuple[dict[str, Any], dict[str, Listed]]:
    """`state.json`, checked against the manifest and for what every format holds; and what the manifest lists."""
    listed: dict[str, Listed] = {}
    manifest = _parse(path / _MANIFEST, None) if os.path.lexists(path / _MANIFEST) else None
    if manifest is not None:
        if manifest.get("format") != FORMAT:
            _refuse_other_formats(path, manifest.get("format"), _parse_quietly(path / _STATE).get("format"))
        listed = _listed_files(manifest)
    state = _parse(path / _STATE, listed.get(_STATE))
    if manifest is None:
        if state.get("format") in _READ[1:]:
            raise Damaged(f"{_MANIFEST} is missing")
        _refuse_other_formats(path, state.get("format"), state.get("format"))
        state.setdefault("moments", "f32")
    _check_state(state)
    return state, listed


def _parse(path: Path, listed: Listed | None) -> dict[str, Any]:
    content = read_listed(path, listed, _LONGEST_STATE)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise Damaged(f"{path.name} is not JSON") from None
    if not isinstance(value, dict):
        raise Damaged(f"{path.name} is not a JSON object")
    return value


def _parse_quietly(path: Path) -> dict[str, Any]:
    try:
        return _parse(path, None)
    except Damaged:
        return {}


def _refuse_other_formats(path: Path, number: Any, again: Any) -> None:
    """Refuse a format that both files name alike; one that only one of them names is damage."""
    if type(number) is not int or number != again or number < 1:
        raise Damaged(f"its format is not a number that {_STATE} and {_MANIFEST} agree on")
    if number not in _READ:
        raise ClmError(
            f"Checkpoint {path} has format {number}; this clm reads formats {_READ[0]} to {_READ[-1]}.",
            "Resume with the version that wrote it, or move it away to go on from an older one.",
        )


def _listed_files(manifest: dict[str, Any]) -> dict[str, Listed]:
    files = manifest.get("files")
    if not isinstance(files, dict) or _STATE not in files:
        raise Damaged(f"{_MANIFEST} lists no {_STATE}")
    listed = {name: Listed.parse(value) for name, value in files.items()}
    wrong = [name for name, entry in listed.items() if entry is None]
    if wrong:
        raise Damaged(f"{_MANIFEST} has no size and checksum of {wrong[0]}")
    return {name: entry for name, entry in listed.items() if entry is not None}


def _check_state(state: dict[str, Any]) -> None:
    """Refuse values that no checkpoint holds; what else belongs into `config`, `progress` and `totals`, their owners know."""
    for key, most in (("rows", _MOST_ROWS), ("iteration", 2**62)):
        if type(state.get(key)) is not int or not 0 <= state[key] <= most:
            raise Damaged(f"`{key}` in {_STATE} is not a count")
    if not isinstance(state.get("moments"), str) or state["moments"] not in MOMENT_TYPES:
        raise Damaged(f"`moments` in {_STATE} is not one of {', '.join(MOMENT_TYPES)}")
    for key in ("config", "progress", "totals"):
        if not isinstance(state.get(key), dict):
            raise Damaged(f"`{key}` in {_STATE} is not an object")
    scale = state.get("scene_scale")
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not math.isfinite(scale) or scale <= 0:
        raise Damaged(f"`scene_scale` in {_STATE} is not a length")
    step, iteration = state["progress"].get("step"), state["iteration"]
    if state["progress"].get("iteration") != iteration or type(step) is not int or not 0 <= step <= iteration:
        raise Damaged(f"`progress` in {_STATE} is not that of image {iteration}")


def _check_names(path: Path, wanted: set[str], listed: dict[str, Listed]) -> None:
    """Refuse arrays that should not be there, on the disk or in the manifest, and arrays that it does not list."""
    extra = sorted({file.name for file in path.glob("*.npy")} - wanted)
    if extra:
        raise Damaged(f"{extra[0]} does not belong there")
    if listed and (other := sorted(wanted.symmetric_difference(listed.keys() - {_STATE}))):
        raise Damaged(f"{_MANIFEST} and the arrays of a store differ in {other[0]}")


def _check_stamps(store: Store, last: int) -> None:
    """A stamp beyond the step reached would make the kernels read outside their tables."""
    if store.rows and not 0 <= int(store.stamp.min()) <= int(store.stamp.max()) <= last:
        raise Damaged("stamp.npy holds steps that were never made")
