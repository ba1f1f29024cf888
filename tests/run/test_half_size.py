"""The first photos at half their size: the same as a run at half the size that goes on at the whole one, wherever rows live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clm.camera import LEAST_HALVED
from clm.scene import ImageCache
from clm.scene.open import open_scene
from tests.demo_run import (
    DEMO,
    assert_same_model,
    run_demo,
    small_config,
    train_roomy_and_tight,
    write_survey_scene,
)

HALF: dict[str, Any] = {"half_size_until": 41}  # not where a batch begins


@pytest.fixture(autouse=True)
def small_pictures_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clm.camera.LEAST_HALVED", 8)


def test_a_view_halved_is_the_view_of_a_scene_at_half_the_size() -> None:
    whole, half = (open_scene(DEMO, small_config(downscale=size)) for size in ("1", "2"))
    with ImageCache(whole, 1 << 24) as photos, ImageCache(half, 1 << 24) as want:
        for k in (0, 7):
            np.testing.assert_array_equal(whole.views[k].halved.camera.packed, half.views[k].camera.packed)
            np.testing.assert_array_equal(photos.get(k, half=True), want.get(k))
            assert photos.get(k).shape == (240, 320, 3) and whole.views[k].halved.nbytes == want.get(k).nbytes


def test_pictures_that_would_become_too_small_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clm.camera.LEAST_HALVED", LEAST_HALVED)
    views = [open_scene(DEMO, small_config(downscale=size)).views[0] for size in ("1", "2")]
    assert (views[0].halved.camera.width, views[0].halved.camera.height) == (160, 120)
    assert views[1].halved.camera is views[1].camera, "80x60"


def test_the_model_is_that_of_a_run_at_half_the_size_that_goes_on_at_the_whole_one(tmp_path: Path) -> None:
    run_demo(tmp_path / "a", **HALF)
    run_demo(tmp_path / "b", stop_at=44, downscale="8")
    run_demo(tmp_path / "b", resume=True)
    assert_same_model(tmp_path / "a", tmp_path / "b")


def test_it_is_the_same_on_disk_in_pieces_and_in_two_legs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_survey_scene(tmp_path / "survey")
    options: dict[str, Any] = {"data": data, "downscale": "1", "batch_size": 12, "iterations": 72, "sh_interval": 12}
    train_roomy_and_tight(tmp_path / "roomy", tmp_path / "tight", monkeypatch, **options, **HALF)
    assert_same_model(tmp_path / "roomy", tmp_path / "tight")
