"""Points of COLMAP models: as pycolmap reads them, sorted, in bounded memory; damaged files are named with the place."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from clm.errors import ClmError
from clm.progress import unseen
from clm.scene import colmap, read_model
from clm.scene import points as points_file
from clm.scene.points import read_points
from scripts.doubles.colmap_points import write_points
from tests.conftest import scene_path
from tests.scene.synthetic import names, write_model


def cloud(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ids = rng.permutation(3 * count)[:count].astype(np.uint64) + 1
    return (
        ids,
        rng.normal(size=(count, 3)) * 100,
        rng.integers(0, 256, (count, 3), dtype=np.uint8),
        rng.integers(0, 9, count),
    )


@pytest.mark.parametrize("suffix", [".bin", ".txt"])
@pytest.mark.parametrize("piece", [600, 8 << 20])
def test_points_come_by_id_whatever_the_order_of_the_file_and_the_pieces_it_is_read_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, piece: int
) -> None:
    monkeypatch.setattr(points_file, "_PIECE", piece)
    ids, xyz, rgb, tracks = cloud(500)
    tracks[7] = 400  # longer than a piece
    write_points(tmp_path / f"points3D{suffix}", ids, xyz, rgb, tracks)
    points, colors, dropped = read_points(tmp_path / f"points3D{suffix}", unseen)
    order = np.argsort(ids)
    np.testing.assert_array_equal(points, xyz[order])
    np.testing.assert_array_equal(colors, rgb[order])
    assert dropped == 0


@pytest.mark.parametrize("text", [False, True])
def test_points_are_those_that_pycolmap_reads(tmp_path: Path, text: bool) -> None:
    write_model(tmp_path / "m", names(3), text=text)
    theirs = pycolmap.Reconstruction(str(tmp_path / "m")).points3D
    points, colors, _ = read_points(tmp_path / "m" / f"points3D{'.txt' if text else '.bin'}", unseen)
    for k, number in enumerate(sorted(theirs)):
        np.testing.assert_array_equal(points[k], theirs[number].xyz)
        np.testing.assert_array_equal(colors[k], theirs[number].color)


def test_points_that_are_not_finite_are_left_out_and_counted(tmp_path: Path) -> None:
    ids, xyz, rgb, tracks = cloud(1000)
    xyz[[3, 500, 999], [0, 1, 2]] = np.nan, np.inf, 1e300
    for suffix in (".bin", ".txt"):
        path = tmp_path / f"points3D{suffix}"
        write_points(path, ids, xyz, rgb, tracks)
        points, colors, dropped = read_points(path, unseen)
        assert dropped == 3 and len(points) == len(colors) == 997 and np.isfinite(points).all()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("12 1.0 2.0", "line 4 is no point"),
        ("12 1.0 2.0 x 1 2 3 0.5", "line 4 is no point"),
        ("12 1.0 2.0 3.0 1 2 300 0.5", "line 4 is no point"),
        ("-1 1.0 2.0 3.0 1 2 3 0.5", "line 4 is no point"),
        ("12 1.0 2.0 3.0 1 2 3", "line 4 is no point"),
    ],
)
def test_a_line_that_is_no_point_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "points3D.txt"
    path.write_text(f"# comment\n\n1 0 0 0 1 2 3 0.1\n{line}\n")
    with pytest.raises(ClmError, match=rf"points3D\.txt is damaged: {said}"):
        read_points(path, unseen)


def test_lines_may_end_as_on_windows_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "points3D.txt"
    path.write_bytes(b"# comment\r\n  \r\n2 1e1 -2.5 3 1 2 3 0.1 4 5\r\n1 0 0 0 9 9 9 0")
    points, colors, _ = read_points(path, unseen)
    assert points.tolist() == [[0, 0, 0], [10, -2.5, 3]] and colors.tolist() == [[9, 9, 9], [1, 2, 3]]


@pytest.mark.parametrize("track", [2**63, 2**45, 10_000])
def test_a_track_of_impossible_length_is_named_with_its_point(tmp_path: Path, track: int) -> None:
    ids, xyz, rgb, tracks = cloud(5)
    path = tmp_path / "points3D.bin"
    write_points(path, ids, xyz, rgb, 0 * tracks)
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, 8 + 2 * 51 + 43, track)
    path.write_bytes(data)
    with pytest.raises(ClmError, match=r"points3D\.bin is cut off or damaged: it ends inside point 3 of 5"):
        read_points(path, unseen)


def test_observations_are_never_read(tmp_path: Path) -> None:
    """A model whose images hold a million observations each costs what its cameras cost."""
    write_model(tmp_path / "m", names(4))
    path, lean = tmp_path / "m" / "images.bin", read_model(tmp_path / "m")
    data, out, at = path.read_bytes(), [], 8
    for _ in range(4):
        end = data.index(b"\0", at + 64) + 1
        out.append(data[at:end] + struct.pack("<Q", 10**6) + bytes(24 * 10**6))
        at = end + 8
    path.write_bytes(data[:8] + b"".join(out))
    tracemalloc.start()
    model = read_model(tmp_path / "m")
    assert tracemalloc.get_traced_memory()[1] < 10 << 20  # of observations there are 92 MiB
    tracemalloc.stop()
    for one, other in zip(model.images, lean.images, strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(one.world_to_camera, other.world_to_camera)


@pytest.mark.parametrize("text", [False, True])
def test_a_model_is_the_same_without_its_observations(monkeypatch: pytest.MonkeyPatch, text: bool) -> None:
    folder = scene_path("models/sceaux_txt_simple_pinhole" if text else "sceaux")
    whole = read_model(folder)
    monkeypatch.setattr(colmap, "_LARGE_IMAGES", 0)
    lean = read_model(folder)
    assert len(whole.images) == len(lean.images) > 3
    for one, other in zip(whole.images, lean.images, strict=True):
        assert (one.name, one.camera) == (other.name, other.camera)
        np.testing.assert_array_equal(one.world_to_camera, other.world_to_camera)


def test_reading_points_takes_at_most_sixty_bytes_for_each(tmp_path: Path) -> None:
    peaks, counts = [], (100_000, 300_000)
    for count in counts:
        write_points(tmp_path / "points3D.bin", *cloud(count))
        tracemalloc.start()
        assert len(read_points(tmp_path / "points3D.bin", unseen)[0]) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / (counts[1] - counts[0]) < 62
