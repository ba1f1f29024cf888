"""A run's first rows: their order and identity, and that no more than a few bytes per row are held beside the store."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clm.config import Config
from clm.errors import ResourceError
from clm.formats.ply_read import open_ply
from clm.formats.ply_write import write_ply
from clm.formats.source import FileSource
from clm.formats.start import initial_store
from clm.progress import unseen
from clm.scene import Scene
from clm.scene.open import open_scene
from clm.store.identity import identity_floats
from clm.store.init import PointRows
from clm.store.order import block_order, plain_entries
from clm.store.store import Store
from tests.demo_run import DEMO


def scene_of(count: int) -> Scene:
    """The bundled scene's views, with other points: a bumpy floor, and some far outside."""
    rng = np.random.default_rng(count)
    points = rng.uniform(-3, 3, (count, 3)).astype(np.float32)
    points[:, 2] = 0.2 * np.sin(points[:, 0]) + rng.normal(0, 0.01, count)
    points[: count // 50] *= 40
    scene = open_scene(DEMO, Config(downscale="8"), require_images=False)
    colors = rng.integers(0, 256, (count, 3), dtype=np.uint8)
    return dataclasses.replace(scene, points=points, point_colors=colors)


def write_rows(path: Path, geometry: np.ndarray, colour: np.ndarray) -> None:
    """Also rows that `write_ply` refuses."""
    bad = ~np.isfinite(geometry).all(axis=1)
    write_ply(path, [(np.where(bad[:, None], np.float32(1), geometry), colour)])
    data = bytearray(path.read_bytes())
    for number in np.flatnonzero(bad).tolist():
        at = len(data) - (len(geometry) - number) * 248
        data[at : at + 4] = np.float32(np.nan).tobytes()
    path.write_bytes(data)


def first(scene: Scene, bucket_rows: int = 1 << 20, **options: Any) -> Store:
    return initial_store(scene, Config(seed=3, **options), lambda text: None, scratch=Path(), bucket_rows=bucket_rows)


def test_first_rows_are_those_of_the_points_in_store_order_and_their_keys_are_the_points_numbers() -> None:
    scene = scene_of(70_000)  # more than one chunk
    geometry, colour = PointRows(scene.points, scene.point_colors, 3).rows(np.arange(70_000))
    order = block_order(plain_entries(geometry))
    store = first(scene)
    np.testing.assert_array_equal(store.keys, order)
    np.testing.assert_array_equal(store.geometry[:, :11], geometry[order, :11])
    np.testing.assert_array_equal(store.geometry[:, 11], identity_floats(store.keys))
    np.testing.assert_array_equal(store.colour, colour[order])
    entries, bounds = np.array(store.entries), np.array(store.bounds)
    store.refresh(None)
    np.testing.assert_array_equal(store.entries, entries)
    np.testing.assert_array_equal(store.bounds, bounds)


def test_first_rows_by_identity_do_not_depend_on_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, rows = scene_of(5000), []
    for page_rows in (512, 2048):
        monkeypatch.setattr("clm.store.paged.PAGE_ROWS", page_rows)
        store = first(scene)
        by_key = np.argsort(store.keys)
        rows.append((store.geometry[by_key], store.colour[by_key]))
    for one, other in zip(*rows, strict=True):
        np.testing.assert_array_equal(one, other)


def test_of_more_points_than_max_gaussians_so_many_stay_and_they_are_as_they_would_have_been() -> None:
    scene = scene_of(5000)
    every, some = first(scene), first(scene, max_gaussians=1234)
    assert some.rows == len(np.unique(some.keys)) == 1234
    same = np.argsort(every.keys)[some.keys.astype(np.int64)]
    np.testing.assert_array_equal(every.geometry[same], some.geometry)


def test_starting_from_points_takes_fifty_bytes_per_point_beside_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy's allocations; the store's own pages are no part of them. The points themselves are 15 bytes more."""
    monkeypatch.setattr("clm.store.init.CHUNK_ROWS", 4096)
    peaks, counts = [], (100_000, 200_000)
    for count in counts:
        scene = scene_of(count)
        tracemalloc.start()
        first(scene)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / (counts[1] - counts[0]) < 35


def test_a_ply_of_more_rows_than_a_store_has_places_is_refused_before_anything_is_taken(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", [(np.ones((2, 12), np.float32), np.ones((2, 48), np.float32))])
    huge = dataclasses.replace(open_ply(tmp_path / "a.ply"), count=2**31)
    with pytest.raises(ResourceError, match=r"holds 2,147,483,648 Gaussians, and a store has room for 2,147,483,647"):
        FileSource(huge, np.zeros(3), tmp_path, 1, print, unseen).entries()


@pytest.mark.parametrize("bucket_rows", [1000, 1 << 20])
def test_first_rows_of_a_shuffled_ply_are_its_rows_in_store_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket_rows: int
) -> None:
    scene, said = scene_of(5000), list[str]()
    geometry, colour = PointRows(scene.points, scene.point_colors, 3).rows(np.arange(5000))
    geometry[7, 0] = geometry[4000, 8] = np.nan
    write_rows(tmp_path / "a.ply", geometry, colour)
    config = Config(init_ply=str(tmp_path / "a.ply"), max_gaussians=4000)
    store = initial_store(scene, config, said.append, scratch=tmp_path, bucket_rows=bucket_rows)
    assert said == [
        "2 of 5000 Gaussians were not finite or had no rotation: left out.",
        "Keeping 4,000 of 4,998 initial points (--max-gaussians).",
    ]
    good = np.delete(np.arange(5000), [7, 4000])
    numbers = good[store.keys.astype(np.int64)]
    assert store.rows == len(np.unique(numbers)) == 4000
    np.testing.assert_array_equal(store.geometry[:, 7:11], geometry[numbers, 7:11])
    np.testing.assert_array_equal(store.colour, colour[numbers])
    order = block_order(store.entries)
    np.testing.assert_array_equal(order, np.arange(4000))


def test_a_ply_in_georeferenced_coordinates_moves_with_the_scene(tmp_path: Path) -> None:
    offset = np.array([4e5, 5e6, 100.0])
    scene = dataclasses.replace(scene_of(100), offset=offset)
    geometry, colour = PointRows(scene.points, scene.point_colors, 3).rows(np.arange(100))
    for shift in (np.zeros(3), offset):
        moved = geometry.copy()
        moved[:, :3] += shift
        write_rows(tmp_path / "a.ply", moved, colour)
        store = first(scene, init_ply=str(tmp_path / "a.ply"))
        np.testing.assert_allclose(store.geometry[:, :3], geometry[store.keys.astype(np.int64), :3], atol=0.6)


def test_starting_from_a_ply_takes_thirty_bytes_per_row_beside_the_store_and_a_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks, counts = [], (150_000, 300_000)
    scene = scene_of(10)
    for count in counts:
        rng = np.random.default_rng(0)
        chunk = rng.normal(size=(50_000, 12)).astype(np.float32), np.zeros((50_000, 48), np.float32)
        write_ply(tmp_path / "a.ply", (chunk for _ in range(count // 50_000)))
        tracemalloc.start()
        first(scene, 1 << 16, init_ply=str(tmp_path / "a.ply"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / (counts[1] - counts[0]) < 30
