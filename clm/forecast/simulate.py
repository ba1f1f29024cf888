"""When each lane does what, predicted from the plans that run and the rates of a machine. A pure function; no device.

What a batch consists of, and who waits for whom, is `clm.forecast.turns`; how tasks share the machine is `clm.forecast.tasks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clm.forecast.disk_tasks import DiskTasks
from clm.forecast.machine import Machine, gradient_bytes, row_bytes
from clm.forecast.paging import Paging
from clm.forecast.tasks import Graph, Task, run
from clm.forecast.turns import Ends, Rates, TurnCounts, add_batch, count_turn
from clm.plan.residency import Plan

LANES = ("load", "compute", "send_back", "update", "plan", "disk")  # as in `report.json`
# Threads of the host, streams, and requests of the disk.
WORKERS = ("disk in", "load", "copy in", "compute", "copy out", "send back", "update", "disk out", "plan")
RESOURCES = ("host", "bus_in", "bus_out", "device", "disk")


@dataclass(frozen=True)
class Span:
    """One piece of work of a lane, in seconds from the beginning of the first batch. `worker` does one at a time."""

    lane: str
    worker: str
    name: str
    batch: int
    turn: int  # of the batch; -1: work of the whole batch
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """What happens in `batches` batches. `exposed`: seconds that compute stood waiting for a lane; `plan_exposed`: that a
    batch waited for its plan after the last update of the one before."""

    spans: tuple[Span, ...]
    batches: int
    images: int
    seconds: float
    lanes: dict[str, float]  # busy seconds
    resources: dict[str, float]  # seconds of work, alone and at full share
    exposed: float
    plan_exposed: float
    bytes_loaded: int
    bytes_sent_back: int
    paging: Paging | None = None  # where rows are on disk
    disk_exposed: float = 0.0  # of `exposed`: what a disk that takes no time would save

    @property
    def disk_hidden_fraction(self) -> float:
        """Share of the disk's work that compute did not wait for (as in `report.json`)."""
        work = self.lanes["disk"]
        return 1.0 if work <= 0 else min(1.0, max(0.0, 1.0 - self.disk_exposed / work))

    @property
    def seconds_per_batch(self) -> float:
        return self.seconds / self.batches

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds > 0 else float("inf")

    @property
    def hidden_fraction(self) -> float:
        """Share of the lanes' work that compute did not wait for (as in `report.json`)."""
        work = self.lanes["load"] + self.lanes["send_back"] + self.lanes["update"]
        return 1.0 if work <= 0 else min(1.0, max(0.0, 1.0 - self.exposed / work))


def bus_bytes(counts: Iterable[TurnCounts], columns: int, colour_bus: str = "f32") -> tuple[int, int]:
    """Bytes that cross the bus (to the device, back from it), as `report.json` counts them."""
    row, gradient = row_bytes(columns, colour_bus), gradient_bytes(columns)
    loaded = sent = 0.0
    for turn in counts:
        loaded += sum(part.rows * row + part.partial * gradient for part in turn.loads)
        sent += (turn.final + turn.parked) * gradient
    return round(loaded), round(sent)


def simulate(
    plans: Sequence[Plan],
    machine: Machine,
    pixels: Sequence[int],
    *,
    columns: int = 48,
    resident: np.ndarray | None = None,
    scale: float = 1.0,
    moments: str = "f32",
    colour_bus: str = "f32",
    paging: Paging | None = None,
) -> Timeline:
    """The timeline of consecutive batches.

    pixels: of each view, by the id that plans use; columns: active colour columns (3, 12, 27, 48); resident [N] bool: rows
    of resident blocks (all of them: `--offload none`); scale: Gaussians that each row of the plans stands for. Counts are
    scaled, arrays are not. moments: how the store keeps them (`--moments`); colour_bus: how colours are loaded; paging: what
    the disk does for these batches, where rows are on one. Raises ValueError without plans.
    """
    if not plans:
        raise ValueError("there is no plan to simulate")
    batches = [[count_turn(turn, pixels[turn.view], resident, scale) for turn in plan.turns] for plan in plans]
    unions = [scale * len(plan.union_rows) for plan in plans]
    graph, ends, rates = Graph(), [], Rates(machine, columns, moments, colour_bus)
    begin: tuple[int, ...] = ()
    disk = DiskTasks(graph, machine) if paging else None
    for k, turns in enumerate(batches):
        paged = paging.batches[k] if paging else ()
        following = batches[(k + 1) % len(batches)]  # behind the last batch runs another one
        last = add_batch(graph, rates, k, turns, following, unions[k - 1], begin, disk, paged)
        ends.append(last)
        begin = (*last.updates, last.plan)
    start, end = run(graph.tasks)
    timeline = _timeline(graph.tasks, start, end, ends, batches, rates)
    if paging is None:
        return timeline
    options: dict[str, Any] = {"columns": columns, "resident": resident, "scale": scale}
    without = simulate(plans, machine, pixels, moments=moments, colour_bus=colour_bus, **options)
    return replace(timeline, paging=paging, disk_exposed=max(0.0, timeline.exposed - without.exposed))


def _timeline(
    tasks: Sequence[Task],
    start: np.ndarray,
    end: np.ndarray,
    ends: Sequence[Ends],
    batches: Sequence[Sequence[TurnCounts]],
    rates: Rates,
) -> Timeline:
    lanes, resources = dict.fromkeys(LANES, 0.0), dict.fromkeys(RESOURCES, 0.0)
    for task, began, ended in zip(tasks, start, end, strict=True):
        lanes[task.lane] += float(ended - began)
        resources[task.resource] += task.seconds * task.share
    lanes["disk"] = resources["disk"]  # reads and writes share it: both at once are not twice as busy
    exposed = plan_exposed = now = 0.0
    for last in ends:
        for k in last.computes:
            exposed += start[k] - now
            now = end[k]
        finished = max([now, *(end[k] for k in last.updates)])
        exposed += finished - now
        now = max(finished, end[last.plan])
        plan_exposed += now - finished
    counts = (turn for turns in batches for turn in turns)
    loaded, sent = bus_bytes(counts, rates.columns, rates.colour_bus)
    return Timeline(
        spans=tuple(
            Span(t.lane, t.worker, t.name, t.batch, t.turn, float(a), float(b))
            for t, a, b in zip(tasks, start, end, strict=True)
            if b > a or t.lane == "compute"
        ),
        batches=len(batches),
        images=sum(turn.renders for turns in batches for turn in turns),
        seconds=float(now),
        lanes=lanes,
        resources=resources,
        exposed=float(exposed),
        plan_exposed=float(plan_exposed),
        bytes_loaded=loaded,
        bytes_sent_back=sent,
    )
