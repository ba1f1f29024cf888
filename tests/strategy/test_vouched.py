"""Rows that no photo vouches for: which they are, when they go, and that places and pages do not matter."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clm.camera import Camera
from clm.plan import placement
from clm.plan.budget import SLOT_BYTES
from clm.run.events import Cleared, Densified
from clm.settings import load_config
from clm.store.layout import MEANS
from clm.store.store import Store
from clm.strategy.default import DefaultStrategy
from clm.strategy.vouched import beside_frames, middle_depths, unvouched, without
from tests.demo_run import assert_same_model, of_type, pages_in_a_quarter_of_ram, run_demo, write_survey_scene
from tests.store.test_store import by_key, random_store, reorder


def looking(position: tuple[float, float, float], turned: float = 0.0) -> Camera:
    """A camera that looks along z, turned about y; pictures are 90 degrees wide."""
    cos, sin = np.cos(turned), np.sin(turned)
    pose = np.eye(4)
    pose[:3, :3] = [[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]]
    pose[:3, 3] = -pose[:3, :3] @ position
    return Camera(100, 80, 50.0, 50.0, 50.0, 40.0, pose)


TWO = looking((0, 0, -1)), looking((1, 0, -1), turned=0.3)


def scattered(rows: int = 4000, seed: int = 0, page_rows: int | None = None) -> Store:
    """Rows around what two cameras see, of which some are not drawn, some drawn by one view, and some by two."""
    store = random_store(rows, seed, page_rows=page_rows)
    kind = np.random.default_rng(seed + 1).integers(0, 3, rows)
    store.geometry[:, MEANS] *= 4
    store.statistics[:, 0] = 4.0 * kind
    store.statistics[:, 2:] = 4 * kind[:, None] * np.array([30, 900])  # four epochs, 30 pixels in each view
    store.refresh(None)
    store.see_again()
    return store


def slow_projection(points: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    p = points @ camera.world_to_camera[:3, :3].T + camera.world_to_camera[:3, 3]
    pixels = p @ camera.K.T
    return pixels[:, 0] / p[:, 2], pixels[:, 1] / p[:, 2], p[:, 2]


def test_rows_beside_a_frame_are_those_near_its_camera_that_no_frame_shows() -> None:
    points = np.random.default_rng(0).normal(0, 4, (4000, 3)).astype(np.float32)
    middles, outside, near = middle_depths(points, TWO), np.ones(4000, bool), np.zeros(4000, bool)
    for camera, middle in zip(TWO, middles, strict=True):
        u, v, z = slow_projection(points, camera)
        framed = (z > 0) & (u >= 0) & (u <= 100) & (v >= 0) & (v <= 80)
        assert middle == pytest.approx(np.median(z[framed]))
        outside &= ~framed
        near |= (z > 0) & (z < middle / 3) & (u >= -100) & (u <= 200) & (v >= -80) & (v <= 160)
    np.testing.assert_array_equal(beside_frames(points, TWO, middles), outside & near)
    assert (outside & near).sum() > 40
    assert not middle_depths(points[:0], TWO).any() and not beside_frames(points, TWO, np.zeros(2)).any()


def test_what_no_view_draws_goes_and_what_one_view_sees_of_a_row_beside_its_frame() -> None:
    store = scattered()
    drawn, centres = store.statistics[:, 0], store.geometry[:, MEANS]
    beside = beside_frames(centres, TWO, middle_depths(centres[drawn > 0], TWO))
    unseen, edges = unvouched(store, None, TWO, epochs=4, least=1.5, image=8)
    np.testing.assert_array_equal(unseen, np.flatnonzero(drawn == 0))
    np.testing.assert_array_equal(edges, np.flatnonzero((drawn == 4) & beside))
    assert len(unseen) > 100 and len(edges) > 5 and ((drawn == 8) & beside).sum() > 5, "two views are enough"
    assert len(unvouched(store, None, TWO, epochs=4, least=2.5, image=8)[1]) > len(edges)


def test_which_rows_go_does_not_depend_on_pages_or_places() -> None:
    left = []
    for page_rows, order in ((16, None), (100, None), (2048, np.random.default_rng(3).permutation(4000))):
        store = scattered(page_rows=page_rows)
        if order is not None:
            reorder(store, order)
        store.apply(without(np.union1d(*unvouched(store, None, TWO, 4, 1.5, 8))))
        left.append(by_key(store))
    assert left[0] == left[1] == left[2] and 0 < len(left[0]) < 4000


def clearing(views: int, **options: Any) -> list[int]:
    """Images after which rows are cleared away, of a run of 2,000 that grows until 1,000."""
    config = load_config({"iterations": 2000} | options)
    strategy = DefaultStrategy(config, 1.0, [TWO[0]] * views)
    return [now for now in range(4, 2001, 4) if strategy._clear_due(now - 4, now)]


def test_rows_are_cleared_away_when_every_view_has_come_four_times_after_growth_and_when_half_of_the_rest_is_over() -> (
    None
):
    assert (
        clearing(8) == [1032, 1516, 1760, 1880, 1940] and clearing(50) == [1200, 1600, 1800] and clearing(100) == [1400]
    )
    assert clearing(126) == [], "too few images are left for others to fill the gaps"
    assert clearing(8, prune_views=0.0) == clearing(8, grow_evidence=0.0) == clearing(8, densify_until=0) == []


@pytest.mark.parametrize("size", [1, 4, 24, 64])
def test_the_last_densification_is_known_for_any_batch_size(size: int) -> None:
    config = dataclasses.replace(load_config({"iterations": 2000}), batch_size=size)
    strategy = DefaultStrategy(config, 1.0, [TWO[0]] * 8)
    done = [now for now in range(size, 2001, size) if strategy._densify_due(now - size, now)]
    assert strategy._last_densified == done[-1]


# 25 views over a field, so that many rows lie at the edge of what is seen; cleared away twice.
CLEARED: dict[str, Any] = {"iterations": 400, "downscale": "1", "densify_until": 50, "prune_views": 3.0}


def test_what_is_cleared_away_is_the_same_on_disk_in_pieces_and_in_two_legs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages_in_a_quarter_of_ram(monkeypatch, 32)
    monkeypatch.setattr("clm.strategy.vouched._NEAR", 10.0)  # nothing lies near a camera that flies over a field
    survey = write_survey_scene(tmp_path / "scene")
    events = run_demo(tmp_path / "roomy", data=survey, offload="none", threads=2, **CLEARED)
    cleared, last = of_type(events, Cleared)[0], of_type(events, Densified)[-1]
    assert cleared.unseen > 0 and cleared.edges > 0 and cleared.iteration > last.iteration
    assert len(of_type(events, Cleared)) == 2
    assert cleared.num_gaussians == last.num_gaussians - cleared.unseen - cleared.edges
    tight = {"offload": "disk", "threads": 1, "gpu_memory": str(700 * SLOT_BYTES), **CLEARED}
    monkeypatch.setattr(placement, "LEAST_SLOTS", 64)
    run_demo(tmp_path / "tight", data=survey, stop_at=cleared.iteration - 20, **tight)
    run_demo(tmp_path / "tight", data=survey, resume=True, **tight)
    assert_same_model(tmp_path / "roomy", tmp_path / "tight")
