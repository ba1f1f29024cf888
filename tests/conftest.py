"""Where the real scenes are, and what to say when they are not here; how many threads of its own torch has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault(
    "CLM_DEBUG", "1"
)  # kernels check row ids and slots; read when clm is imported, and by subprocesses

SCENES = Path(os.environ.get("CLM_SCENES", Path(__file__).resolve().parents[2] / "shared" / "scenes"))


def scene_path(name: str) -> Path:
    """Path of a real scene; skips the test, naming the folder, where it is absent."""
    path = SCENES / name
    if not path.exists():
        pytest.skip(f"real scene {name} not found in {SCENES} (set CLM_SCENES)")
    return path


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """torch computes in the thread that calls it, for as long as a module's tests run."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
