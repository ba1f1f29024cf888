"""What was saved is loaded bit for bit; what was damaged since is named and refused, and an older checkpoint is taken."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clm.config import Config, to_dict
from clm.errors import ClmError, ResourceError
from clm.files import temporary_name
from clm.optim.schedules import Leg
from clm.run import segments
from clm.run.arrays import Damaged
from clm.run.checkpoint import checkpoints, clean_checkpoints, save_checkpoint
from clm.run.events import Message
from clm.run.restore import load_checkpoint
from clm.run.saved import Saved
from clm.run.schedule import Progress
from clm.run.segments import Kept
from clm.run.totals import Totals
from clm.store.growth import Growth
from clm.store.store import Store
from tests.demo_run import as_format_1, as_format_3, assert_same_model, clm, files_under, images_done, of_type, run_demo

ROWS = 300


def state_of(iteration: int, run: str = "a") -> dict[str, Any]:
    progress = dataclasses.asdict(
        Progress(Leg.of(Config(), 1.5), iteration=iteration, step=iteration // 4, next_order=[3, 1, 2])
    )
    return {
        "run": run,
        "config": to_dict(Config()),
        "scene_scale": 1.5,
        "progress": progress,
        "totals": Totals().state(),
    }


def some_store(seed: int = 0, moments: str = "f32") -> Store:
    rng = np.random.default_rng(seed)
    geometry, colour = (rng.random((ROWS, width), np.float32) for width in (12, 48))
    store = Store.from_rows(geometry, colour, moments=moments)
    store.stamp[:] = rng.integers(0, 3, ROWS)
    store.statistics[:] = rng.random(store.statistics.shape)
    return store


def with_two_statistics(store: Store) -> Store:
    """As formats before the fourth held it."""
    assert store.statistics[:, 2:].any()
    store.statistics[:, 2:] = 0
    return store


def save(folder: Path, iteration: int = 40, *, run: str = "a", keep: int = 9, seed: int = 0) -> Path:
    return save_checkpoint(folder, iteration, state_of(iteration, run), some_store(seed), keep).path


def load(path: Path) -> Store:
    return load_checkpoint(path, lambda state: Saved.parse(state, str(path))).store


def assert_refused(path: Path, part: str = "") -> None:
    with pytest.raises(ClmError) as caught:
        load(path)
    assert part in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def same(store: Store, other: Store) -> bool:
    return all(getattr(store, name).tobytes() == getattr(other, name).tobytes() for name in other.names)


@pytest.mark.parametrize("moments", ["f32", "bf16"])
def test_what_was_saved_is_loaded_bit_for_bit(tmp_path: Path, moments: str) -> None:
    path = save_checkpoint(tmp_path, 8, state_of(8), some_store(1, moments), 2).path
    assert same(load(path), some_store(1, moments))


@pytest.mark.parametrize("as_before", [as_format_1, as_format_3])
@pytest.mark.parametrize("moments", ["f32", "bf16"])
def test_rows_of_older_formats_are_loaded_with_the_statistics_that_they_had(
    tmp_path: Path, moments: str, as_before: Callable[[Path], None]
) -> None:
    path = save_checkpoint(tmp_path, 8, state_of(8), some_store(1, moments), 2).path
    as_before(path)
    assert same(load(path), with_two_statistics(some_store(1, moments)))


def test_an_empty_store_is_saved_and_loaded(tmp_path: Path) -> None:
    empty = Store.from_rows(np.zeros((0, 12), np.float32), np.zeros((0, 48), np.float32))
    assert load(save_checkpoint(tmp_path, 0, state_of(0), empty, 2).path).rows == 0


def test_every_file_cut_off_or_flipped_anywhere_is_refused(tmp_path: Path) -> None:
    path, rng = save(tmp_path), random.Random(0)
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        cuts = {0, 1, len(whole) // 2, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(3))}
        damaged = [whole[:cut] for cut in cuts] + [whole + b"\0"]
        for _ in range(8):
            flipped, at = bytearray(whole), rng.randrange(len(whole))
            flipped[at] ^= 1 << rng.randrange(8)
            damaged.append(bytes(flipped))
        for content in damaged:
            file.write_bytes(content)
            if file.name == "manifest.json":  # a flipped space changes nothing
                try:
                    assert same(load(path), some_store())
                except ClmError as error:
                    assert str(path) in str(error)
            else:
                assert_refused(path, file.name)
        file.write_bytes(whole)
    assert same(load(path), some_store())


def test_arrays_of_another_shape_or_type_and_things_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path)
    as_format_1(path)
    geometry = np.load(path / "geometry.npy")
    others = [geometry[:1], geometry[:-1], geometry[:, :6], geometry.T, geometry.astype("f8"), geometry.astype("f2")]
    others += [geometry.astype(">f4"), geometry.view("i4"), np.float32(0), geometry[:0], np.asfortranarray(geometry)]
    for other in others:
        np.save(path / "geometry.npy", other)
        assert_refused(path, "geometry.npy")
    np.save(path / "geometry.npy", np.array([{"an": "object"}]), allow_pickle=True)
    assert_refused(path, "geometry.npy")
    header = b"\x93NUMPY\x01\x00"
    for text in (b"{", b"{'descr': '<f4', 'shape': (99999999999999, 12), 'fortran_order': False}", b"__import__('os')"):
        (path / "geometry.npy").write_bytes(header + len(text).to_bytes(2, "little") + text)
        assert_refused(path, "geometry.npy")
    (path / "geometry.npy").unlink()
    assert_refused(path, "geometry.npy is missing")
    (path / "geometry.npy").mkdir()
    assert_refused(path, "geometry.npy is not a file")
    (path / "geometry.npy").rmdir()
    os.mkfifo(path / "geometry.npy")
    assert_refused(path, "geometry.npy is not a file")
    (path / "geometry.npy").unlink()
    np.save(path / "geometry.npy", geometry)
    np.save(path / "opacity.npy", geometry)
    assert_refused(path, "opacity.npy does not belong there")
    (path / "opacity.npy").unlink()
    assert same(load(path), with_two_statistics(some_store()))


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [way, *(place for key, item in inside for place in places(item, (*way, key)))]


def test_any_damage_to_the_state_of_a_format_without_checksums_is_refused_or_harmless(tmp_path: Path) -> None:
    path = save(tmp_path)
    as_format_1(path)
    state = json.loads((path / "state.json").read_text())
    refused, wrongs = 0, ([], float("nan"), None, {}, "x", -1, 10**30, True)
    for way in places(state):
        for wrong in wrongs[: 2 if way[:1] == ("config",) else None]:  # load_config's own tests know the rest
            changed: Any = {"": json.loads(json.dumps(state))}
            inside, key = changed, ""
            for step in way:
                inside, key = inside[key], step
            inside[key] = wrong
            (path / "state.json").write_text(json.dumps(changed[""]))
            try:
                store = load(path)
            except ClmError as error:
                assert str(path) in str(error) and "\n" not in str(error)
                refused += 1
            else:
                assert same(store, with_two_statistics(some_store()))
    assert refused > 150
    for text in ("", "null", "[1]", "{", "\x00", "[" * 100_000, '{"format": 1, "rows": ' + "9" * 10_000 + "}"):
        (path / "state.json").write_text(text)
        assert_refused(path, "state.json")


def test_stamps_of_steps_that_were_never_made_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path)
    as_format_1(path)
    for stamp in (11, -1, 2**31 - 1):
        stamps = np.load(path / "stamp.npy")
        stamps[17] = stamp
        np.save(path / "stamp.npy", stamps)
        assert_refused(path, "stamps of steps that were never made")


def test_a_format_of_another_version_is_named_and_not_skipped(tmp_path: Path) -> None:
    path = save(tmp_path)
    for name in ("state.json", "manifest.json"):
        (path / name).write_text((path / name).read_text().replace('"format": 4', '"format": 7'))
    with pytest.raises(ClmError, match="has format 7; this clm reads formats 1 to 4") as caught:
        load(path)
    assert not isinstance(caught.value, Damaged)


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before_and_says_so(tmp_path: Path) -> None:
    run_demo(tmp_path / "whole")
    run = tmp_path / "run"
    run_demo(run, stop_at=60, save_every=20)
    newest = run / "checkpoints" / "step_60"
    segment = newest / "pages_60.bin"
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    events = run_demo(run, resume=True, save_every=20)
    warned = [event.text for event in of_type(events, Message) if event.level == "warning"]
    assert any("step_60 cannot be read: pages_60.bin does not match" in text and "step_40" in text for text in warned)
    assert images_done(events)[0] == 44
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["step_60", "step_80"]
    load(newest)  # replaced by a whole one on the way
    assert_same_model(tmp_path / "whole", run)


def test_older_checkpoints_of_this_run_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    foreign = [save(tmp_path, 10, run="another"), tmp_path / "step_20", tmp_path / "step_30", tmp_path / "notes"]
    for folder in foreign[1:]:
        folder.mkdir()
        (folder / "mine.txt").write_text("mine")
    (tmp_path / ".draft.tmp").write_text("mine")
    (tmp_path / ".step_7.tmp").mkdir()
    (tmp_path / ".step_7.tmp" / "mine.txt").write_text("mine")
    before = files_under(tmp_path)
    for iteration in (12, 16, 20, 24):
        save(tmp_path, iteration, keep=2)
    ours = {path.name for path in checkpoints(tmp_path)} - {"step_10"}
    assert ours == {"step_20", "step_24"}
    moved = {name.replace("step_20/mine", "step_20.aside/mine") for name in before}
    assert moved <= files_under(tmp_path)


def test_a_checkpoint_is_replaced_only_by_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, seed=1)
    real, calls = os.replace, []

    def fails_at(number: int) -> Callable[..., None]:
        def replace(*names: Any) -> None:
            calls.append(names)
            if len(calls) == number:
                raise OSError(28, "No space left on device")
            real(*names)

        return replace

    for number in (1, 2):
        calls.clear()
        monkeypatch.setattr("os.replace", fails_at(number))
        with pytest.raises(ResourceError, match=r"disk is full.*step_40"):
            save(tmp_path, seed=2)
        monkeypatch.undo()
        assert same(load(path), some_store(1)) and [p.name for p in tmp_path.iterdir()] == ["step_40"]
    save(tmp_path, seed=2)
    assert same(load(path), some_store(2)) and [p.name for p in tmp_path.iterdir()] == ["step_40"]


def test_killed_between_its_two_renames_the_replaced_checkpoint_goes_back(tmp_path: Path) -> None:
    path = save(tmp_path, seed=1)
    path.rename(temporary_name(path.with_name("step_40.replaced")))
    shutil.copytree(save(tmp_path / "other"), temporary_name(path))
    clean_checkpoints(tmp_path)
    assert same(load(path), some_store(1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "step_40"]


def test_a_write_that_fails_anywhere_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 8)
    before = files_under(tmp_path)
    for failing in ("write_array", "_write_segment"):

        def fails(path: Path, *rest: Any) -> Any:
            path.write_bytes(b"half of it")
            raise OSError("12345 requested and 17 written")  # as numpy says it, without an errno

        monkeypatch.setattr(segments, failing, fails)
        with pytest.raises(ResourceError, match=r"disk is full: checkpoint .*step_12.* It needs .*iB") as caught:
            save(tmp_path, 12)
        assert caught.value.exit_code == 3
        monkeypatch.undo()
        assert files_under(tmp_path) == before


def test_a_full_disk_says_what_is_free_where_the_checkpoint_was_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fails(path: Path, *rest: Any) -> Any:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(segments, "write_array", fails)
    monkeypatch.setattr(
        "clm.files.shutil.disk_usage", lambda folder: asked.append(folder) or SimpleNamespace(free=5 << 20)
    )
    with pytest.raises(ResourceError, match=r"5\.0 MiB are free"):
        save(tmp_path, 12)
    assert asked[-1] == tmp_path, "not where the command was typed"


def test_the_command_names_the_damage_in_one_sentence(tmp_path: Path) -> None:
    run_demo(tmp_path / "run", stop_at=4)
    (tmp_path / "run" / "checkpoints" / "step_4" / "state.json").write_text("[]")
    done = clm("train", "data/demo", "-o", tmp_path / "run", "--downscale", "4", "--resume", "-q")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "step_4 cannot be read: state.json" in done.stderr


def grown_store(seed: int, rows: int = 900, page_rows: int = 64) -> Store:
    """Pages with free places, some of them empty."""
    rng = np.random.default_rng(seed)
    store = Store(0, page_rows=page_rows)
    store.append(*(rng.random((rows, width), np.float32) for width in (12, 48)))
    store.refresh(None)
    leave = np.sort(rng.permutation(rows)[: rows // 2]).astype(np.int32)
    parents = np.setdiff1d(np.arange(0, rows, 7, dtype=np.int32), leave)
    children = [rng.random((len(parents), width), np.float32) for width in (12, 48)]
    keys = rng.integers(2**40, 2**60, len(parents)).astype(np.uint64)
    store.apply(Growth.of(leave, parents, keys, *children))
    return store


def same_rows(store: Store, other: Store) -> bool:
    live = np.concatenate([*store.live()])
    return np.array_equal(store.fill, other.fill) and all(
        getattr(store, name)[live].tobytes() == getattr(other, name)[live].tobytes() for name in store.names
    )


def resave(folder: Path, iteration: int, store: Store, before: Kept | None, keep: int = 9) -> Kept:
    return save_checkpoint(folder, iteration, state_of(iteration), store, keep, before=before)


def touch(store: Store, pages: list[int]) -> None:
    rows = store.rows_of(np.array(pages, np.int64))
    store.colour[rows] += 1
    store.publish(np.sort(rows))


def test_only_pages_that_changed_are_written_and_every_checkpoint_is_whole(tmp_path: Path) -> None:
    store, rng, last, states = grown_store(1), np.random.default_rng(0), None, {}
    for iteration in range(4, 80, 4):
        last = resave(tmp_path, iteration, store, last, keep=99)
        written = last.path / f"pages_{iteration}.bin"
        assert (written.stat().st_nlink == 1) if written.exists() else (iteration > 4)
        states[last.path] = load(last.path)
        assert same_rows(store, states[last.path])
        touch(store, rng.permutation(np.flatnonzero(store.fill))[: rng.integers(0, 4)].tolist())
    for path, state in states.items():
        assert same_rows(state, load(path)), "a later checkpoint changed an earlier one"
    sizes = [sum(file.stat().st_size for file in path.glob("*.bin")) for path in states]
    assert max(sizes) < 2.2 * sizes[0], "segments that are mostly waste are not kept"


def test_a_checkpoint_whose_segments_went_or_cannot_be_linked_is_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = grown_store(2)
    first = resave(tmp_path, 4, store, None)
    touch(store, [1])

    def refuses(*names: Any) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuses)
    second = resave(tmp_path, 8, store, first)
    monkeypatch.undo()
    assert same_rows(store, load(second.path)) and len(list(second.path.glob("*.bin"))) == 1
    shutil.rmtree(second.path)
    third = resave(tmp_path, 12, store, second)
    assert same_rows(store, load(third.path))
    with open(third.path / "pages_12.bin", "ab") as file:
        file.write(b"x")  # not as long as its manifest says
    touch(store, [2])
    assert same_rows(store, load(resave(tmp_path, 16, store, third).path))


def test_rows_that_moved_between_pages_are_saved_where_they_are(tmp_path: Path) -> None:
    store = grown_store(3)
    first = resave(tmp_path, 4, store, None)
    leave, nobody = store.rows_of(np.arange(4)), np.zeros(0, np.int32)
    nothing = [np.zeros((0, width), np.float32) for width in (12, 48)]
    store.apply(Growth.of(np.sort(leave), nobody, np.zeros(0, np.uint64), *nothing))
    second = resave(tmp_path, 8, store, first)
    assert same_rows(store, load(second.path)) and load(first.path).rows > store.rows
