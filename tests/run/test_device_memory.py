"""A device with memory of its own trains the CPU's model, bit for bit: whatever reads or changes the store between batches
(densification, evaluation, checkpoints, PLYs) sees resident rows as they are, and never as they were.

The device is the tests' own, with kernels of the CPU and streams that do everything at once; rows of the store that live on
it are NaN until they are written back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clm.device.cpu import CpuStream
from clm.errors import ResourceError
from clm.render import CpuRasterizer
from clm.run.events import Densified, Evaluated, OpacityReset
from clm.run.residence import Residence
from tests.demo_run import assert_same_model, of_type, read_json, run_demo
from tests.device.fake_device import FakeDevice

# Rows are split at image 20, and become transparent at image 24, between two evaluations and two checkpoints.
OPTIONS: dict[str, Any] = {"downscale": "8", "opacity_reset_every": 24, "eval_every": 12, "save_every": 12}
OPTIONS["grow_evidence"] = 0  # rows become many


class DeviceWithMemory(FakeDevice):
    def stream(self, name: str) -> Any:
        return CpuStream()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clm.store.paged.PAGE_ROWS", 256)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Training runs on it from now on."""

    def open_device(choice: str, *, antialiased: bool, absgrad: bool, say: Any) -> Any:
        return DeviceWithMemory(), CpuRasterizer(antialiased, absgrad)

    monkeypatch.setattr("clm.run.open.open_device", open_device)


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("cpu") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clm.store.paged.PAGE_ROWS", 256)
        events = run_demo(run, offload="none", **OPTIONS)
    assert of_type(events, Densified)[0].split > 0 and of_type(events, OpacityReset)
    return run


@pytest.mark.parametrize(("offload", "gpu_memory"), [("none", "8GiB"), ("host", "8GiB"), ("auto", "32MiB")])
def test_a_run_on_a_device_with_memory_of_its_own_trains_the_same_model(
    on_the_cpu: Path, device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offload: str, gpu_memory: str
) -> None:
    shares: list[float] = []
    real = Residence.whole

    def whole(self: Residence) -> Any:
        shares.append(self.tiers.resident_rows / self.rows)
        return real(self)

    monkeypatch.setattr(Residence, "whole", whole)
    events = run_demo(tmp_path / "run", offload=offload, gpu_memory=gpu_memory, **OPTIONS)
    assert_same_model(on_the_cpu, tmp_path / "run")
    assert read_json(tmp_path / "run" / "metrics.json") == read_json(on_the_cpu / "metrics.json")
    assert len(of_type(events, Evaluated)) > 5
    least, most = {"none": (1, 1), "host": (0, 0), "auto": (0.1, 0.9)}[offload]
    assert least <= shares[-1] <= most, shares


def test_a_run_on_a_device_with_memory_of_its_own_resumes_to_the_same_model(
    on_the_cpu: Path, device: None, tmp_path: Path
) -> None:
    run_demo(tmp_path / "run", offload="none", stop_at=28, **OPTIONS)
    run_demo(tmp_path / "run", offload="auto", gpu_memory="32MiB", resume=True, **OPTIONS)
    assert_same_model(on_the_cpu, tmp_path / "run")


def test_growth_goes_on_where_temporaries_and_staging_leave_room_for_pieces_only(
    on_the_cpu: Path, device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def temporaries(self: CpuRasterizer, rows: int, pixels: int, piece_rows: int | None = None) -> int:
        return 3 * 2**20 + 20 * rows + 100 * (piece_rows or rows)

    monkeypatch.setattr(CpuRasterizer, "temporary_bytes", temporaries)
    events = run_demo(tmp_path / "run", offload="host", gpu_memory="8MiB", **OPTIONS)
    assert not any(event.refused for event in of_type(events, Densified)) and of_type(events, Densified)
    assert_same_model(on_the_cpu, tmp_path / "run")


def test_a_placement_in_bands_limits_the_lists_to_what_it_leaves(
    device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int | None] = []
    real = CpuRasterizer.begin

    def begin(self: CpuRasterizer, *arguments: Any) -> None:
        limits.append(self.band_bytes)
        real(self, *arguments)

    monkeypatch.setattr(CpuRasterizer, "begin", begin)
    options = {**OPTIONS, "iterations": 8, "eval_every": 0}
    run_demo(tmp_path / "whole", gpu_memory="32MiB", **options)
    assert set(limits) == {None}
    limits.clear()
    monkeypatch.setattr(CpuRasterizer, "temporary_bytes", lambda self, rows, pixels, piece_rows=None: 1 << 40)
    run_demo(tmp_path / "bands", gpu_memory="32MiB", **options)
    assert all(limit is not None and 0 <= limit < 32 << 20 for limit in limits)
    assert_same_model(tmp_path / "whole", tmp_path / "bands")
    with pytest.raises(ResourceError, match=r"1\.0 TiB"):
        monkeypatch.setattr(CpuRasterizer, "least_bytes", lambda self, rows, pixels, piece_rows=None: 1 << 40)
        run_demo(tmp_path / "refused", gpu_memory="32MiB", **options)
