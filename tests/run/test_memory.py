"""Memory that is not there: a view for which the device has no room is repeated, exactly, in a smaller arena."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clm.errors import OutOfDeviceMemory
from clm.plan.budget import SLOT_BYTES
from clm.render import CpuRasterizer, Loss
from clm.run.events import Message
from tests.demo_run import FIXED, assert_same_model, of_type, run_demo, write_survey_scene

SURVEY: dict[str, Any] = {"downscale": "1", "batch_size": 12, "iterations": 72, "sh_interval": 12, **FIXED}


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_survey_scene(tmp_path_factory.mktemp("survey") / "scene")


@pytest.fixture(scope="module")
def undisturbed(survey: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    run_demo(run, data=survey, offload="none", **SURVEY)
    return run


def no_memory_at(monkeypatch: pytest.MonkeyPatch, calls: set[int]) -> None:
    """The rasteriser runs out of memory at these calls (from 1), before it has added anything."""
    real, count = CpuRasterizer.compare, [0]

    def compare(self: CpuRasterizer, *arguments: Any) -> Loss:
        count[0] += 1
        if count[0] in calls:
            raise OutOfDeviceMemory("The device ran out of memory.", "Pass a smaller --gpu-memory.")
        return real(self, *arguments)

    monkeypatch.setattr(CpuRasterizer, "compare", compare)


@pytest.mark.parametrize("offload", ["none", "host"])
@pytest.mark.parametrize("calls", [{1}, {30}, {29, 30}, {3, 7, 9, 20, 21}], ids=str)
def test_a_view_without_memory_is_repeated_in_a_smaller_arena_and_the_model_is_the_same(
    survey: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offload: str, calls: set[int]
) -> None:
    no_memory_at(monkeypatch, calls)
    events = run_demo(tmp_path / "run", data=survey, offload=offload, **SURVEY)
    assert_same_model(undisturbed, tmp_path / "run")
    warnings = [e.text for e in of_type(events, Message) if "out of device memory" in e.text]
    assert len(warnings) == len(calls)
    assert "the arena goes from 3,000 to 2,250 slots" in warnings[0]


def test_where_the_arena_gets_no_smaller_the_batch_ends_the_state_is_saved_and_resuming_works(
    survey: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"data": survey, "offload": "host", "gpu_memory": str(900 * SLOT_BYTES), **SURVEY}
    with monkeypatch.context() as patch:
        no_memory_at(patch, set(range(30, 36)))
        with pytest.raises(OutOfDeviceMemory, match="--gpu-memory"):
            run_demo(tmp_path / "run", **options)
    events = run_demo(tmp_path / "run", resume=True, **options)
    assert of_type(events, Message) and (tmp_path / "run" / "checkpoints" / "step_72").exists()
