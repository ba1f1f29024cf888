"""What ranks send each other is known before they start, to the byte and over every link."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clm.forecast.budgets import find_budgets
from clm.forecast.forecast import foresee
from clm.scene.open import open_scene
from tests.commands.test_plan import STILL
from tests.demo_run import DEMO, FIXED, read_json, small_config
from tests.run.test_ranks import run_ranks


@pytest.mark.parametrize("world", [2, 3])
def test_bytes_over_every_link_are_those_that_were_foretold(tmp_path: Path, world: int) -> None:
    """Rows stay where they are, so that later batches meet those that were foreseen; the last group of a batch is smaller."""
    options: dict[str, Any] = {"iterations": 10, "batch_size": 5, "threads": 1, "test_every": 0, **FIXED, **STILL}
    run_ranks(tmp_path / "run", world, **options)
    measured = np.array(read_json(tmp_path / "run" / "report.json")["ranks"]["network"]["bytes_to_each"])
    config = small_config(**options)
    scene = open_scene(DEMO, config, require_images=False)
    party = foresee(scene, config, find_budgets(config, None, world), shared=True, ranks=world).party
    assert party is not None and party.images == 10
    assert measured.shape == (world, world) and measured.sum() > 100_000
    assert np.array_equal(party.links, measured)
