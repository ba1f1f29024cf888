"""Reading checkpoints: nothing that a file says is believed before it was compared with what it should be."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from clm.errors import ClmError, ResourceError
from clm.kernels.numbers import STATISTICS
from clm.progress import Report, tally, unseen
from clm.ranks import ALONE, Ranks
from clm.ranks.handshake import together
from clm.run.arrays import Damaged, Listed, check_array, read_array, read_listed
from clm.run.checkpoint import FORMAT, FORMATS, MANIFEST, STATE, listed_files, newest_first
from clm.run.room import Room
from clm.run.segments import INDEX, Kept, Pages, row_bytes
from clm.run.segments_read import read_index, read_pages, read_pages_of_first, share_of
from clm.store.arrays import MOMENT_TYPES, RowArrays
from clm.store.identity import first_keys
from clm.store.layout import PAGE_ROWS
from clm.store.paged import MOST_PLACES
from clm.store.store import Store

_LONGEST_STATE = 1 << 28  # bytes: the exposures of half a million photos
_ALL_IN_RAM = Room(0, None)
_PAGES = 3  # the first format of pages
_STATISTICS_BEFORE = 2  # columns of statistics before format 4: views that drew a row, and its screen gradient


class State(Protocol):
    """What the caller makes of `state.json`."""

    @property
    def last_stamp(self) -> int: ...


T = TypeVar("T", bound=State)


class Loaded(NamedTuple, Generic[T]):
    """A checkpoint as one rank has it: its own rows, of which cull entries must be refreshed. kept: where a save that goes on from
    it may link pages; None: of a format that it cannot link."""

    path: Path
    state: T
    store: Store
    kept: Kept | None


def load_sound_checkpoint(
    path: Path,
    parse: Callable[[dict[str, Any]], T],
    warn: Callable[[str], None],
    report: Report,
    room: Room,
    ranks: Ranks = ALONE,
) -> Loaded[T]:
    """As load_checkpoint, of `path` or, where that is damaged, of the newest older checkpoint that is whole; what is damaged
    is said. Raises Damaged about `path` when none is whole."""
    damaged: list[Damaged] = []
    for name in ranks.of_first([candidate.name for candidate in newest_first(path)]):
        candidate = path.with_name(name)
        try:
            loaded = load_checkpoint(candidate, parse, report, room, ranks)
        except Damaged as error:
            damaged.append(error)
            continue
        for earlier in damaged:
            warn(f"{earlier.message} Going on from the older {candidate}.")
        return loaded
    raise damaged[0]


class _Found(NamedTuple):
    """What rank 0 found in a checkpoint. pages: None where it has arrays; manifest: a checksum of that file, by which another
    rank knows the folder again."""

    state: dict[str, Any]
    listed: dict[str, Listed]
    pages: Pages | None
    manifest: int


def load_checkpoint(
    path: Path,
    parse: Callable[[dict[str, Any]], T],
    report: Report = unseen,
    room: Room = _ALL_IN_RAM,
    ranks: Ranks = ALONE,
) -> Loaded[T]:
    """State and rows of a checkpoint; of several ranks, each gets its share of the pages. parse: what is made of the state; it may
    raise Damaged. room: for this rank's rows. Raises Damaged, on every rank, with what is wrong, or a ClmError for a format of
    another version."""
    try:
        found = ranks.of_first(together(ranks, lambda: _find(path) if ranks.first else None))
        assert found is not None, "rank 0 has looked"
        parsed = together(ranks, lambda: parse(found.state))
        if found.pages is not None:
            store, pages = _read_pages(path, found, found.pages, report, room, parsed.last_stamp, ranks)
            kept = Kept(path, pages) if pages.statistics == STATISTICS else None
            return Loaded(path, parsed, store, kept)
        if not ranks.alone:
            raise ClmError(
                f"Checkpoint {path} has format {found.state['format']}, which one process alone reads.",
                "Go on from it without torchrun until it has saved.",
            )
        store = _read_arrays(path, found.state, found.listed, report, room, parsed.last_stamp)
        return Loaded(path, parsed, store, None)
    except Damaged as error:
        again = Damaged(
            f"Checkpoint {path} cannot be read: {error.message}.",
            "No other one is whole: start anew with another -o.",
        )
        again.of_all_ranks = True  # type: ignore[attr-defined]
        raise again from None


def _find(path: Path) -> _Found:
    state, listed = _read_state(path)
    pages = _find_pages(path, state, listed) if state["format"] >= _PAGES else None
    manifest = zlib.crc32(read_listed(path / MANIFEST, None, _LONGEST_STATE)) if listed else 0
    return _Found(state, listed, pages, manifest)


def _find_pages(path: Path, state: dict[str, Any], listed: dict[str, Listed]) -> Pages:
    pages, size = state.get("pages"), state.get("page_rows")
    if (
        type(pages) is not int
        or type(size) is not int
        or not 0 < size <= MOST_PLACES
        or not 0 <= pages * size <= MOST_PLACES
    ):
        raise Damaged(f"`pages` and `page_rows` in {STATE} are not those of a store")
    statistics = STATISTICS if state["format"] == FORMAT else _STATISTICS_BEFORE
    found = read_index(path, state, Store(0, moments=state["moments"]), listed, statistics)
    _check_names(path, {*found.names, INDEX}, listed)
    return found


def _read_pages(
    path: Path, found: _Found, pages: Pages, report: Report, room: Room, last_stamp: int, ranks: Ranks
) -> tuple[Store, Pages]:
    """This rank's share of the rows of a checkpoint of pages."""
    here = ranks.gather(ranks.first or _is_here(path, found.manifest))
    mine = share_of(pages, ranks.rank, ranks.world)
    stores: list[Store] = []
    check = partial(_check_stamps_at, last_stamp)

    def read() -> Callable[[int], None]:
        store = _allocate(mine.fill, found.state, room)
        stores.append(store)
        size = int(mine.pages.fill.sum()) * row_bytes(store, pages.statistics)
        passed = tally(f"loading {path.name}", size, "B", report)
        if here[ranks.rank]:
            read_pages(path, mine, store, passed, check)
        return passed

    try:
        passed = together(ranks, read)
        if not all(here):
            together(ranks, lambda: read_pages_of_first(path, pages, here, ranks, stores[0], passed, check))
    except BaseException:
        for store in stores:
            store.close()
        raise
    stores[0].changed[:] = False
    stores[0].changed[list(mine.cut)] = True
    return stores[0], mine.kept


def _is_here(path: Path, manifest: int) -> bool:
    """Whether this rank sees the folder that rank 0 found."""
    try:
        return zlib.crc32((path / MANIFEST).read_bytes()) == manifest
    except OSError:
        return False


def _read_arrays(
    path: Path, state: dict[str, Any], listed: dict[str, Listed], report: Report, room: Room, last_stamp: int
) -> Store:
    """The rows of a checkpoint of format 1 or 2, all in RAM: one .npy per array, no keys, no free places."""
    empty, rows = Store(0, moments=state["moments"]), state["rows"]
    names = [name for name in empty.names if name != "keys"]
    _check_names(path, {f"{name}.npy" for name in names}, listed)
    for name in names:  # sizes, shapes and types of all, before any is read
        like, file = _before(getattr(empty, name), name), f"{name}.npy"
        check_array(path / file, like.dtype, (rows, *like.shape[1:]), listed.get(file))
    fill = np.minimum(PAGE_ROWS, rows - np.arange(0, rows, PAGE_ROWS)).astype(np.int32)
    store = _allocate(fill, {**state, "page_rows": PAGE_ROWS}, _ALL_IN_RAM)
    passed = tally(f"loading {path.name}", rows * row_bytes(store, _STATISTICS_BEFORE), "B", report)
    statistics = np.zeros((rows, _STATISTICS_BEFORE), np.float32)
    for name in names:
        values = statistics if name == "statistics" else getattr(store, name)
        read_array(path / f"{name}.npy", values, listed.get(f"{name}.npy"), passed)
    store.statistics[:, :_STATISTICS_BEFORE], store.statistics[:, _STATISTICS_BEFORE:] = statistics, 0
    store.keys[:] = first_keys(0, rows)
    store.identify()
    for run in store.live():
        _check_stamps(store.stamp[run], last_stamp)
    store.see_again()
    return store


def _before(array: np.ndarray, name: str) -> np.ndarray:
    """As it was before format 4."""
    return array[:, :_STATISTICS_BEFORE] if name == "statistics" else array


def _allocate(fill: np.ndarray, state: dict[str, Any], room: Room) -> Store:
    try:
        return room.of_pages(fill, state["moments"], state["page_rows"])
    except MemoryError:
        raise ResourceError(
            f"A checkpoint of {state['rows']:,} Gaussians does not fit into memory.", "Resume on a larger machine."
        ) from None


def _read_state(path: Path) -> tuple[dict[str, Any], dict[str, Listed]]:
    """`state.json`, checked against the manifest and for what every format holds; and what the manifest lists."""
    listed: dict[str, Listed] = {}
    manifest = _parse(path / MANIFEST, None) if os.path.lexists(path / MANIFEST) else None
    if manifest is not None:
        if manifest.get("format") != FORMAT:
            _refuse_other_formats(path, manifest.get("format"), _parse_quietly(path / STATE).get("format"))
        listed = listed_files(manifest)
    state = _parse(path / STATE, listed.get(STATE))
    if manifest is None:
        if state.get("format") in FORMATS[1:]:
            raise Damaged(f"{MANIFEST} is missing")
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
        raise Damaged(f"its format is not a number that {STATE} and {MANIFEST} agree on")
    if number not in FORMATS:
        raise ClmError(
            f"Checkpoint {path} has format {number}; this clm reads formats {FORMATS[0]} to {FORMATS[-1]}.",
            "Resume with the version that wrote it, or move it away to go on from an older one.",
        )


def _check_state(state: dict[str, Any]) -> None:
    """Refuse values that no checkpoint holds; what else belongs into `config`, `progress` and `totals`, their owners know."""
    for key, most in (("rows", MOST_PLACES), ("iteration", 2**62)):
        if type(state.get(key)) is not int or not 0 <= state[key] <= most:
            raise Damaged(f"`{key}` in {STATE} is not a count")
    if not isinstance(state.get("moments"), str) or state["moments"] not in MOMENT_TYPES:
        raise Damaged(f"`moments` in {STATE} is not one of {', '.join(MOMENT_TYPES)}")
    for key in ("config", "progress", "totals"):
        if not isinstance(state.get(key), dict):
            raise Damaged(f"`{key}` in {STATE} is not an object")
    scale = state.get("scene_scale")
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not math.isfinite(scale) or scale <= 0:
        raise Damaged(f"`scene_scale` in {STATE} is not a length")
    step, iteration = state["progress"].get("step"), state["iteration"]
    if state["progress"].get("iteration") != iteration or type(step) is not int or not 0 <= step <= iteration:
        raise Damaged(f"`progress` in {STATE} is not that of image {iteration}")


def _check_names(path: Path, wanted: set[str], listed: dict[str, Listed]) -> None:
    """Refuse arrays that should not be there, on the disk or in the manifest, and arrays that it does not list."""
    extra = sorted({file.name for kind in ("*.npy", "*.bin") for file in path.glob(kind)} - wanted)
    if extra:
        raise Damaged(f"{extra[0]} does not belong there")
    if listed and (other := sorted(wanted.symmetric_difference(listed.keys() - {STATE}))):
        raise Damaged(f"{MANIFEST} and the arrays of a store differ in {other[0]}")


def _check_stamps_at(last: int, held: RowArrays, at: slice) -> None:
    _check_stamps(held.stamp[at], last)


def _check_stamps(stamps: np.ndarray, last: int) -> None:
    """A stamp beyond the step reached would make the kernels read outside their tables."""
    if len(stamps) and not 0 <= int(stamps.min()) <= int(stamps.max()) <= last:
        raise Damaged("it holds stamps of steps that were never made")
