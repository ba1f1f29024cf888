"""Streamed SOG: the tree, its files, and what other programs read of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clm.errors import ClmError, ResourceError
from clm.formats import lod_write, sog_write
from clm.formats.lod_read import open_lod
from clm.formats.lod_tree import in_parts, tree_of
from clm.formats.lod_write import levels_of, write_lod
from clm.formats.options import Options
from clm.formats.rows import Chunk
from clm.formats.select import SPACE
from clm.formats.sog_read import open_sog
from tests.formats.made import made_rows, selection, whole
from tests.formats.splat_transform import read_by_splat_transform

COUNT = 6000


def export(folder: Path, levels: int) -> Path:
    patch = pytest.MonkeyPatch()
    patch.setattr(lod_write, "_LEAF_ROWS", 700)
    patch.setattr(lod_write, "_FILE_ROWS", 2000)
    index = folder / "scene" / "lod-meta.json"
    assert write_lod(index, selection(folder, made_rows(COUNT), SPACE), Options(lod=levels)) == COUNT
    patch.undo()
    return index


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("lod"), 3)


def leaves(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    children = node.get("children")
    if children is None:
        yield node
    else:
        assert len(children) == 2 and "lods" not in node
        for child in children:
            assert (np.array(child["bound"]["min"]) >= node["bound"]["min"]).all()
            assert (np.array(child["bound"]["max"]) <= node["bound"]["max"]).all()
            yield from leaves(child)


def test_the_index_names_every_row_of_every_file_once(written: Path) -> None:
    index = json.loads(written.read_text())
    assert (index["version"], index["lodLevels"], len(index["counts"])) == (1, 3, 3)
    assert index["count"] == sum(index["counts"]) and index["counts"][0] == COUNT
    assert COUNT / 4 <= index["counts"][1] <= COUNT / 4 + 40 and index["counts"][1] / 4 <= index["counts"][2]
    runs: dict[int, list[tuple[int, int]]] = {}
    for leaf in leaves(index["tree"]):
        assert sorted(leaf["lods"]) == ["0", "1", "2"]
        for level, run in leaf["lods"].items():
            assert index["filenames"][run["file"]].startswith(f"{level}_")
            runs.setdefault(run["file"], []).append((run["offset"], run["count"]))
    assert sorted(runs) == list(range(len(index["filenames"])))
    for file, named in runs.items():
        ends = np.cumsum([count for _, count in named])
        assert [offset for offset, _ in named] == [0, *ends[:-1]]
        rows = open_sog(written.parent / index["filenames"][file])
        assert rows.count == ends[-1] <= 2000
    folders = {file.name for file in written.parent.iterdir()} - {"lod-meta.json"}
    assert folders == {Path(name).parent.name for name in index["filenames"]}


def test_leaves_hold_their_rows_and_large_rows_have_leaves_of_their_own(written: Path) -> None:
    index = json.loads(written.read_text())
    files = [whole(open_sog(written.parent / name).chunks())[0] for name in index["filenames"]]
    sizes = []
    for leaf in leaves(index["tree"]):
        low, high = np.array(leaf["bound"]["min"]), np.array(leaf["bound"]["max"])
        for run in leaf["lods"].values():
            means = files[run["file"]][run["offset"] : run["offset"] + run["count"], :3]
            assert (means >= low - 1e-3).all() and (means <= high + 1e-3).all()
        run = leaf["lods"]["0"]
        radii = files[run["file"]][run["offset"] : run["offset"] + run["count"], 7:10].max(axis=1)
        sizes.append(radii)
    large = [bool((radii > 0).any()) for radii in sizes]
    small = [bool((radii < -1).any()) for radii in sizes]
    assert any(large) and any(small) and not any(a and b for a, b in zip(large, small, strict=True))


def test_the_finest_level_is_the_model_and_every_level_can_be_read(written: Path) -> None:
    rows = open_lod(written)
    assert (rows.count, rows.sh_degree, rows.kind) == (COUNT, 3, "streamed SOG")
    geometry, colour = whole(rows.chunks(1111))
    original = made_rows(COUNT)[0]
    order, wanted = np.lexsort(geometry[:, :3].T.round(2)), np.lexsort(original[:, :3].T.round(2))
    np.testing.assert_allclose(np.sort(geometry[:, 0]), np.sort(original[:, 0]), atol=1e-3)
    assert order.shape == wanted.shape
    part = rows.read(1500, 2600)  # over the border of two files
    np.testing.assert_array_equal(part.geometry, geometry[1500:2600])
    np.testing.assert_array_equal(part.colour, colour[1500:2600])
    index = json.loads(written.read_text())
    for level in (1, 2):
        assert len(whole(open_lod(written, level).chunks())[0]) == index["counts"][level]


def test_splat_transform_reads_both_levels(written: Path, tmp_path: Path) -> None:
    for level in (0, 2):
        ours = whole(open_lod(written, level).chunks())
        theirs = read_by_splat_transform(written, tmp_path, "--select-lod", str(level))
        assert len(theirs[0]) == len(ours[0])
        sort = [np.lexsort(rows[0][:, :3].T) for rows in (ours, theirs)]
        np.testing.assert_allclose(theirs[0][sort[1], :3], ours[0][sort[0], :3], atol=1e-4)
        np.testing.assert_allclose(theirs[1][sort[1]], ours[1][sort[0]], atol=1e-6)


def test_the_same_rows_give_the_same_files(written: Path, tmp_path: Path) -> None:
    other = export(tmp_path, 3)
    for file in sorted(written.parent.rglob("*.*")):
        assert file.read_bytes() == (other.parent / file.relative_to(written.parent)).read_bytes(), file.name


def test_an_older_export_is_replaced_and_a_foreign_folder_is_not(tmp_path: Path) -> None:
    index = export(tmp_path, 2)
    export(tmp_path, 1)
    assert json.loads(index.read_text())["lodLevels"] == 1 and not list(index.parent.glob("1_*"))
    (index.parent / "mine").mkdir()
    with pytest.raises(ClmError, match="mine would be lost"):
        export(tmp_path, 1)


def test_a_full_disk_leaves_the_older_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = export(tmp_path, 1)
    before = index.read_bytes()
    calls, real = [0], sog_write._webp

    def full(image: np.ndarray) -> bytes:
        calls[0] += 1
        if calls[0] > 9:
            raise OSError(28, "No space left on device")
        return real(image)

    monkeypatch.setattr(sog_write, "_webp", full)
    with pytest.raises(ResourceError, match="disk is full"):
        export(tmp_path, 2)
    assert index.read_bytes() == before and {file.name for file in tmp_path.iterdir()} == {"made.ply", "scene"}


def test_damaged_indices_end_in_one_sentence(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scene"
    shutil.copytree(written.parent, folder)
    index = json.loads(written.read_text())
    leaf = index["tree"]
    while "children" in leaf:
        leaf = leaf["children"][0]
    cases: list[tuple[Any, str]] = [
        ("{", "is no streamed SOG"),
        ("[]", "is no streamed SOG"),
        ({**index, "version": 2}, "version 2; version 1 is read"),
        ({**index, "filenames": index["filenames"][:1]}, "tree cannot be followed"),
        ({key: value for key, value in index.items() if key != "tree"}, "tree cannot be followed"),
        ({**index, "tree": {"children": [5]}}, "tree cannot be followed"),
        ({**index, "filenames": ["0_9/meta.json", *index["filenames"][1:]]}, "No such file"),
    ]
    for value, message in cases:
        (folder / "lod-meta.json").write_text(value if isinstance(value, str) else json.dumps(value))
        with pytest.raises(ClmError) as caught:
            list(open_lod(folder / "lod-meta.json").chunks())
        assert message in str(caught.value) and "\n" not in str(caught.value)
    leaf["lods"]["0"]["count"] += 5000
    (folder / "lod-meta.json").write_text(json.dumps(index))
    with pytest.raises(ClmError, match="fewer than it names"):
        list(open_lod(folder / "lod-meta.json").chunks())
    with pytest.raises(ClmError, match="3 levels of detail, and no level 3"):
        open_lod(written, 3)
    with pytest.raises(ClmError, match="No such file"):
        open_lod(tmp_path / "lod-meta.json")


def test_an_environment_is_part_of_the_model(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scene"
    shutil.copytree(written.parent, folder)
    shutil.copytree(folder / "2_0", folder / "env")
    index = json.loads(written.read_text()) | {"environment": "env/meta.json"}
    (folder / "lod-meta.json").write_text(json.dumps(index))
    assert open_lod(folder / "lod-meta.json").count == COUNT + open_sog(folder / "env" / "meta.json").count


def test_levels_follow_the_size_unless_they_are_stated() -> None:
    assert [levels_of(n, None) for n in (1, 500_000, 500_001, 2_000_000, 20_000_000)] == [1, 1, 2, 2, 4]
    assert levels_of(10, 5) == 5
    with pytest.raises(ClmError, match="--lod is 0"):
        levels_of(10, 0)


@pytest.mark.parametrize("keys", ["random", "equal", "clustered"])
def test_leaves_are_full_enough_and_cover_all_rows(keys: str) -> None:
    rng = np.random.default_rng(0)
    values = {
        "random": rng.integers(0, 1 << 60, 10_000),
        "equal": np.full(10_000, 7),
        "clustered": np.append(rng.integers(0, 1000, 9990), rng.integers(0, 1 << 60, 10)),
    }[keys]
    sorted_keys = np.sort(values.astype(np.uint64))
    found = list(tree_of(sorted_keys, 300).leaves())
    assert found[0].first == 0 and found[-1].last == 10_000
    assert all(a.last == b.first for a, b in pairwise(found))
    assert all(75 <= leaf.last - leaf.first <= 300 for leaf in found)


def test_parts_are_cut_anywhere_in_a_stream() -> None:
    geometry, colour = made_rows(100)
    chunks: list[Chunk] = [(geometry[a:b], colour[a:b]) for a, b in ((0, 30), (30, 31), (31, 100))]
    parts = list(in_parts(chunks, [1, 50, 0, 49]))
    assert [len(part[0]) for part in parts] == [1, 50, 49]
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), colour)
