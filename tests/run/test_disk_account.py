"""The receipt counts what the disk tier does once, whichever parts did it and however often the run was resumed."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from clm.run.disk_account import DiskMeter, DiskPart, DiskTotals
from clm.run.records import restored
from clm.run.totals import Totals, report


def part(step: int, size: int = 4096) -> DiskPart:
    """A part that has done something `step` times."""
    return SimpleNamespace(  # type: ignore[return-value]
        bytes_read=step * 100, bytes_written=step * 50, uses=step * 10, reads=step * 2, busy_seconds=step * 2.0,
        exposed_seconds=step * 0.5, disk_bytes=size,
    )  # fmt: skip


def test_each_byte_counts_once_over_batches_parts_and_resumes() -> None:
    totals, meter, first = Totals(), DiskMeter(), part(1)
    totals.add_disk(meter.since(first))
    first.__dict__.update(part(3, 8192).__dict__)
    totals.add_disk(meter.since(first))
    totals.add_disk(meter.since(first))
    totals.add_disk(meter.since(None))  # the rows left the disk
    totals.add_disk(meter.since(part(2)))  # and came back, to a part of its own
    assert totals.disk == DiskTotals.of(part(5, 8192))
    totals = restored(Totals, json.loads(json.dumps(totals.state())), "totals")
    totals.add_disk(DiskMeter().since(part(1)))
    told = report(totals, 1, 2, "cpu", "disk")
    assert told["disk"]["bytes_read"] == 600 and told["disk"]["bytes_written"] == 300
    assert told["disk"]["hit_rate"] == pytest.approx(0.8) and told["disk"]["hidden_fraction"] == pytest.approx(0.75)
    assert told["peak"]["disk_bytes"] == 8192


def test_a_run_whose_rows_were_never_on_disk_says_nothing_of_one() -> None:
    told = report(Totals(), 1, 2, "cpu", "host")
    assert "disk" not in told and told["peak"]["disk_bytes"] == 0
    assert DiskTotals().hit_rate == DiskTotals().hidden_fraction == 1.0
    assert restored(Totals, {"images": 3}, "totals").disk is None, "a checkpoint of an earlier version"
