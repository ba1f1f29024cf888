"""Exposures of a run: decided from points, learned beside the rows, saved with them, and the same wherever rows are."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clm.image.exposure import ViewExposure, matrix_of
from clm.render import CpuRasterizer, Target, train_view
from clm.run.arrays import Damaged
from clm.run.checkpoint import latest_checkpoint
from clm.run.events import Message
from clm.run.exposure import SavedExposures, rate_at
from clm.scene import load_scene
from clm.scene.brightness import judged_photos
from scripts.doubles.scenes import look_at_origin, random_rows
from tests.demo_run import (
    DEMO,
    assert_same_model,
    of_type,
    read_json,
    run_demo,
    train_roomy_and_tight,
    write_survey_scene,
)

SURVEY: dict[str, Any] = {"downscale": "1", "batch_size": 12, "iterations": 72, "sh_interval": 12, "exposure": "on"}
SHORT: dict[str, Any] = {"exposure": "auto", "downscale": "8", "iterations": 16}
DARK = 0.6


def saved(run: Path) -> SavedExposures | None:
    state = read_json(latest_checkpoint(run / "checkpoints") / "state.json")
    return SavedExposures.parse(state["exposure"]) if "exposure" in state else None


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled scene; every second photo at 0.6 of its brightness."""
    folder = tmp_path_factory.mktemp("uneven") / "scene"
    shutil.copytree(DEMO, folder)
    for path in sorted((folder / "images").iterdir())[::2]:
        with Image.open(path) as photo:
            photo.point(lambda value: value * DARK).save(path, quality=95)
    return folder


def said(events: list[Any]) -> str:
    return next(e.text for e in of_type(events, Message) if e.text.startswith("exposure: "))


def test_exposures_are_on_where_photos_differ_and_gains_are_learned_around_zero(uneven: Path, tmp_path: Path) -> None:
    events = run_demo(tmp_path / "run", data=uneven, iterations=80, test_every=9, exposure="auto")
    assert said(events).startswith("exposure: on, because exposures change the colours of a photo by")
    images = read_json(tmp_path / "run" / "exposure.json")["images"]
    gains = {name: image["log_gain"] for name, image in images.items()}
    assert sum(gains.values()) == pytest.approx(0, abs=1e-9) and len(images) == 35
    np.testing.assert_allclose(np.mean([image["matrix"] for image in images.values()], axis=0), np.eye(3), atol=1e-9)
    names = sorted(path.name for path in (uneven / "images").iterdir())
    dark, light = ([gains[name] for name in names[k::2] if name in gains] for k in (0, 1))
    assert max(dark) < min(light) and np.mean(dark) - np.mean(light) == pytest.approx(np.log(DARK), abs=0.15)
    figures = read_json(tmp_path / "run" / "metrics.json")["test"]
    assert figures["psnr_colour_corrected"] > figures["psnr"] + 1


def test_exposures_are_off_where_photos_agree_and_leave_no_trace(tmp_path: Path) -> None:
    events = run_demo(tmp_path / "run", **SHORT)
    assert said(events).startswith("exposure: off, because") and "--exposure on" in said(events)
    run_demo(tmp_path / "off", **{**SHORT, "exposure": "off"})
    assert_same_model(tmp_path / "run", tmp_path / "off")
    assert saved(tmp_path / "run") is None and not (tmp_path / "run" / "exposure.json").exists()


def test_a_scene_without_observations_says_that_nothing_can_be_compared(tmp_path: Path) -> None:
    data = write_survey_scene(tmp_path / "scene")
    events = run_demo(tmp_path / "run", data=data, downscale="1", iterations=4, exposure="auto")
    assert said(events).startswith("exposure: off, because the model has no observations")


def test_any_placement_threads_pieces_and_resume_learn_the_same_exposures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"data": write_survey_scene(tmp_path / "scene"), **SURVEY}
    train_roomy_and_tight(tmp_path / "all", tmp_path / "run", monkeypatch, **options)
    assert_same_model(tmp_path / "all", tmp_path / "run")
    first, second = saved(tmp_path / "all"), saved(tmp_path / "run")
    assert first is not None and second is not None and first.names == second.names
    assert first.values.tobytes() == second.values.tobytes() and first.values[:, 0].any()
    texts = [(tmp_path / name / "exposure.json").read_text() for name in ("all", "run")]
    assert texts[0] == texts[1]


def test_a_resumed_run_keeps_its_exposures_unless_it_is_told_otherwise(uneven: Path, tmp_path: Path) -> None:
    run_demo(tmp_path / "run", data=uneven, **SHORT)
    before = saved(tmp_path / "run")
    assert before is not None
    run_demo(tmp_path / "run", data=uneven, resume=True, **{**SHORT, "iterations": 20})
    after = saved(tmp_path / "run")
    assert after is not None and after.values[:, -1].sum() == before.values[:, -1].sum() + 4
    run_demo(tmp_path / "run", data=uneven, resume=True, **{**SHORT, "iterations": 24, "exposure": "off"})
    assert saved(tmp_path / "run") is None
    events = run_demo(tmp_path / "run", data=uneven, resume=True, **{**SHORT, "iterations": 28})
    assert saved(tmp_path / "run") is None, "auto goes on as the run was"
    assert not [e for e in of_type(events, Message) if e.text.startswith("exposure: on")]


@pytest.mark.parametrize(
    "damage",
    [
        None,
        {"names": ["a"], "values": "AAAA"},
        {"names": [1], "values": ""},
        {"names": ["a", "a"]},
        {"names": ["a"], "values": "not base 64!"},
    ],
)
def test_damaged_exposures_are_refused(damage: Any) -> None:
    with pytest.raises(Damaged):
        SavedExposures.parse(damage)


def test_the_gradient_of_an_exposure_and_of_the_rows_behind_it_is_that_of_the_loss() -> None:
    """Finite differences of the loss of a rendered view, in each parameter of its exposure and in colours of rows."""
    geometry, colour = random_rows(60, scale=0.3)
    camera, rng = look_at_origin(48, 32), np.random.default_rng(0)
    photo = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    matrix = matrix_of(rng.normal(0, 0.2, 13))
    slots = np.arange(60, dtype=np.int32)

    def loss(matrix: np.ndarray, colour: np.ndarray) -> tuple[float, ViewExposure, np.ndarray]:
        grads = SimpleNamespace(
            grad_geometry=np.zeros((60, 16), np.float32), grad_colour=np.zeros((60, 48), np.float32)
        )
        arena, exposure = SimpleNamespace(geometry=geometry, colour=colour, **vars(grads)), ViewExposure(matrix)
        target = Target(photo, None, (0.1, 0.2, 0.3), exposure=exposure)
        return train_view(CpuRasterizer(), arena, slots, camera, 0, target), exposure, grads.grad_colour

    _, exposure, grad_colour = loss(matrix, colour)
    for c in range(3):
        for d in range(4):
            sides = [matrix.copy(), matrix.copy()]
            sides[0][c, d] += 2e-3
            sides[1][c, d] -= 2e-3
            difference = (loss(sides[0], colour)[0] - loss(sides[1], colour)[0]) / 4e-3
            assert exposure.gradient[c, d] == pytest.approx(difference, abs=0.02 * np.abs(exposure.gradient).max())
    row = int(np.abs(grad_colour[:, 0]).argmax())
    sides = [colour.copy(), colour.copy()]
    sides[0][row, 0] += 1e-2
    sides[1][row, 0] -= 1e-2
    difference = (loss(matrix, sides[0])[0] - loss(matrix, sides[1])[0]) / 2e-2
    assert grad_colour[row, 0] == pytest.approx(difference, rel=0.03)


def test_points_judge_the_photos_that_saw_them(uneven: Path) -> None:
    """Up to what blur at edges takes of contrast."""
    scene = load_scene(uneven)
    judged = judged_photos(scene)
    assert len(judged) > 20 and not set(judged) & set(scene.test.tolist())
    for view, photo in judged.items():
        expected = DARK if view % 2 == 0 else 1.0
        assert photo.matrix[:, :3].trace() / 3 == pytest.approx(expected, abs=0.17), scene.views[view].name


def test_a_map_that_explains_little_of_how_a_photo_differs_is_hardly_believed(uneven: Path) -> None:
    scene = load_scene(uneven)
    for view, photo in judged_photos(scene).items():
        gains = [matrix[:, :3].trace() / 3 for matrix in (photo.matrix, photo.likely)]
        assert 0.0 <= photo.explained <= 1.0
        if view % 2 == 0:
            assert photo.explained > 0.8 and gains[0] < gains[1] < 1.25 * gains[0], "a dark photo is dark"
    alike = judged_photos(load_scene(DEMO)).values()
    assert np.mean([photo.explained for photo in alike]) < 0.4, "what differs there is not exposure"
    for photo in alike:
        np.testing.assert_allclose(photo.likely - np.eye(3, 4), photo.explained * (photo.matrix - np.eye(3, 4)))


def test_rates_rise_and_fall() -> None:
    rates = [rate_at(progress) for progress in (0.0, 0.01, 0.05, 0.5, 1.0)]
    assert rates[0] == 0 < rates[1] < rates[2] > rates[3] > rates[4] == pytest.approx(1e-4)
