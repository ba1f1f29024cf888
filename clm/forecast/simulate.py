"""When each lane does what, predicted from the plans that run and the rates of a machine. A pure function; no device.

What a batch consists of, and who waits for whom, is `clm.forecast.turns`; how tasks share the machine is `clm.forecast.tasks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from clm.forecast.machine import Machine, gradient_bytes, row_bytes
from clm.forecast.tasks import Graph, Task, run
from clm.forecast.turns import Ends, Rates, TurnCounts, add_batch, count_turn
from clm.plan.residency import Plan

LANES = ("load", "compute", "send_back", "update", "plan")  # as in `report.json`
WORKERS = ("load", "copy in", "compute", "copy out", "send back", "update", "plan")  # threads of the host, streams


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
) -> Timeline:
    """The timeline of consecutive batches.

    pixels: of each view, by the id that plans use; columns: active colour columns (3, 12, 27, 48); resident [N] bool: rows
    of resident blocks (all of them: `--offload none`); scale: Gaussians that each row of the plans stands for. Counts are
    scaled, arrays are not. moments: how the store keeps them (`--moments`); colour_bus: how colours are loaded. Raises
    ValueError without plans.
    """
    if not plans:
        raise ValueError("there is no plan to simulate")
    batches = [[count_turn(turn, pixels[turn.view], resident, scale) for turn in plan.turns] for plan in plans]
    unions = [scale * len(plan.union_rows) for plan in plans]
    graph, ends, rates = Graph(), [], Rates(machine, columns, moments, colour_bus)
    begin: tuple[int, ...] = ()
    for k, turns in enumerate(batches):
        following = batches[(k + 1) % len(batches)]  # behind the last batch runs another one
        last = add_batch(graph, rates, k, turns, following, unions[k - 1], begin)
        ends.append(last)
        begin = (*last.updates, last.plan)
    start, end = run(graph.tasks)
    return _timeline(graph.tasks, start, end, ends, batches, rates)


def _timeline(
    tasks: Sequence[Task],
    start: np.ndarray,
    end: np.ndarray,
    ends: Sequence[Ends],
    batches: Sequence[Sequence[TurnCounts]],
    rates: Rates,
) -> Timeline:
    lanes, resources = dict.fromkeys(LANES, 0.0), {"host": 0.0, "bus_in": 0.0, "bus_out": 0.0, "device": 0.0}
    for task, began, ended in zip(tasks, start, end, strict=True):
        lanes[task.lane] += float(ended - began)
        resources[task.resource] += task.seconds * task.share
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
