"""One model in several files: every row once, where the manifest says, and whole or not at all."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plyfile import PlyData

from clm.commands.export import export_model
from clm.errors import ClmError
from clm.formats.options import Filters, Options
from clm.formats.registry import open_rows
from clm.formats.split import Split, _keys
from clm.run.viewing import Budgets
from tests.formats.made import made_rows, whole
from tests.formats.models import written
from tests.formats.splat_transform import read_by_splat_transform

COUNT = 4000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("model") / "model.ply", *made_rows(COUNT))


def export(model: Path, out: Path, **split: Any) -> dict[str, Any]:
    filters = split.pop("filters", Filters())
    count = export_model(model, out, filters, Options(), Budgets(scratch=out.parent), split=Split(**split))
    name = out.name.removesuffix(".ply").removesuffix(".compressed").removesuffix(".splat").removesuffix(".sog")
    folder = out.parent if out.name == "meta.json" else out.with_name(name)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["count"] == count == manifest["counts"][0]
    for entry in manifest["files"]:
        rows = open_rows(folder / entry["file"])
        geometry, _ = whole(rows.chunks())
        assert len(geometry) == entry["count"]
        slack = 1e-5 if entry["file"].endswith(".ply") and "compressed" not in entry["file"] else 0.02
        assert (geometry[:, :3] >= np.array(entry["min"]) - slack).all()
        assert (geometry[:, :3] <= np.array(entry["max"]) + slack).all()
    return manifest


def places(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(rows[:, :3].T), :3]


def test_tiles_are_cubes_of_the_grid_and_hold_every_row_once(model: Path, tmp_path: Path) -> None:
    manifest = export(model, tmp_path / "scene.ply", tile=4.0)
    cells = np.unique(np.floor(made_rows(COUNT)[0][:, :3] / 4), axis=0)
    assert manifest["tile"] == 4.0 and len(manifest["files"]) == len(cells) >= 60
    for entry in manifest["files"]:
        cell = np.array(entry["tile"])
        assert (np.array(entry["min"]) >= 4 * cell).all() and (np.array(entry["max"]) <= 4 * (cell + 1)).all()
    read = open_rows(tmp_path / "scene" / "manifest.json")
    assert (read.count, read.kind) == (COUNT, "split export")
    np.testing.assert_array_equal(places(whole(read.chunks())[0]), places(made_rows(COUNT)[0]))
    assert [file.name for file in tmp_path.iterdir()] == ["scene"]


@pytest.mark.parametrize("out", ["scene.ply", "scene.compressed.ply", "scene.splat", "scene/meta.json"])
def test_files_hold_no_more_than_was_asked_for_and_lie_close_together(model: Path, tmp_path: Path, out: str) -> None:
    manifest = export(model, tmp_path / out, max_per_file=600)
    counts = [entry["count"] for entry in manifest["files"]]
    assert len(counts) == 7 and max(counts) <= 600 and max(counts) - min(counts) <= 1
    volumes = [np.prod(np.subtract(entry["max"], entry["min"])) for entry in manifest["files"]]
    assert sum(volumes) < 3 * 10**3


def test_tiles_that_are_too_full_are_divided_and_levels_are_merged(model: Path, tmp_path: Path) -> None:
    manifest = export(model, tmp_path / "scene.splat", tile=5.0, max_per_file=300, lod=3)
    files = manifest["files"]
    assert {entry["level"] for entry in files} == {0, 1, 2} and len(files) == 3 * 16
    for level, count in enumerate(manifest["counts"]):
        assert count == sum(entry["count"] for entry in files if entry["level"] == level)
        assert abs(count - COUNT / 4**level) < 40
    assert open_rows(tmp_path / "scene" / "manifest.json").count == COUNT


def test_levels_alone_are_files_of_the_whole_model(model: Path, tmp_path: Path) -> None:
    manifest = export(model, tmp_path / "scene.ply", lod=2)
    assert [entry["file"] for entry in manifest["files"]] == ["scene_lod0.ply", "scene_lod1.ply"]
    assert manifest["counts"] == [COUNT, COUNT // 4]


def test_other_readers_find_the_rows_of_every_tile_and_level(model: Path, tmp_path: Path) -> None:
    """plyfile and gsply read plain PLYs; splat-transform those that a viewer gets."""
    gsply = pytest.importorskip("gsply", reason="gsply is not installed")
    manifest = export(model, tmp_path / "scene.ply", tile=8.0, lod=2)
    assert len(manifest["files"]) == 16
    for entry in manifest["files"]:
        path, (geometry, colour) = (
            tmp_path / "scene" / entry["file"],
            whole(open_rows(tmp_path / "scene" / entry["file"]).chunks()),
        )
        vertex, data = PlyData.read(path)["vertex"], gsply.plyread(path)
        assert vertex.count == len(data.means) == entry["count"]
        for k, axis in enumerate("xyz"):
            np.testing.assert_array_equal(vertex[axis], geometry[:, k])
        np.testing.assert_array_equal(vertex["opacity"], geometry[:, 10])
        np.testing.assert_array_equal(data.means, geometry[:, :3])
        np.testing.assert_array_equal(data.shN, colour[:, 3:].reshape(-1, 15, 3))
    for ending in (".sog", ".compressed.ply"):
        manifest = export(model, tmp_path / f"web{ending}", max_per_file=3000, lod=2)
        entry = manifest["files"][-1]
        theirs, _ = read_by_splat_transform(tmp_path / "web" / entry["file"], tmp_path)
        ours, _ = whole(open_rows(tmp_path / "web" / entry["file"]).chunks())
        assert entry["level"] == 1 and len(theirs) == entry["count"]
        np.testing.assert_allclose(theirs[np.lexsort(theirs[:, :3].T), :3], places(ours), atol=1e-4)
        shutil.rmtree(tmp_path / "web")


def test_filters_hold_for_every_file(model: Path, tmp_path: Path) -> None:
    filters = Filters(sh=1, min_opacity=0.5, crop=(-3, -3, -3, 3, 3, 3))
    manifest = export(model, tmp_path / "scene.ply", max_per_file=200, lod=2, filters=filters)
    geometry, _ = made_rows(COUNT)
    passed = (np.abs(geometry[:, :3]) <= 3).all(axis=1) & (geometry[:, 10] >= 0)
    assert manifest["count"] == passed.sum() > 200
    assert {open_rows(tmp_path / "scene" / entry["file"]).sh_degree for entry in manifest["files"]} == {1}


def test_a_second_export_replaces_the_first_and_nothing_else(model: Path, tmp_path: Path) -> None:
    export(model, tmp_path / "scene.ply", max_per_file=600)
    manifest = export(model, tmp_path / "scene.ply", max_per_file=3000)
    assert len(list((tmp_path / "scene").iterdir())) == len(manifest["files"]) + 1 == 3
    (tmp_path / "scene" / "notes.txt").write_text("mine")
    with pytest.raises(ClmError, match=r"notes\.txt would be lost"):
        export(model, tmp_path / "scene.ply", max_per_file=3000)


def test_what_cannot_be_divided_ends_in_one_sentence(model: Path, tmp_path: Path) -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("scene.ply", {"tile": 0.0}, "--tile is 0"),
        ("scene.ply", {"max_per_file": 0}, "--max-per-file is 0"),
        ("scene.ply", {"lod": 99}, "--lod is 99"),
        ("scene.ply", {"tile": 0.1, "lod": 3}, "files would be written, and 10,000 are the most"),
        ("scene.ply", {"tile": 1e-9}, "tiles along one axis"),
        ("scene.ply", {"max_per_file": 1, "lod": 4}, "16,000 files would be written"),
        ("lod-meta.json", {"tile": 5.0}, "is divided already"),
        ("manifest.json", {}, "lists the files of a split export"),
    ]
    for out, split, message in cases:
        with pytest.raises(ClmError, match=message):
            export_model(model, tmp_path / "new" / out, Filters(), Options(), Budgets(), split=Split(**split))
    assert not list(tmp_path.rglob("*.ply")) and not list(tmp_path.rglob("*.json"))
    with pytest.raises(ClmError, match="list of files cannot be read"):
        (tmp_path / "manifest.json").write_text('{"version": 1, "files": [{}]}')
        open_rows(tmp_path / "manifest.json")


def test_sharing_out_over_tiles_takes_no_more_than_is_stated() -> None:
    """48 bytes a row, of which entries are 16."""
    entries = np.random.default_rng(0).uniform(-100, 100, (400_000, 4)).astype(np.float32)
    tracemalloc.start()
    try:
        _, cells = _keys(entries, Split(tile=20.0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert cells is not None and len(cells) == 1000 and peak < 32 * len(entries) + (8 << 20)
