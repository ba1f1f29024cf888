"""The receipt of a run: traffic, lanes and peaks, added up batch by batch and written to `report.json`."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from clm.forecast.machine import gradient_bytes, row_bytes
from clm.plan.residency import Traffic
from clm.run.disk_account import DiskTotals
from clm.stream.spans import LaneSeconds


@dataclass
class Totals:
    """Sums over the batches of a run, across resumes; what `report.json` is made of."""

    seconds: float = 0.0
    batch_seconds: float = 0.0
    images: int = 0
    rows_loaded: int = 0
    bytes_loaded: int = 0
    bytes_sent_back: int = 0
    rows_loaded_no_reuse: int = 0
    rows_loaded_consecutive_reuse: int = 0
    rows_lower_bound: int = 0
    device_bytes: int = 0
    device_reserved_bytes: int = 0
    host_bytes: int = 0
    in_core_bytes: int = 0
    rebuilds: int = 0
    rebuild_seconds: float = 0.0
    rows_changed: int = 0  # by rebuilds: rows that left or came, or all of them
    lanes: LaneSeconds = field(default_factory=LaneSeconds)
    disk: DiskTotals | None = None  # None: no row was ever on disk

    def add_disk(self, done: DiskTotals | None) -> None:
        """Count what the disk tier did; None: there is none now."""
        if done is not None:
            self.disk = self.disk or DiskTotals()
            self.disk.add(done)

    def add_traffic(self, traffic: Traffic, columns: int, colour_bus: str) -> None:
        """Count what one batch moved over the bus; bytes are of the active colour columns. colour_bus: f32 or bf16."""
        self.rows_loaded += traffic.loaded
        self.rows_loaded_no_reuse += traffic.no_reuse
        self.rows_loaded_consecutive_reuse += traffic.consecutive_reuse
        self.rows_lower_bound += traffic.lower_bound
        row, gradient = row_bytes(columns, colour_bus), gradient_bytes(columns)
        self.bytes_loaded += traffic.loaded * row + traffic.loaded_partial * gradient
        self.bytes_sent_back += traffic.sent_back * gradient

    def see_peak(self, device_bytes: int, host_bytes: int, in_core_bytes: int, device_reserved_bytes: int = 0) -> None:
        """device_bytes: what the run uses there; device_reserved_bytes: what its allocator keeps from others."""
        self.device_bytes = max(self.device_bytes, device_bytes)
        self.device_reserved_bytes = max(self.device_reserved_bytes, device_reserved_bytes)
        self.host_bytes = max(self.host_bytes, host_bytes)
        self.in_core_bytes = max(self.in_core_bytes, in_core_bytes)

    def state(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class RankTotals:
    """What one of several ranks has to say for the receipt."""

    totals: Totals
    rows: int
    device_budget: int
    host_budget: int
    sent_bytes: list[int]  # to each rank, of images that were trained since it started
    images: int
    network_seconds: float  # in calls to other ranks, waiting included


def together(each: Sequence[RankTotals]) -> Totals:
    """Of a run by several ranks: what crossed their buses and what was rebuilt is summed, clocks and peaks are those of rank 0."""
    summed = (
        *("rows_loaded", "bytes_loaded", "bytes_sent_back", "rows_loaded_no_reuse", "rows_loaded_consecutive_reuse"),
        *("rows_lower_bound", "in_core_bytes", "rows_changed"),
    )
    all_of_them = replace(each[0].totals, disk=None)
    for rank in each:
        all_of_them.add_disk(rank.totals.disk)
    return replace(all_of_them, **{name: sum(getattr(rank.totals, name) for rank in each) for name in summed})


def of_each(each: Sequence[RankTotals]) -> dict[str, Any]:
    """`ranks` of the receipt: lists have one number for each rank."""
    sent = sum(sum(rank.sent_bytes) for rank in each)
    return {
        "world": len(each),
        "rows": [rank.rows for rank in each],
        "device_bytes": [rank.totals.device_bytes for rank in each],
        "host_bytes": [rank.totals.host_bytes for rank in each],
        "budget_device_bytes": [rank.device_budget for rank in each],
        "budget_host_bytes": [rank.host_budget for rank in each],
        "network": {
            "bytes": sent,
            "bytes_per_image": sent / max(each[0].images, 1),
            "bytes_to_each": [rank.sent_bytes for rank in each],
            "seconds": [rank.network_seconds for rank in each],
        },
    }


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far. `ru_maxrss` would also know the process that started this one."""
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def report(totals: Totals, iteration: int, num_gaussians: int, device: str, offload: str) -> dict[str, Any]:
    """The contract of `report.json` (docs/design.md), plus seconds spent planning."""
    lanes = totals.lanes
    return {
        "seconds": totals.seconds,
        "iterations": iteration,
        "images_per_second": totals.images / totals.batch_seconds if totals.batch_seconds else 0.0,
        "num_gaussians": num_gaussians,
        "device": device,
        "offload": offload,
        "peak": {
            "device_bytes": totals.device_bytes,
            "device_reserved_bytes": totals.device_reserved_bytes,
            "host_bytes": totals.host_bytes,
            "disk_bytes": totals.disk.disk_bytes if totals.disk else 0,
            "rss_bytes": peak_rss_bytes(),
        },
        "traffic": {
            "rows_loaded": totals.rows_loaded,
            "bytes_loaded": totals.bytes_loaded,
            "bytes_sent_back": totals.bytes_sent_back,
            "rows_loaded_no_reuse": totals.rows_loaded_no_reuse,
            "rows_loaded_consecutive_reuse": totals.rows_loaded_consecutive_reuse,
            "rows_lower_bound": totals.rows_lower_bound,
        },
        "lanes": {
            "load": lanes.load,
            "compute": lanes.compute,
            "send_back": lanes.send_back,
            "update": lanes.update,
            "hidden_fraction": lanes.hidden_fraction,
            "exposed": lanes.exposed,
            "plan": lanes.plan,
            "plan_exposed": lanes.plan_exposed,
            **({"network": lanes.network} if lanes.network else {}),
        },
        "rebuilds": {
            "count": totals.rebuilds,
            "seconds": totals.rebuild_seconds,
            "rows_changed": totals.rows_changed,
        },
        **({"disk": totals.disk.report()} if totals.disk else {}),
        "in_core_bytes": totals.in_core_bytes,
    }
