"""Photos with an alpha channel: the model has nothing where they are transparent, and is the same wherever its rows are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clm.commands.evaluate import evaluate_model
from clm.run.viewing import Budgets
from clm.settings import load_config
from tests.demo_run import (
    assert_same_model,
    checkpoint_arrays,
    read_json,
    run_demo,
    train_roomy_and_tight,
    write_survey_scene,
)

SURVEY: dict[str, Any] = {"downscale": "1", "batch_size": 12, "iterations": 72, "sh_interval": 12}
THROUGH: dict[str, Any] = {"mask_mode": "transparent", **SURVEY}


def write_transparent_scene(folder: Path, opaque: float = 0.5, hidden: int = 0) -> Path:
    """Photos of smooth noise, as opaque as other noise says, or not at all; hidden: their colour there."""
    rng = np.random.default_rng(3)
    for path in sorted((write_survey_scene(folder) / "images").iterdir()):
        alpha = Image.fromarray(rng.integers(0, 256, (6, 8), np.uint8)).resize((64, 48), Image.Resampling.BICUBIC)
        alpha = np.array(alpha) * (opaque > 0)
        pixels = np.dstack([np.array(Image.open(path).convert("RGB")), alpha.astype(np.uint8)])
        pixels[alpha == 0, :3] = hidden
        Image.fromarray(pixels).save(path)
    return folder


def test_the_background_is_random_where_photos_are_transparent_unless_it_is_stated() -> None:
    assert load_config({}).background == load_config({"mask_mode": "ignore"}).background == "black"
    assert load_config({"mask_mode": "transparent"}).background == "random"
    assert load_config({"mask_mode": "transparent", "background": "0.1,0.2,0.3"}).background == "0.1,0.2,0.3"


def test_any_placement_threads_pieces_and_resume_train_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"data": write_transparent_scene(tmp_path / "scene"), "exposure": "on", **THROUGH}
    train_roomy_and_tight(tmp_path / "all", tmp_path / "run", monkeypatch, **options)
    assert_same_model(tmp_path / "all", tmp_path / "run")
    again, measured = evaluate_model(tmp_path / "run", "test", Budgets()), read_json(tmp_path / "run" / "metrics.json")
    assert again["test"]["psnr"] == pytest.approx(measured["test"]["psnr"], abs=1e-4)


def test_rows_fade_where_nothing_is_and_stay_where_nothing_is_known(tmp_path: Path) -> None:
    """Photos without one opaque pixel: what they would show does not matter, and nothing is left of what was in their way."""
    data = [write_transparent_scene(tmp_path / str(hidden), 0, hidden) for hidden in (0, 255)]
    for scene in data:
        run_demo(tmp_path / f"{scene.name}_run", data=scene, **THROUGH)
    assert_same_model(tmp_path / "0_run", tmp_path / "255_run")
    run_demo(tmp_path / "ignored", data=data[0], **SURVEY)
    faded, stays = (checkpoint_arrays(tmp_path / name)["geometry"][:, 10] for name in ("0_run", "ignored"))
    np.testing.assert_array_equal(stays, stays[0])  # as they began
    seen = faded[faded != stays[0]]
    assert len(seen) > 1000 and (seen < stays[0]).mean() > 0.95
    figures = read_json(tmp_path / "0_run" / "metrics.json")["test"]
    assert figures["psnr"] > 5  # against black
