"""Placement, arena size, threads: none of them changes a bit of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clm.plan import placement
from clm.plan.budget import SLOT_BYTES
from clm.run.checkpoint import latest_checkpoint
from clm.run.events import Densified
from clm.run.open import open_run
from clm.run.residence import Residence
from clm.scene.open import open_scene
from tests.conftest import scene_path
from tests.demo_run import (
    DEMO,
    FIXED,
    assert_same_model,
    of_type,
    read_json,
    run_demo,
    small_config,
    write_survey_scene,
)

# Every batch needs far more rows than a view; several SH degrees; rows are added twice.
SURVEY: dict[str, Any] = {"downscale": "1", "batch_size": 12, "iterations": 72, "sh_interval": 12}


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_survey_scene(tmp_path_factory.mktemp("survey") / "scene")


@pytest.fixture
def largest(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of the largest set that was fetched or admitted: the fewest slots with which the same run works."""
    seen: list[int] = []

    def watched(find: Any) -> Any:
        def visible(*arguments: Any, **options: Any) -> Any:
            sets = find(*arguments, **options)
            seen.append(max(map(len, sets)) if isinstance(sets, list) else len(sets))
            return sets

        return visible

    for place in ("clm.plan.batch.visible_sets", "clm.plan.sightings.visible_sets", "clm.stream.view.visible_rows"):
        module, name = place.rsplit(".", 1)
        monkeypatch.setattr(place, watched(getattr(__import__(module, fromlist=[name]), name)))
    return seen


@pytest.fixture(scope="module")
def demo_resident(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled scene trained with everything resident, on two threads."""
    run = tmp_path_factory.mktemp("demo") / "run"
    events = run_demo(run, offload="none", threads=2)
    assert all(e.pages > 0 for e in of_type(events, Densified))
    return run


@pytest.mark.parametrize(("threads", "gpu_memory"), [(1, "8GiB"), (2, "8GiB"), (2, "5MiB"), (2, "2MiB"), (1, "1MiB")])
def test_host_offload_trains_the_same_model_as_everything_resident(
    demo_resident: Path, tmp_path: Path, threads: int, gpu_memory: str
) -> None:
    events = run_demo(tmp_path / "run", offload="host", threads=threads, gpu_memory=gpu_memory)
    assert not any(e.refused for e in of_type(events, Densified)), "no budget of the device limits growth"
    assert_same_model(demo_resident, tmp_path / "run")


def test_colours_rounded_for_the_bus_train_the_same_model_on_the_device_and_on_the_host(
    demo_resident: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"colour_bus": "bf16"}
    run_demo(tmp_path / "none", offload="none", threads=2, **options)
    run_demo(tmp_path / "host", offload="host", threads=1, gpu_memory="5MiB", **options)
    assert_same_model(tmp_path / "none", tmp_path / "host")
    exact, rounded = (read_json(run / "metrics.json")["test"]["psnr"] for run in (demo_resident, tmp_path / "host"))
    assert exact != rounded and abs(exact - rounded) < 0.2


def test_views_are_rendered_from_the_colours_that_are_stored_whatever_the_bus_carries(tmp_path: Path) -> None:
    run_demo(tmp_path / "run", colour_bus="bf16", iterations=24, **FIXED)
    checkpoint, images = latest_checkpoint(tmp_path / "run" / "checkpoints"), []
    for bus, offload in (("f32", "host"), ("bf16", "host"), ("bf16", "none")):
        config = small_config(colour_bus=bus, offload=offload, iterations=24, **FIXED)
        with open_run(open_scene(DEMO, config), config, tmp_path, lambda event: None, checkpoint) as again:
            images.append(again.residence.renderer()(again.residence.cameras[3]).rgb.copy())
    np.testing.assert_array_equal(images[1], images[0])
    np.testing.assert_array_equal(images[2], images[0])


@pytest.mark.parametrize("growing", [False, True], ids=["fixed rows", "rows added"])
def test_an_arena_that_must_evict_trains_the_same_model(
    survey: Path, tmp_path: Path, largest: list[int], growing: bool
) -> None:
    options = {"data": survey, **SURVEY, **({} if growing else FIXED)}
    events = run_demo(tmp_path / "all", offload="none", threads=1, **options)
    assert bool(of_type(events, Densified)) == growing
    barely, traffic = max(largest), {}
    for slots, threads in ((barely, 2), (barely, 1), (barely * 3 // 2, 2)):
        run = tmp_path / f"{slots}_{threads}"
        run_demo(run, offload="host", gpu_memory=str(slots * SLOT_BYTES), threads=threads, **options)
        assert_same_model(tmp_path / "all", run)
        report = read_json(run / "report.json")
        assert report["peak"]["device_bytes"] <= slots * SLOT_BYTES
        traffic[slots] = report["traffic"]
    assert traffic[barely]["rows_loaded"] > traffic[barely]["rows_lower_bound"], "nothing was evicted"
    assert traffic[barely]["rows_loaded"] <= traffic[barely]["rows_loaded_consecutive_reuse"]
    assert traffic[barely]["rows_loaded"] > traffic[barely * 3 // 2]["rows_loaded"]


@pytest.mark.parametrize(("offload", "threads"), [("host", 1), ("host", 2), ("auto", 2)])
def test_an_arena_of_a_quarter_of_the_largest_view_trains_the_same_model(
    survey: Path, tmp_path: Path, largest: list[int], monkeypatch: pytest.MonkeyPatch, offload: str, threads: int
) -> None:
    """Rows are added, and every view is in pieces; stopped half-way, and resumed in a third of the largest view."""
    options = {"data": survey, **SURVEY}
    run_demo(tmp_path / "all", offload="none", threads=1, **options)
    monkeypatch.setattr(placement, "LEAST_SLOTS", 64)
    quarter, turns = max(largest) // 4 * SLOT_BYTES, []
    plan = Residence.plan

    def watched(self: Residence, *arguments: Any, **named: Any) -> Any:
        planned = plan(self, *arguments, **named)
        turns.extend(planned.plan.turns)
        return planned

    monkeypatch.setattr(Residence, "plan", watched)
    run_demo(tmp_path / "run", offload=offload, threads=threads, gpu_memory=str(quarter), stop_at=36, **options)
    assert {turn.renders for turn in turns} == {True, False} and sum(turn.adds and turn.projects for turn in turns) > 30
    assert all(len(turn.view_rows) > len(turn.rows) for turn in turns if len(turn.view_rows) > max(largest) // 4)
    more = str(quarter * 4 // 3)
    events = run_demo(tmp_path / "run", offload=offload, threads=threads, gpu_memory=more, resume=True, **options)
    assert not any(e.refused for e in of_type(events, Densified))
    assert_same_model(tmp_path / "all", tmp_path / "run")
    report = read_json(tmp_path / "run" / "report.json")
    assert report["peak"]["device_bytes"] <= quarter * 4 // 3
    assert report["traffic"]["rows_loaded"] > report["traffic"]["rows_lower_bound"]


def test_a_real_drone_survey_in_a_tight_arena_trains_the_same_model(tmp_path: Path) -> None:
    options = {"data": scene_path("caliterra"), "downscale": "8", "batch_size": 16, "iterations": 48, **FIXED}
    run_demo(tmp_path / "all", offload="none", threads=2, **options)
    run_demo(tmp_path / "tight", offload="host", threads=1, gpu_memory=str(9500 * SLOT_BYTES), **options)
    assert_same_model(tmp_path / "all", tmp_path / "tight")
    run_demo(tmp_path / "pieces", offload="host", threads=2, gpu_memory=str(2200 * SLOT_BYTES), **options)
    assert_same_model(tmp_path / "all", tmp_path / "pieces")
    traffic = read_json(tmp_path / "tight" / "report.json")["traffic"]
    assert traffic["rows_loaded"] > traffic["rows_lower_bound"], "nothing was evicted"


def test_real_photos_train_the_same_model_on_the_device_and_on_the_host(tmp_path: Path) -> None:
    options = {"data": scene_path("sceaux"), "iterations": 200, "densify_from": 50, "densify_every": 50}
    options |= {"densify_until": 150, "grow_screen_gradient": 2e-4, "grow_evidence": 30.0}
    events = run_demo(tmp_path / "none", offload="none", **options)
    grown, held_back = (
        sum(e.split for e in of_type(events, Densified)),
        of_type(events, Densified)[-1].unproven,
    )
    assert grown > 500 and held_back > 50, "rows grow, and others may not for lack of evidence"
    events = run_demo(tmp_path / "host", offload="host", gpu_memory="16MiB", threads=1, **options)
    assert not any(e.refused for e in of_type(events, Densified))
    assert_same_model(tmp_path / "none", tmp_path / "host")
