"""Rows on disk train the model of rows in memory, byte for byte, and what goes wrong with the disk is named."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from clm.errors import ResourceError
from clm.plan import placement
from clm.plan.budget import SLOT_BYTES
from clm.run.events import Densified, Message
from clm.run.host_memory import HostMemory
from clm.store.frames import LEAST_FRAMES
from clm.store.page_file import PageFile
from clm.store.store import Store
from tests.demo_run import (
    DEMO,
    assert_same_model,
    command,
    environment,
    of_type,
    read_json,
    run_demo,
    write_survey_scene,
)

SURVEY: dict[str, Any] = {
    "downscale": "1",
    "batch_size": 12,
    "iterations": 72,
    "sh_interval": 12,
    "opacity_reset_every": 32,
    "grow_evidence": 0,  # rows become many
}


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_survey_scene(tmp_path_factory.mktemp("survey") / "scene")


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Pages of 32 rows, a quarter of which are in RAM; (pages, frames) whenever rows are placed."""
    kept, placed = Store.keep_on_disk, []

    def a_quarter(self: Store, frames: int, scratch: Path) -> None:
        placed.append((self.pages, max(LEAST_FRAMES, self.pages // 4)))
        kept(self, placed[-1][1], scratch)

    monkeypatch.setattr("clm.store.paged.PAGE_ROWS", 32)
    monkeypatch.setattr(Store, "keep_on_disk", a_quarter)
    return placed


@pytest.mark.parametrize(("threads", "moments"), [(1, "f32"), (2, "bf16")])
def test_a_quarter_of_the_pages_in_ram_and_a_quarter_of_a_view_on_the_device_train_the_same_model(
    survey: Path,
    tmp_path: Path,
    small_pages: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    moments: str,
) -> None:
    """Rows are added, opacity is reset, batches become larger, every view is in pieces; stopped half-way and resumed."""
    options = {"data": survey, "moments": moments, **SURVEY, "growing_batch_size": 5}
    run_demo(tmp_path / "all", offload="none", threads=3 - threads, **options)
    monkeypatch.setattr(placement, "LEAST_SLOTS", 64)
    tight = {"offload": "disk", "threads": threads, "gpu_memory": str(700 * SLOT_BYTES), **options}
    events = run_demo(tmp_path / "run", stop_at=36, **tight)
    assert of_type(events, Densified), "rows are added"
    run_demo(tmp_path / "run", resume=True, **tight)
    assert_same_model(tmp_path / "all", tmp_path / "run")
    assert all(4 * frames <= pages + 3 for pages, frames in small_pages), "a quarter is less than all"
    report = read_json(tmp_path / "run" / "report.json")
    assert report["offload"] == "disk" and report["disk"]["bytes_read"] > 10**7
    assert report["peak"]["disk_bytes"] > 0
    assert 0 < report["disk"]["hit_rate"] < 1
    assert not list((tmp_path / "run" / "scratch").iterdir()), "the scratch file has no name"


def test_auto_goes_to_disk_when_rows_outgrow_memory(
    survey: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And trains the model that it would have trained in memory; no growth is refused."""
    options = {"data": survey, "threads": 1, **SURVEY}
    monkeypatch.setattr("clm.store.paged.PAGE_ROWS", 64)
    run_demo(tmp_path / "all", offload="none", **options)
    room = 6 << 20
    monkeypatch.setattr(HostMemory, "total", lambda self: self.beside_rows + room)
    monkeypatch.setattr("clm.run.residence.Residence._host_beside", lambda self: self._host_memory.beside_rows)
    events = run_demo(tmp_path / "run", offload="auto", gpu_memory="2MiB", **options)
    placed = [e.text for e in of_type(events, Message) if "offload: " in e.text]
    assert "offload: host" in placed[0] and "offload: disk, because" in placed[-1]
    assert not any(e.refused for e in of_type(events, Densified))
    assert_same_model(tmp_path / "all", tmp_path / "run")


def test_killed_while_pages_are_on_disk_it_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    options = ["--iterations", "80", "--downscale", "4", "--batch-size", "4", "--seed", "3", "-q"]
    subprocess.run(
        command("train", DEMO, "-o", tmp_path / "all", *options, "--offload", "none"), env=environment(), check=True
    )
    disk = [*options, "--offload", "disk", "--save-every", "20", "--scratch", tmp_path / "scratch"]
    process = subprocess.Popen(command("train", DEMO, "-o", tmp_path / "run", *disk), env=environment())
    while not (tmp_path / "run" / "checkpoints" / "step_40").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "scratch").iterdir()), "nothing is left of the scratch file"
    resumed = command("train", DEMO, "-o", tmp_path / "run", *disk, "--resume")
    subprocess.run(resumed, env=environment(), check=True)
    one, other = (tmp_path / run / "point_cloud/iteration_80/point_cloud.ply" for run in ("all", "run"))
    assert one.read_bytes() == other.read_bytes()


def test_a_disk_that_fails_half_way_ends_the_run_with_its_last_checkpoint_good(
    survey: Path, tmp_path: Path, small_pages: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"data": survey, "threads": 1, **SURVEY}
    run_demo(tmp_path / "all", offload="none", **options)
    swap, swaps = PageFile.swap, []

    def failing(self: PageFile, *arguments: Any) -> None:
        swaps.append(1)
        if len(swaps) == 1500:
            raise self._failed("write page 7 to", 5)
        swap(self, *arguments)

    monkeypatch.setattr(PageFile, "swap", failing)
    with pytest.raises(ResourceError, match=r"Could not write page 7 to the scratch file in .*Input/output error"):
        run_demo(tmp_path / "run", offload="disk", save_every=12, **options)
    assert len(swaps) >= 1500
    run_demo(tmp_path / "run", offload="disk", resume=True, **options)
    assert_same_model(tmp_path / "all", tmp_path / "run")


def test_a_refused_run_leaves_neither_threads_nor_space_behind(
    survey: Path, tmp_path: Path, small_pages: list[tuple[int, int]]
) -> None:
    before = threading.active_count()
    with pytest.raises(ResourceError):
        run_demo(tmp_path / "run", data=survey, offload="disk", gpu_memory="1KiB", **SURVEY)
    assert threading.active_count() == before and not list((tmp_path / "run" / "scratch").glob("*"))
