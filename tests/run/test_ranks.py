"""The number of ranks never changes the model: one, two, three and four train the same rows and measure the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clm.errors import ClmError
from clm.plan import placement
from clm.plan.budget import SLOT_BYTES
from clm.ranks import Ranks
from clm.run.balance import balance
from clm.run.events import BatchDone, Densified, Evaluated, Event, Message, Relocated
from clm.run.loop import train
from clm.scene import CorruptImage, ImageCache
from clm.scene.open import open_scene
from tests.demo_run import DEMO, of_type, read_json, run_demo, small_config, write_survey_scene
from tests.thread_ranks import on_ranks

# Batches end with smaller groups, the run with a smaller batch; rows are added, pruned and reset.
RUN: dict[str, Any] = {"iterations": 62, "batch_size": 5, "opacity_reset_every": 31, "threads": 1, "test_every": 6}
SURVEY: dict[str, Any] = {"downscale": "1", "batch_size": 7, "iterations": 28, "sh_interval": 12, "threads": 1}


def run_ranks(
    run: Path, world: int, data: Path = DEMO, of_rank: dict[int, dict[str, Any]] | None = None, **options: Any
) -> list[list[Event]]:
    """The events of each rank. of_rank: options of some ranks alone."""
    if world == 1:
        return [run_demo(run, data=data, **options)]

    def work(ranks: Ranks) -> list[Event]:
        events: list[Event] = []
        config = small_config(**{**options, **(of_rank or {}).get(ranks.rank, {})})
        train(open_scene(data, config), config, run, events.append, ranks=ranks)
        return events

    return on_ranks(world, work)


def rows_of_ply(run: Path) -> list[bytes]:
    """The rows of the last PLY, as bytes, in an order of their own: pages of other ranks lie elsewhere."""
    content = sorted(run.glob("point_cloud/iteration_*/point_cloud.ply"))[-1].read_bytes()
    rows = content.split(b"end_header\n", 1)[1]
    return sorted(rows[k : k + 248] for k in range(0, len(rows), 248))


def what_happened(events: list[Event]) -> list[Any]:
    """What does not depend on where rows are."""
    told: list[Any] = []
    for event in events:
        if isinstance(event, BatchDone):
            told.append((event.step, event.iteration, repr(event.loss), event.num_gaussians))
        elif isinstance(event, Densified | Relocated):
            told.append(dataclasses.replace(event, pages=0))
        elif isinstance(event, Evaluated):
            told.append(event)
    return told


def assert_same(one: Path, events: list[Event], other: Path, theirs: list[list[Event]]) -> None:
    for k, told in enumerate(theirs):
        assert what_happened(told) == what_happened(events), f"rank {k}"
    ours, expected = rows_of_ply(other), rows_of_ply(one)
    assert len(ours) == len(expected) and ours == expected, f"{len(set(ours) ^ set(expected)) // 2} rows differ"
    assert read_json(other / "metrics.json") == read_json(one / "metrics.json")
    assert (other / "input.ply").read_bytes() == (one / "input.ply").read_bytes()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    run = tmp_path_factory.mktemp("alone") / "run"
    (events,) = run_ranks(run, 1, **RUN)
    assert sum(e.split for e in of_type(events, Densified)) > 100, "rows are added"
    return run, events


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_train_the_same_model_and_measure_the_same(
    alone: tuple[Path, list[Event]], tmp_path: Path, world: int
) -> None:
    theirs = run_ranks(tmp_path / "run", world, **RUN)
    assert_same(*alone, tmp_path / "run", theirs)
    receipt, pictures = read_json(tmp_path / "run" / "report.json"), "eval/step_62/*.png"
    assert receipt["ranks"]["world"] == world and sum(receipt["ranks"]["rows"]) == receipt["num_gaussians"]
    for mine, other in zip(sorted(alone[0].glob(pictures)), sorted((tmp_path / "run").glob(pictures)), strict=True):
        assert mine.name == other.name and mine.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("world", "options"),
    [
        (3, {"max_gaussians": 1700, "growing_batch_size": 2}),
        (2, {"exposure": "on", "background": "random", "moments": "bf16"}),
        (2, {"strategy": "mcmc", "max_gaussians": 2000, "growing_batch_size": 2}),
        (4, {"batch_size": 2, "iterations": 14, "absgrad": True, "antialias": True}),
    ],
    ids=[
        "the strongest rows of all grow, batches too",
        "exposures, backgrounds, moments",
        "mcmc",
        "batches smaller than the ranks",
    ],
)
def test_ranks_train_the_same_model_whatever_else_is_asked_for(
    tmp_path: Path, world: int, options: dict[str, Any]
) -> None:
    (events,) = run_ranks(tmp_path / "one", 1, **{**RUN, **options})
    theirs = run_ranks(tmp_path / "several", world, **{**RUN, **options})
    assert_same(tmp_path / "one", events, tmp_path / "several", theirs)
    grown = of_type(events, Densified)
    if options.get("max_gaussians") == 1700:
        assert any(e.refused for e in grown), "the cap chose"


def test_pieces_on_one_rank_and_a_disk_tier_on_another_train_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cameras of two sizes; rank 0 has all of its rows on the device, rank 1 an arena for pieces, rank 2 a disk."""
    survey = with_other_cameras(write_survey_scene(tmp_path / "scene"))
    (events,) = run_ranks(tmp_path / "one", 1, survey, offload="none", **SURVEY)
    monkeypatch.setattr(placement, "LEAST_SLOTS", 64)
    monkeypatch.setattr("clm.store.paged.PAGE_ROWS", 32)
    of_rank = {
        0: {"offload": "none"},
        1: {"offload": "host", "gpu_memory": str(150 * SLOT_BYTES)},
        2: {"offload": "disk", "scratch": str(tmp_path / "scratch")},
    }
    theirs = run_ranks(tmp_path / "several", 3, survey, of_rank, **SURVEY)
    assert_same(tmp_path / "one", events, tmp_path / "several", theirs)
    report = read_json(tmp_path / "several" / "report.json")
    assert report["traffic"]["rows_loaded"] > report["traffic"]["rows_lower_bound"], "pieces were loaded again"
    assert report["disk"]["bytes_written"] > 0


def with_other_cameras(scene: Path) -> Path:
    """Every third photo is another camera's, upright and smaller."""
    model = scene / "sparse" / "0"
    with open(model / "cameras.txt", "a") as file:
        file.write("2 PINHOLE 40 56 50 52 19 29\n")
    lines = (model / "images.txt").read_text().splitlines()
    for k in range(0, len(lines) // 2, 3):
        words = lines[2 * k].split()
        lines[2 * k] = " ".join([*words[:8], "2", words[9]])
        photo = scene / "images" / words[9]
        Image.open(photo).resize((40, 56)).save(photo)
    (model / "images.txt").write_text("\n".join(lines) + "\n")
    return scene


def test_a_photo_that_one_rank_cannot_read_is_skipped_by_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    survey = write_survey_scene(tmp_path / "scene", side=3)
    options = {**SURVEY, "iterations": 21, "test_every": 0}
    read, asked = ImageCache.get, []

    def get(cache: ImageCache, view: int) -> np.ndarray:
        asked.append(view)
        if view == 4:
            raise CorruptImage(survey / "images" / "04.png", "it is a test")
        return read(cache, view)

    monkeypatch.setattr(ImageCache, "get", get)
    (events,) = run_ranks(tmp_path / "one", 1, survey, **options)
    alone = len(asked)
    theirs = run_ranks(tmp_path / "several", 2, survey, **options)
    assert_same(tmp_path / "one", events, tmp_path / "several", theirs)
    assert len(asked) == 2 * alone, "a photo is decoded where it is compared, and nowhere else"
    for told in (events, *theirs):
        assert any("04.png" in e.text and "Skipping" in e.text for e in of_type(told, Message)), "every rank knows"


def test_fewer_rows_than_ranks_are_refused_before_step_0(tmp_path: Path) -> None:
    survey = write_survey_scene(tmp_path / "scene", side=2, points=3)
    with pytest.raises(ClmError, match="3 Gaussians to start from, fewer than the 4 ranks"):
        run_ranks(tmp_path / "run", 4, survey, **SURVEY)


def test_what_travels_is_at_most_a_hundred_bytes_for_each_row_that_a_view_may_see(tmp_path: Path) -> None:
    run_ranks(tmp_path / "run", 2, **{**RUN, "densify_until": 0, "iterations": 20})
    report = read_json(tmp_path / "run" / "report.json")
    network, visible = report["ranks"]["network"], report["traffic"]["rows_loaded_no_reuse"] / 2  # there and back
    to_each = np.array(network["bytes_to_each"])
    assert (np.diagonal(to_each) == 0).all() and to_each.sum() == network["bytes"] == 20 * network["bytes_per_image"]
    assert 10 * visible < network["bytes"] < 100 * visible / 2 * 1.2, "half of the rows live where they are rasterised"


def test_pages_that_move_between_ranks_change_nothing(
    alone: tuple[Path, list[Event]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clm.store.paged.PAGE_ROWS", 64)
    monkeypatch.setattr("clm.run.balance.UNBALANCED", 1.0)
    moved: list[int] = []

    def watched(*arguments: Any) -> int:
        moved.append(balance(*arguments))
        return moved[-1]

    monkeypatch.setattr("clm.run.residence.balance", watched)
    theirs = run_ranks(tmp_path / "run", 3, **RUN)
    assert sum(moved) > 0, "ranks grew unequally"
    assert_same(*alone, tmp_path / "run", theirs)
    rows = read_json(tmp_path / "run" / "report.json")["ranks"]["rows"]
    assert max(rows) - min(rows) <= 2 * 64
