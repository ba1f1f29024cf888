"""Models that memory does not hold are rendered, evaluated and exported all the same, and memory does not grow with them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clm.camera import Camera
from clm.errors import ResourceError
from clm.formats.model import open_model
from clm.formats.ply_write import write_ply
from clm.plan.budget import WRITING_BYTES
from clm.plan.residency import Plan
from clm.run.events import Message
from clm.run.host_memory import resident_bytes
from clm.run.viewing import Budgets, loaded_store, model_renderer
from clm.stream import view
from clm.stream.ticks import Ticks
from clm.stream.tiers import Tiers
from clm.units import parse_bytes

SIDE = 100.0


def write_field(path: Path, count: int, seed: int = 0) -> Path:
    """A flat field of small Gaussians, in no order."""
    rng = np.random.default_rng(seed)

    def chunks():  # type: ignore[no-untyped-def]
        for first in range(0, count, 50_000):
            rows = min(50_000, count - first)
            geometry, colour = np.zeros((rows, 12), np.float32), np.zeros((rows, 48), np.float32)
            geometry[:, :2] = rng.uniform(0, SIDE, (rows, 2))
            geometry[:, 2] = rng.normal(0, 0.1, rows)
            geometry[:, 3:7] = rng.normal(size=(rows, 4))
            geometry[:, 7:10] = np.log(0.03)
            colour[:, :3] = rng.normal(size=(rows, 3))
            yield geometry, colour

    write_ply(path, chunks())
    return path


def above(x: float, y: float) -> Camera:
    """Looks down from 5 units above."""
    pose = np.diag([1.0, -1.0, -1.0, 1.0])
    pose[:3, 3] = -pose[:3, :3] @ np.array([x, y, 5.0])
    return Camera(48, 32, 40.0, 40.0, 24.0, 16.0, pose, 0.05, 1e3)


def images(ply: Path, host_memory: str, said: list[str]) -> list[np.ndarray]:
    def emit(event: object) -> None:
        if isinstance(event, Message):
            said.append(event.text)

    budgets, model = Budgets(host_memory=host_memory), open_model(ply)
    memory = budgets.host(emit)
    with loaded_store(model, memory, budgets.folder(ply), emit) as store:
        render = model_renderer(model, store, memory, (0.0, 0.0, 0.0), "auto", emit)
        cameras = [above(x, y) for x, y in [(20, 20), (50, 70), (90, 10)]]
        return [np.array(render(c, coming=cameras[k + 1 : k + 2]).rgb) for k, c in enumerate(cameras)]


def test_a_model_that_memory_does_not_hold_is_rendered_from_pages_on_disk(tmp_path: Path) -> None:
    ply, said = write_field(tmp_path / "field.ply", 100_000), list[str]()
    whole = images(ply, "auto", said)
    assert not said
    paged = images(ply, str(resident_bytes() + WRITING_BYTES + (16 << 20)), said)
    assert said == ["16 of 49 pages of the model fit into host memory at a time"]
    for one, other in zip(whole, paged, strict=True):
        assert one.std() > 0.05
        np.testing.assert_array_equal(one, other)
    assert [path.name for path in tmp_path.iterdir()] == ["field.ply"]


def test_a_view_whose_splats_exceed_memory_is_refused_with_a_budget_that_works(tmp_path: Path) -> None:
    ply, high = write_field(tmp_path / "field.ply", 100_000), above(SIDE / 2, SIDE / 2)
    pose = high.world_to_camera.copy()
    pose[2, 3] = 120.0  # all of the field is seen from there
    high = replace(high, world_to_camera=pose)

    def render(host_memory: str) -> None:
        budgets, model = Budgets(host_memory=host_memory), open_model(ply)
        memory = budgets.host(lambda event: None)
        with loaded_store(model, memory, budgets.folder(ply), lambda event: None) as store:
            model_renderer(model, store, memory, (0.0, 0.0, 0.0), "auto", lambda event: None)(high)

    base = resident_bytes()
    with pytest.raises(ResourceError, match="A view sees 100,000 Gaussians, whose splats need") as refused:
        render(str(base + WRITING_BYTES + (24 << 20)))
    enough = re.search(r"--host-memory (\S+?)`", refused.value.fix)
    assert enough is not None
    render(str(parse_bytes(enough[1]) + resident_bytes() - base))  # this process has grown meanwhile


RENDER = """
import json, resource, sys
from pathlib import Path
from clm.commands.render import Wanted, render_model
from clm.plan.budget import WRITING_BYTES
from clm.run.host_memory import resident_bytes
from clm.run.viewing import Budgets
ply, cameras, out = map(Path, sys.argv[1:4])
import clm.render.cpu, clm.scene, numpy
budgets = Budgets(host_memory=str(resident_bytes() + WRITING_BYTES + (48 << 20)))
render_model(ply, out, Wanted(cameras=str(cameras)), budgets)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)
"""


def test_pages_of_the_next_frame_are_expected_while_this_one_is_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected: list[int] = []

    class Watched(Ticks):
        def __init__(self, plan: Plan, tiers: Tiers, coming: Sequence[np.ndarray] = ()):
            expected.append(sum(len(pages) for pages in coming))
            super().__init__(plan, tiers, coming)

    monkeypatch.setattr(view, "Ticks", Watched)
    images(write_field(tmp_path / "field.ply", 50_000), str(resident_bytes() + WRITING_BYTES + (16 << 20)), [])
    assert [pages > 0 for pages in expected] == [True, True, False]


def test_rendering_takes_a_few_bytes_of_memory_for_each_row_that_is_on_disk(tmp_path: Path) -> None:
    entry = {"id": 0, "img_name": "a", "width": 48, "height": 32, "position": [50, 50, 5], "fx": 40, "fy": 40}
    (tmp_path / "cameras.json").write_text(json.dumps([entry | {"rotation": np.diag([1.0, -1, -1]).tolist()}]))
    peaks, counts = [], (200_000, 500_000)
    for count in counts:
        ply = write_field(tmp_path / f"{count}.ply", count)
        script = [sys.executable, "-c", RENDER, str(ply), str(tmp_path / "cameras.json"), str(tmp_path / "out")]
        ended = subprocess.run(script, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr
        peaks.append(int(ended.stdout))
    assert (peaks[1] - peaks[0]) / (counts[1] - counts[0]) < 60, "in RAM a row takes 256 bytes"
