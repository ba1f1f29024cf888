"""What images saw of a model's points, read beside the model from either form of it, whatever the order of its points."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from clm.scene import colmap, read_model
from clm.scene.observed import Observed, Sought
from tests.conftest import scene_path
from tests.demo_run import DEMO


def expected(folder: Path) -> dict[str, list[tuple[float, ...]]]:
    """Places (fractions) and colours of every point that an image of pycolmap's model saw."""
    model, seen = pycolmap.Reconstruction(str(folder)), {}
    for image in model.images.values():
        camera, rows = model.cameras[image.camera_id], []
        for point in image.points2D:
            if point.has_point3D():
                x, y = point.xy / (camera.width, camera.height)
                rows.append(
                    (float(np.float32(x)), float(np.float32(y)), *model.points3D[point.point3D_id].color.tolist())
                )
        seen[image.name] = rows
    return seen


def rows_of(observed: Observed) -> set[tuple[float, ...]]:
    return {
        (*place, *colour) for place, colour in zip(observed.places.tolist(), observed.colours.tolist(), strict=True)
    }


@pytest.mark.parametrize("form", ["binary", "text", "large"])
def test_observations_are_those_of_pycolmap(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = DEMO / "sparse" / "0"
    if form == "text":
        (tmp_path / "text").mkdir()
        pycolmap.Reconstruction(str(folder)).write_text(str(tmp_path / "text"))
        folder = tmp_path / "text"
    if form == "large":
        monkeypatch.setattr(colmap, "_LARGE_IMAGES", 0)
    truth, found = expected(folder), read_model(folder).observed
    assert len(found) == 40 and sum(len(o.places) for o in found) > 10_000
    for observed in found:
        rows = rows_of(observed)
        if form == "text":  # digits of a text are not all of a number's
            assert {row[2:] for row in rows} <= {row[2:] for row in truth[observed.name]}
        else:
            assert rows <= set(truth[observed.name]), observed.name


def test_some_images_and_some_points_stand_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clm.scene.observed.IMAGES", 5)
    monkeypatch.setattr("clm.scene.observed.POINTS", 10)
    found = read_model(DEMO).observed
    assert len(found) == 5 and all(len(o.places) == 10 for o in found)


@pytest.mark.parametrize("shuffled", [False, True])
def test_points_are_found_by_their_ids_in_any_order(shuffled: bool) -> None:
    rng = np.random.default_rng(0)
    ids = np.unique(rng.integers(1, 5000, 1000).astype(np.uint64))
    colours = rng.integers(0, 256, (len(ids), 3), dtype=np.uint8)
    sought = Sought.of(rng.integers(0, 6000, 300).astype(np.uint64))
    order = None
    if shuffled:
        mixed = rng.permutation(len(ids))
        ids, colours = ids[mixed], colours[mixed]
        order = np.argsort(ids).astype(np.int32)
    sought.look_up(ids, order, colours)
    table = dict(zip(ids.tolist(), colours.tolist(), strict=True))
    for number, colour, found in zip(sought.ids.tolist(), sought.colours.tolist(), sought.found.tolist(), strict=True):
        assert found == (number in table) and (not found or colour == table[number])
    assert sought.found.any() and not sought.found.all()


def test_points_that_are_gone_are_not_observed(tmp_path: Path) -> None:
    shutil.copytree(DEMO / "sparse", tmp_path / "sparse")
    (tmp_path / "sparse" / "0" / "points3D.bin").write_bytes(bytes(8))
    model = read_model(tmp_path)
    assert all(len(observed.places) == 0 for observed in model.observed)


def test_models_without_tracks_have_no_observations() -> None:
    assert read_model(scene_path("models/utm_35cams")).observed == ()
