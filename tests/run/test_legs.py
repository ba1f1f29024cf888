"""The schedule is a function of images: a run resumes under any length and batch size, and goes on exactly where neither
changed."""

from __future__ import annotations

import dataclasses
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clm.config import from_dict, to_dict
from clm.errors import ClmError
from clm.optim.schedules import Leg
from clm.run.events import Message
from clm.run.records import restored
from clm.settings import load_config
from tests.demo_run import assert_same_model, images_done, of_type, read_json, run_demo
from tests.run.resumes import OPTIONS, check_case, random_case, tiny_scene

CASES = int(os.environ.get("CLM_RESUMES", 30))  # 200 take about a minute and a half


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_scene(tmp_path_factory.mktemp("tiny") / "data")


@pytest.mark.parametrize("seed", range(CASES))
def test_a_run_resumed_in_any_way_ends_with_a_model_and_unchanged_with_the_bits_of_the_uninterrupted_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("os.fsync", lambda _descriptor: None)  # nothing here is about power cuts
    check_case(random_case(seed), data, tmp_path)


def test_the_random_cases_include_all_kinds() -> None:
    cases = [random_case(seed) for seed in range(CASES)]
    pairs = [(a, b) for case in cases for a, b in zip(case.parts, case.parts[1:], strict=False)]
    assert sum(case.unchanged for case in cases) >= 5
    assert any(a.batch_size < b.batch_size for a, b in pairs) and any(a.batch_size > b.batch_size for a, b in pairs)
    assert any(a.iterations < b.iterations and a.iterations % a.batch_size for a, b in pairs if a.stop_at is None)


def leg(iterations: int, batch_size: int, **options: Any) -> Leg:
    return Leg.of(load_config({"iterations": iterations, "batch_size": batch_size, **options}), 2.0)


def test_the_rate_of_means_depends_on_the_image_and_the_batch_size_alone() -> None:
    first, one, four = leg(100, 4), leg(200, 1), leg(200, 4)
    for next_one in (one, four):
        resumed = first.followed_by(next_one, 60, 15)
        rates = resumed.learning_rates()
        for step in range(15, 15 + resumed.steps + 1):
            image = min(60 + (step - 15) * next_one.batch_size, 200)
            want = 1.6e-4 * 2.0 * 0.01 ** (image / 200) * next_one.batch_size**0.5
            assert rates[0, resumed.index(step)] == pytest.approx(want, rel=1e-12)


def test_other_rates_fall_from_the_root_of_how_short_the_run_is_to_its_inverse_and_stay_in_a_reference_run() -> None:
    short = leg(7_500, 4).learning_rates() / 4**0.5
    assert short[1, 0] == pytest.approx(2 * 1e-3) and short[5, -1] == pytest.approx(1.25e-4 / 2)
    assert (np.diff(short[1:]) <= 0).all() and short[3, len(short[3]) // 2] == pytest.approx(5e-2, rel=1e-2)
    assert leg(10, 1).learning_rates()[2, 0] == pytest.approx(4 * 5e-3), "however short"
    constant = np.array([[1e-3], [5e-3], [5e-2], [2.5e-3], [1.25e-4]])
    for iterations in (30_000, 50_000):
        assert (leg(iterations, 1).learning_rates()[1:] == constant).all()


def test_runs_from_before_rates_fell_go_on_with_constant_ones() -> None:
    written = {k: v for k, v in to_dict(load_config({"iterations": 100})).items() if k != "anneal"}
    written["split_scale"] = 0.01  # which is not known any more
    resumed = load_config({}, resumed=from_dict(written, "config.yaml"))
    assert resumed.anneal == 1.0 and Leg.of(resumed, 1.0).learning_rates()[3].min() == 5e-2 * 4**0.5
    assert load_config({"iterations": 200}, resumed=from_dict(written, "config.yaml")).anneal == 1.0


def test_tables_of_a_leg_cover_its_own_steps_only() -> None:
    resumed = leg(29_990, 1).followed_by(leg(30_000, 4), 29_990, 29_990)
    assert resumed.steps == 3 and resumed.learning_rates().shape == (6, 6)


def test_bias_corrections_count_the_images_of_all_legs() -> None:
    """Of a smaller last batch, too: its moments decay as those of a whole one."""
    resumed = leg(61, 4).followed_by(leg(120, 3), 61, 16)
    adam = resumed.adam()
    for step in (17, 20, 36):
        images = 16 * 4 + (step - 16) * 3
        correction = np.sqrt(1 - 0.999**images) / (1 - 0.9**images)
        want = adam.rates[1, resumed.index(step)] * correction
        assert adam.at(resumed.index(step)).rate[1] == pytest.approx(want, rel=1e-6)


def test_a_leg_goes_on_where_nothing_changed_and_survives_json() -> None:
    first = leg(100, 4)
    second = first.followed_by(leg(100, 8), 40, 10)
    assert first.followed_by(leg(100, 4), 40, 10) is first
    assert second.followed_by(leg(100, 8), 72, 14) is second
    assert restored(Leg, json.loads(json.dumps(dataclasses.asdict(second))), "leg") == second


@pytest.mark.parametrize("moments", ["f32", "bf16"])
def test_a_run_of_several_legs_trains_the_same_model_wherever_rows_live(
    data: Path, tmp_path: Path, moments: str
) -> None:
    for run, offload in (("a", "none"), ("b", "host")):
        given: dict[str, Any] = {**OPTIONS, "offload": offload, "moments": moments}
        run_demo(tmp_path / run, data=data, iterations=31, batch_size=4, **given)
        run_demo(tmp_path / run, data=data, iterations=60, batch_size=6, stop_at=40, resume=True, **given)
        run_demo(tmp_path / run, data=data, iterations=60, batch_size=2, resume=True, **given)
    assert_same_model(tmp_path / "a", tmp_path / "b")


def test_a_resumed_leg_is_itself_resumed_with_the_same_bits(data: Path, tmp_path: Path) -> None:
    for run, stops in (("a", [None]), ("b", [36, 48, None])):
        run_demo(tmp_path / run, data=data, iterations=31, batch_size=4, **OPTIONS)
        for stop_at in stops:
            run_demo(tmp_path / run, data=data, iterations=60, batch_size=5, stop_at=stop_at, resume=True, **OPTIONS)
    assert_same_model(tmp_path / "a", tmp_path / "b")


def test_resuming_to_fewer_images_than_are_done_is_refused_with_the_number_that_works(
    data: Path, tmp_path: Path
) -> None:
    run_demo(tmp_path / "run", data=data, iterations=31, batch_size=4, **OPTIONS)
    with pytest.raises(ClmError, match="already at image 31, beyond --iterations 30") as caught:
        run_demo(tmp_path / "run", data=data, iterations=30, batch_size=4, resume=True, **OPTIONS)
    assert "`--iterations 31`" in caught.value.fix
    assert images_done(run_demo(tmp_path / "run", data=data, iterations=31, batch_size=9, resume=True, **OPTIONS)) == []


def test_a_checkpoint_from_before_there_were_legs_goes_on(data: Path, tmp_path: Path) -> None:
    """Written by the version of commit 08936c0, after 12 of 24 images in batches of 4."""
    with tarfile.open(Path(__file__).parent / "data" / "format1.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    run = tmp_path / "run_format1"
    options = {
        **OPTIONS,
        "means_lr": 1.6e-4,
        "anneal": 1.0,
        "prune_views": 0.0,
        "test_every": 8,
        "densify_every": 8,
        "densify_until": 20,
    }
    options |= {"data": data, "iterations": 24, "batch_size": 4, "sh_interval": 1}
    events = run_demo(run, resume=True, **options)
    assert images_done(events) == [16, 20, 24]
    assert not [e.text for e in of_type(events, Message) if e.level == "warning" and "resumed with" in e.text]
    assert read_json(run / "checkpoints" / "step_24" / "state.json")["progress"]["leg"]["first_step"] == 0
    assert (run / "point_cloud" / "iteration_24" / "point_cloud.ply").exists()


SMALL: dict[str, Any] = {
    **OPTIONS,
    "iterations": 60,
    "batch_size": 10,
    "growing_batch_size": 3,
}  # growth ends at image 40


def test_batches_are_small_until_growth_ends_and_the_run_is_that_of_a_batch_size_changed_by_hand(
    data: Path, tmp_path: Path
) -> None:
    done = images_done(run_demo(tmp_path / "a", data=data, **SMALL))
    assert done == [*range(3, 43, 3), 52, 60]
    by_hand = {**SMALL, "growing_batch_size": 0}
    run_demo(tmp_path / "b", data=data, stop_at=42, **{**by_hand, "batch_size": 3})
    run_demo(tmp_path / "b", data=data, resume=True, **by_hand)
    assert_same_model(tmp_path / "a", tmp_path / "b")


def test_the_end_of_small_batches_is_passed_with_the_same_bits_wherever_rows_live_and_wherever_the_run_stops(
    data: Path, tmp_path: Path
) -> None:
    run_demo(tmp_path / "a", data=data, offload="none", **SMALL)
    for stop_at in (15, 39, 42, 52, None):
        run_demo(tmp_path / "b", data=data, offload="host", stop_at=stop_at, resume=stop_at != 15, **SMALL)
    assert_same_model(tmp_path / "a", tmp_path / "b")


def test_small_batches_are_for_growth_only() -> None:
    config = load_config({"iterations": 100, "batch_size": 16, "growing_batch_size": 4})
    assert [config.batch_size_at(image) for image in (0, 49, 50, 99)] == [4, 4, 16, 16]
    assert load_config({"batch_size": 2, "growing_batch_size": 4}).batch_size_at(0) == 2
    assert load_config({"batch_size": 16}).batch_size_at(0) == 16
    assert load_config({"densify_until": 0, "batch_size": 16, "growing_batch_size": 4}).batch_size_at(0) == 16
