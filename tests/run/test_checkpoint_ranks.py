"""One checkpoint for any number of ranks: each writes and reads its pages, all of them or none, on one disk or on several."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clm.errors import ResourceError
from clm.ranks import Ranks
from clm.run import segments
from clm.run.arrays import Damaged
from clm.run.checkpoint import checkpoints, save_checkpoint
from clm.run.restore import Loaded, load_checkpoint, load_sound_checkpoint
from clm.run.room import Room
from clm.run.saved import Saved
from clm.run.segments import Pages
from clm.run.segments_read import share_of
from clm.store.store import Store
from tests.run.test_checkpoint import as_format_3, files_under, grown_store, state_of, touch
from tests.thread_ranks import on_ranks

ROOM = Room(0, None)


def save(folders: Sequence[Path], image: int, party: list[Loaded[Any]], ranks: Ranks) -> Loaded[Any]:
    """This rank's rows into a checkpoint; what a save after it goes on from."""
    mine = party[ranks.rank]
    kept = save_checkpoint(folders[ranks.rank], image, state_of(image), mine.store, 9, before=mine.kept, ranks=ranks)
    return mine._replace(path=kept.path, kept=kept)


def load(folders: Sequence[Path], image: int, ranks: Ranks) -> Loaded[Any]:
    path = folders[ranks.rank] / f"step_{image}"
    return load_checkpoint(path, lambda state: Saved.parse(state, "a test"), room=ROOM, ranks=ranks)


def rows_of(party: Sequence[Loaded[Any]]) -> list[bytes]:
    """All rows of all ranks, in their order, each with everything of it."""
    rows = []
    for store in (loaded.store for loaded in party):
        live = store.rows_of(np.arange(store.pages))
        arrays = [getattr(store, name)[live].reshape(len(live), -1).view(np.uint8) for name in store.names]
        rows += [row.tobytes() for row in np.concatenate([a.reshape(len(live), -1) for a in arrays], axis=1)]
    return rows


def touch_some(party: Sequence[Loaded[Any]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for loaded in party:
        full = np.flatnonzero(loaded.store.fill)
        touch(loaded.store, rng.permutation(full)[: rng.integers(0, 3)].tolist())


def touch_first(party: Sequence[Loaded[Any]]) -> None:
    for loaded in party:
        touch(loaded.store, np.flatnonzero(loaded.store.fill)[:2].tolist())


def begin(folder: Path, store: Store) -> None:
    save_checkpoint(folder, 4, state_of(4), store, 9)


@pytest.mark.parametrize("apart", [False, True], ids=["one disk", "separate disks"])
def test_ranks_go_on_from_checkpoints_of_any_other_number_of_ranks(tmp_path: Path, apart: bool) -> None:
    disks = [tmp_path / (f"disk{rank}" if apart else "disk0") for rank in range(4)]
    begin(disks[0], grown_store(1))
    party: list[Loaded[Any]] = on_ranks(1, partial(load, disks, 4))
    image, expected = 4, rows_of(party)
    for turn, world in enumerate((3, 2, 1, 4, 2)):
        party = on_ranks(world, partial(load, disks, image))
        assert rows_of(party) == expected, f"{world} ranks"
        for _ in range(2):
            touch_some(party, image)
            image, expected = image + 4, rows_of(party)
            party = on_ranks(world, partial(save, disks, image, party))
            written = disks[0] / f"step_{image}"
            new = sum(file.stat().st_nlink == 1 for file in written.glob("*.bin"))
            assert new <= world, f"turn {turn}: only pages that changed are written"
            assert rows_of(on_ranks(1, partial(load, disks, image))) == expected
    assert not apart or not any(disk.exists() for disk in disks[1:]), "rank 0's disk has everything"


def test_few_pages_are_cut_so_that_every_rank_has_rows(tmp_path: Path) -> None:
    begin(tmp_path, grown_store(6, rows=40))  # in one page
    expected = rows_of(on_ranks(1, partial(load, [tmp_path], 4)))
    party = on_ranks(3, partial(load, [tmp_path] * 3, 4))
    assert rows_of(party) == expected and min(loaded.store.rows for loaded in party) > 0
    party = on_ranks(3, partial(save, [tmp_path] * 3, 8, party))
    assert rows_of(on_ranks(2, partial(load, [tmp_path] * 2, 8))) == expected


def test_a_share_is_a_range_of_pages_with_about_as_many_rows_as_every_other() -> None:
    rng = np.random.default_rng(0)
    for world in (1, 2, 3, 7, 64):
        for count in (0, 1, 2, 63, 64, 500):
            where = np.zeros((count, 4), np.int64)
            where[:, segments.FILL] = rng.integers(0, 65, count)
            pages = Pages([], where, {})
            shares = [share_of(pages, rank, world) for rank in range(world)]
            rows, total = [int(share.fill.sum()) for share in shares], int(where[:, segments.FILL].sum())
            assert sum(rows) == total and max(rows) - min(rows) <= 2 * 64
            assert total < world or min(rows) > 0, "nobody has nothing"
            if not any(share.cut for share in shares):
                assert np.array_equal(np.concatenate([share.pages.where for share in shares]), where)


def test_a_rank_whose_disk_is_full_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path, grown_store(2))
    party = on_ranks(3, partial(load, [tmp_path] * 3, 4))
    before, real = files_under(tmp_path), segments._write_segment

    def fails(path: Path, *rest: Any) -> Any:
        if path.name.endswith("_1.bin"):
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *rest)

    touch_first(party)
    monkeypatch.setattr(segments, "_write_segment", fails)
    with pytest.raises(ResourceError, match=r"disk is full: checkpoint .*step_8"):
        on_ranks(3, partial(save, [tmp_path] * 3, 8, party))
    assert files_under(tmp_path) == before
    monkeypatch.undo()
    party = on_ranks(3, partial(save, [tmp_path] * 3, 8, party))
    assert rows_of(on_ranks(1, partial(load, [tmp_path], 8))) == rows_of(party)


def test_the_disk_of_rank_0_is_full_while_others_send_it_their_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks = [tmp_path / str(rank) for rank in range(3)]
    begin(disks[0], grown_store(3))
    party = on_ranks(3, partial(load, disks, 4))
    touch_first(party)
    before = files_under(tmp_path)

    def fails(descriptor: int, data: np.ndarray) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(segments, "_write_all", fails)
    with pytest.raises(ResourceError, match="disk is full"):
        on_ranks(3, partial(save, disks, 8, party))
    assert files_under(tmp_path) == before


@pytest.mark.parametrize("apart", [False, True], ids=["one disk", "separate disks"])
def test_damage_to_the_pages_of_any_rank_is_named_on_all_and_the_older_checkpoint_is_taken(
    tmp_path: Path, apart: bool
) -> None:
    disks = [tmp_path / (str(rank) if apart else "0") for rank in range(3)]
    store = grown_store(4)
    begin(disks[0], store)
    party = on_ranks(3, partial(load, disks, 4))
    expected = rows_of(party)
    touch_first(party)
    on_ranks(3, partial(save, disks, 8, party))
    segment = disks[0] / "step_8" / "pages_8_2.bin"
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    with pytest.raises(Damaged, match=r"step_8 cannot be read: .*pages_8_2.bin does not match"):
        on_ranks(3, partial(load, disks, 8))
    said: list[str] = []
    parse: Callable[[dict[str, Any]], Saved] = lambda state: Saved.parse(state, "a test")  # noqa: E731

    def sound(ranks: Ranks) -> Loaded[Any]:
        path = disks[ranks.rank] / "step_8"
        return load_sound_checkpoint(path, parse, said.append, lambda *progress: None, ROOM, ranks)

    party = on_ranks(3, sound)
    assert rows_of(party) == expected and len(said) == 3 and all("step_4" in text for text in said)


def test_a_checkpoint_of_the_format_before_is_read_by_several_ranks_and_not_linked(tmp_path: Path) -> None:
    begin(tmp_path, grown_store(5))
    as_format_3(tmp_path / "step_4")
    party = on_ranks(2, partial(load, [tmp_path] * 2, 4))
    assert [loaded.kept for loaded in party] == [None, None]
    on_ranks(2, partial(save, [tmp_path] * 2, 8, party))
    assert [path.name for path in checkpoints(tmp_path)] == ["step_4", "step_8"]
    assert rows_of(on_ranks(1, partial(load, [tmp_path], 8))) == rows_of(party)
