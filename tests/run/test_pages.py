"""Pages of any size train the same rows, by identity and bit for bit; a rebuild touches only what changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clm.run.events import Densified
from tests.demo_run import checkpoint_arrays, of_type, run_demo


def rows_by_key(run: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint but the fill of its pages, in the order of keys."""
    arrays = checkpoint_arrays(run)
    del arrays["fill"]
    order = np.argsort(arrays["keys"])
    return {name: array[order] for name, array in arrays.items()}


@pytest.mark.parametrize(
    ("page_rows", "options"),
    [
        (512, {"offload": "none"}),
        (512, {"offload": "host", "threads": 1}),
        (100, {"offload": "host", "gpu_memory": "5MiB"}),
    ],
    ids=["512 resident", "512 on one thread", "100 in a small arena"],
)
@pytest.mark.parametrize("moments", ["f32", "bf16"])
def test_pages_of_any_size_train_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page_rows: int, options: dict[str, Any], moments: str
) -> None:
    events = run_demo(tmp_path / "usual", offload="none", threads=2, moments=moments, opacity_reset_every=32)
    assert of_type(events, Densified), "rows are added"
    monkeypatch.setattr("clm.store.paged.PAGE_ROWS", page_rows)
    run_demo(tmp_path / "other", moments=moments, opacity_reset_every=32, **options)
    usual, other = rows_by_key(tmp_path / "usual"), rows_by_key(tmp_path / "other")
    assert usual.keys() == other.keys()
    for name, array in usual.items():
        assert array.tobytes() == other[name].tobytes(), name
