"""Machine files say where every number comes from, and a wrong one is refused in a sentence."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from clm.device.interface import Arena, gradient_floats, row_floats
from clm.errors import ClmError
from clm.forecast.machine import (
    Machine,
    adam_bytes,
    fetch_bytes,
    gradient_bytes,
    load_machine,
    machine_folders,
    row_bytes,
)
from clm.store.store import Store

FILES = sorted({path for folder in machine_folders() for path in folder.glob("*.yaml")})
GOOD = """\
name: bench
device: gpu
device_memory: 8GiB # data sheet
host_memory: 32GiB
disk: 1TB
disk_read_gb_s: 3
cores: 8
host_gather_gb_s: 20
host_adam_gb_s: 20
bus_in_gb_s: 12 # assumed: half of it
bus_out_gb_s: 12
device_gb_s: 200
plan_ns_per_row: 10
hand_over_us: 100
render_ms_per_view: 2
render_ns_per_row: 10
render_ns_per_pixel: 10
"""


def write(folder: Path, text: str) -> str:
    (folder / "machine.yaml").write_text(text)
    return str(folder / "machine.yaml")


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_every_number_of_a_bundled_machine_names_its_source(path: Path) -> None:
    machine = load_machine(path.stem)
    assert machine == load_machine(str(path))
    noted = {key for key, _ in machine.notes}
    defaulted = {"name", "device", "notes", "compute_cores"}
    of_ranks = {"ranks_per_host", "link_gb_s", "network_gb_s", "network_us"}  # of machines with several devices
    assert noted - of_ranks == {field.name for field in dataclasses.fields(Machine)} - defaulted - of_ranks
    sources = ("data sheet", "assumed", "measured", "PCIe", "gsplat", "TITAN RTX", "the same fit", "as bus_in")
    assert all(any(source in note for source in sources) for _, note in machine.notes)


def test_there_are_files_for_four_classes_of_machine() -> None:
    assert {"rtx4090", "rtx4090-8tb", "rtx3060-12gb", "laptop-8gb", "h200"} <= {path.stem for path in FILES}
    memory = [load_machine(name).device_memory for name in ("laptop-8gb", "rtx3060-12gb", "rtx4090", "h200")]
    assert memory == sorted(memory)


def test_a_file_is_read_with_its_comments(tmp_path: Path) -> None:
    machine = load_machine(write(tmp_path, GOOD))
    assert (machine.device_memory, machine.disk, machine.bus_in_gb_s) == (8 * 2**30, 10**12, 12.0)
    assert (machine.disk_read_gb_s, machine.disk_write_gb_s) == (3.0, 0.0), "0: not known"
    assert machine.notes == (("device_memory", "data sheet"), ("bus_in_gb_s", "assumed: half of it"))
    assert machine.turn_seconds(1e6, 2, 2e6) == pytest.approx(2e-3 + 10e-3 + 20e-3)
    assert machine.turn_seconds(1e6, 1, None) == pytest.approx(5e-3), "a piece on its way there"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("bus_in_gb_s: 12 ", "bus_in_gbs: 12 "), "Did you mean `bus_in_gb_s`"),
        (("cores: 8\n", ""), "does not say `cores`"),
        (("device: gpu", "device: tpu"), "cpu or gpu"),
        (("hand_over_us: 100", "hand_over_us: -1"), "must be positive"),
        (("host_adam_gb_s: 20", "host_adam_gb_s: 0"), "must be positive"),
        (("host_adam_gb_s: 20", "host_adam_gb_s: fast"), "must be a number"),
        (("8GiB", "8 apples"), "Not a size in bytes"),
        ((GOOD, "- a list"), "is not a list of `key: value` lines"),
        ((GOOD, "a: [1"), "Cannot read the machine"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    with pytest.raises(ClmError, match=said.replace("(", r"\(")):
        load_machine(write(tmp_path, GOOD.replace(*change)))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ClmError, match=r"rtx5090.*h200.*rtx4090"):
        load_machine("rtx5090")


def test_bytes_that_rates_count_are_those_of_the_arrays() -> None:
    rows = 7
    for moments in ("f32", "bf16"):
        store = Store(rows, moments=moments)
        store.append(np.zeros((rows, 12), np.float32), np.zeros((rows, 48), np.float32))
        state = sum(getattr(store, name).nbytes for name in store.names if name != "keys")
        staged, gradients = 4 * row_floats(rows, 48), 4 * gradient_floats(rows, 48)
        assert Arena(rows).bytes == staged + gradients
        assert rows * row_bytes(48) == staged and rows * gradient_bytes(48) == gradients
        assert rows * adam_bytes(48, moments) == 2 * state + gradients + store.entries.nbytes
        assert rows * fetch_bytes(48, moments) == state - store.statistics.nbytes + staged
    assert row_bytes(48) - row_bytes(3) == gradient_bytes(48) - gradient_bytes(3) == 4 * 45
