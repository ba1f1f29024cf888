"""What the disk of a run is predicted to move is what it moves: the replay of plans knows the decisions of the page table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clm.forecast.paging import Paging, SeenPages, page_batches
from clm.plan.batch import batch_views, plan_batch
from clm.plan.budget import page_row_bytes
from clm.plan.sightings import all_visible_sets
from clm.plan.visibility import NO_MARGIN
from clm.run.loop import train_batch
from clm.run.open import Run, open_run
from clm.scene.open import open_scene
from clm.store.store import Store
from tests.demo_run import FIXED, small_config, write_survey_scene

STILL = {f"{name}_lr": 0.0 for name in ("means", "quats", "log_scales", "logit_opacities", "sh0", "shN")}
BATCH, EPOCH = 4, 64  # views


def predicted(run: Run, batches: int) -> Paging:
    """Of so many batches after the first epoch, from the rows of the run as they are."""
    store, seed, train = run.residence.tiers.store, run.schedule.config.seed, run.scene.train
    cameras = [view.camera for view in run.scene.views]
    seen = SeenPages(store.places, store.page_rows)
    assert len(list(seen.marking(all_visible_sets(store, cameras)))) == len(cameras)
    firsts = range(EPOCH, EPOCH + BATCH * batches, BATCH)
    slots = run.residence.arena.slots
    plans = [
        plan_batch(store, cameras, batch_views(train, seed, first, BATCH), slots, NO_MARGIN, seed).plan
        for first in firsts
    ]
    before, after = (batch_views(train, seed, first, EPOCH) for first in (0, EPOCH + BATCH * batches))
    nobody, frames = np.zeros(store.pages, bool), store.arrays.frames
    return page_batches(plans, seen, before, after, frames=frames, row_bytes=page_row_bytes("f32"), resident=nobody)


@pytest.mark.parametrize("share", [0.25, 0.4])
def test_the_disk_moves_what_was_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """Over an epoch, of rows that stay where they are, with so many of the pages in memory. Were pages read for the views of
    the next batch as they are drawn, not for the turns of its plan, or turns gathered as early as their slots are free, it would be
    a tenth more of these few pages, and another tenth."""
    keep = Store.keep_on_disk
    monkeypatch.setattr("clm.store.paged.PAGE_ROWS", 16)
    monkeypatch.setattr(
        Store, "keep_on_disk", lambda self, frames, scratch: keep(self, int(share * self.pages), scratch)
    )
    data = write_survey_scene(tmp_path / "scene", 8, 4000, 12.0)
    options: dict[str, Any] = {
        "downscale": "1",
        "batch_size": BATCH,
        "offload": "disk",
        "test_every": 0,
        **FIXED,
        **STILL,
    }
    config, batches = small_config(**{**options, "iterations": 3 * EPOCH}), EPOCH // BATCH
    with open_run(open_scene(data, config), config, tmp_path / "run", lambda event: None) as run:
        disk = run.residence.tiers.store.disk
        assert disk is not None and len(run.scene.train) == EPOCH

        def moved(count: int) -> np.ndarray:
            for _ in range(count):
                train_batch(run, run.batches.next())
            return np.array([disk.bytes_read, disk.bytes_written])

        before = moved(batches)
        done, expected = moved(batches) - before, predicted(run, batches)
    assert expected.bytes_read > 100 * 16 * page_row_bytes("f32")
    np.testing.assert_allclose(done, [expected.bytes_read, expected.bytes_written], rtol=0.08)
