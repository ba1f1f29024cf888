"""The device budget: stated, or what is free; never more than there is, and always said where it is not the user's number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from clm.device.budget import DeviceBudget, find_device_budget, reserve_bytes
from clm.device.cpu import CpuDevice
from clm.errors import ResourceError
from clm.plan.budget import SLOT_BYTES, store_bytes
from clm.run.events import Message
from clm.run.host_memory import resident_bytes
from clm.units import parse_bytes, size_flag
from tests.demo_run import FIXED, of_type, read_json, run_demo

GIB = 1 << 30


class Card(CpuDevice):
    """A device that has memory of its own."""

    def __init__(self, free: int, total: int = 24 * GIB):
        self._memory = free, total

    def free_memory(self) -> Any:
        return self._memory


def test_auto_takes_what_is_free_less_a_reserve_and_says_so() -> None:
    budget = find_device_budget("auto", Card(22 * GIB))
    assert budget.bytes == 22 * GIB - reserve_bytes(24 * GIB)
    assert budget.reason.startswith("gpu-memory auto: 21.3 GiB, because 22.0 GiB of the device is free")
    assert reserve_bytes(4 * GIB) == 512 << 20


def test_a_stated_budget_beyond_what_is_free_is_taken_down_and_the_number_that_works_is_named() -> None:
    said: list[str] = []
    card = Card(10 * GIB)
    assert find_device_budget("8GiB", card, said.append) == DeviceBudget(8 * GIB) and not said
    budget = find_device_budget("24GiB", card, said.append)
    assert budget.bytes == 10 * GIB - reserve_bytes(24 * GIB) and "10.0 GiB that is free" in said[0]
    named = re.search(r"`--gpu-memory (\S+)`", said[0])
    assert named and 0 <= budget.bytes - parse_bytes(named[1]) < 1 << 20
    assert find_device_budget(named[1], card, said.append).bytes == parse_bytes(named[1]) and len(said) == 1


@pytest.mark.parametrize("text", ["auto", "8GiB"])
def test_a_device_that_is_full_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ResourceError, match=r"24.0 GiB only 300.0 MiB is free.*--device cpu"):
        find_device_budget(text, Card(300 << 20))


def test_on_the_cpu_the_rows_and_the_arena_share_what_the_host_has() -> None:
    budget = find_device_budget("auto", CpuDevice())
    assert budget == DeviceBudget(None)
    assert budget.beside(1000, "f32", 10 * GIB, "auto") == 10 * GIB
    assert budget.beside(1000, "f32", 10 * GIB, "host") == 10 * GIB - store_bytes(1000)


def test_a_run_without_a_stated_budget_keeps_everything_where_it_is_on_the_cpu(tmp_path: Path) -> None:
    run_demo(tmp_path / "run", **{**FIXED, "iterations": 8})
    report = read_json(tmp_path / "run" / "report.json")
    assert report["offload"] == "none" and report["traffic"]["rows_loaded"] == 0


def test_a_host_that_cannot_hold_rows_and_arena_is_refused_with_a_number_that_works(tmp_path: Path) -> None:
    """The first refusal is of the program alone; what it names may leave too little for the rows, and is then refused, too."""
    options, stated = {**FIXED, "iterations": 8}, "1MiB"
    for attempt in range(3):
        try:
            run_demo(tmp_path / str(attempt), **options, host_memory=stated)
            break
        except ResourceError as refused:
            named = re.search(r"`--host-memory (\S+)`", str(refused))
            assert named and parse_bytes(named[1]) > parse_bytes(stated), refused
            stated = named[1]
    assert attempt in (1, 2), "1 MiB is refused, and what is named works"


def test_host_offload_without_a_stated_budget_leaves_the_arena_what_the_store_does_not_take(tmp_path: Path) -> None:
    base, room = resident_bytes(), 128 << 20
    stated = size_flag(base + room)
    events = run_demo(tmp_path / "run", **{**FIXED, "iterations": 8, "offload": "host", "host_memory": stated})
    report = read_json(tmp_path / "run" / "report.json")
    assert report["peak"]["device_bytes"] + store_bytes(report["num_gaussians"]) <= room + (1 << 20)
    assert report["peak"]["device_bytes"] > 100 * SLOT_BYTES and of_type(events, Message)
