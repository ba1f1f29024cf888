"""When each lane does what, predicted from the plans that run and the rates of a machine. A pure function; no device.

The rules are those of the executor (`clm/stream/lanes.py`), per step i of a batch:
  load(i)       early rows wait for send back(i-2), late rows for send back(i-1), which releases their slots; rows are
                gathered on the host into one of two staging buffers, moved over the bus, placed in their slots
  compute(i)    waits for load(i) and compute(i-1)
  send back(i)  waits for compute(i) and for update(i-2), whose staging buffer it takes; gradients are gathered on the
                device, which releases the slots, and moved over the bus
  update(i)     Adam on the host, after its gradients have arrived
  plan          of the next batch, on one host thread beside compute
A batch begins when the one before has ended, updates, plan and published cull entries included. Rows of resident blocks
cost neither bus nor host time: they are fetched and updated in device memory. On a CPU device the bus is a copy, and
everything shares the cores.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from clm.plan.machine import Machine, adam_bytes, fetch_bytes, gradient_bytes, row_bytes
from clm.plan.residency import Plan, Step
from clm.plan.tasks import Graph, Task, run

LANES = ("load", "upload", "compute", "send_back", "download", "update", "plan")
_MOVING = ("load", "upload", "send_back", "download", "update")  # the lanes that compute can hide
_STAGING = 2  # staging buffers in each direction
_ENTRY_TRAFFIC = 80  # publishing: cull entry read twice and written once, its id, its share of the block bounds


@dataclass(frozen=True)
class Span:
    """One piece of work of a lane, in seconds from the beginning of the first batch."""

    lane: str
    name: str
    batch: int
    step: int  # view of the batch; -1: of the whole batch
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """What happens in `batches` batches. `exposed`: seconds that compute stood waiting for a lane; `plan_exposed`: that a
    batch waited for the next plan and the publishing of cull entries after its last update."""

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
        work = sum(self.lanes[name] for name in _MOVING)
        return 1.0 if work <= 0 else min(1.0, max(0.0, 1.0 - self.exposed / work))


@dataclass(frozen=True)
class Load:
    """Rows of one part of a step's loads: from the store, from resident blocks, and partial gradients that come along."""

    rows: float
    resident: float
    partial: float


@dataclass(frozen=True)
class StepCounts:
    """What one step moves and computes, in rows; counts may be scaled."""

    rows: float  # of the visible set
    pixels: float
    loads: tuple[Load, Load]  # early, late
    final: float  # rows of the store that are final: sent back and updated on the host
    final_resident: float  # rows of resident blocks that are final: updated on the device
    parked: float  # partial gradients of evicted rows that are sent back


def count_step(step: Step, pixels: float, resident: np.ndarray | None, scale: float) -> StepCounts:
    """Counts of a plan's step, times `scale`. resident [N] bool: rows that live on the device (None: no row does)."""
    early, late = slice(0, step.load_early), slice(step.load_early, None)
    loads = []
    for part in (early, late):
        rows, partial = step.load_rows[part], step.load_partial[part]
        on_device = 0 if resident is None else int(resident[rows].sum())
        partial_moved = partial if resident is None else partial & ~resident[rows]
        loads.append(Load(scale * (len(rows) - on_device), scale * on_device, scale * int(partial_moved.sum())))
    final = int(step.send_final.sum())
    kept = 0 if resident is None else int(resident[step.send_rows[step.send_final]].sum())
    parked = ~step.send_final if resident is None else ~step.send_final & ~resident[step.send_rows]
    return StepCounts(
        rows=scale * len(step.rows),
        pixels=pixels,
        loads=(loads[0], loads[1]),
        final=scale * (final - kept),
        final_resident=scale * kept,
        parked=scale * int(parked.sum()),
    )


def bus_bytes(counts: Iterable[StepCounts], columns: int) -> tuple[int, int]:
    """Bytes that cross the bus (to the device, back from it), as `report.json` counts them."""
    row, gradient = row_bytes(columns), gradient_bytes(columns)
    loaded = sent = 0.0
    for step in counts:
        loaded += sum(part.rows * row + part.partial * gradient for part in step.loads)
        sent += (step.final + step.parked) * gradient
    return round(loaded), round(sent)


def simulate(
    plans: Sequence[Plan],
    machine: Machine,
    pixels: Sequence[int],
    *,
    columns: int = 48,
    resident: np.ndarray | None = None,
    scale: float = 1.0,
) -> Timeline:
    """The timeline of consecutive batches.

    pixels: of each view, by the id that plans use; columns: active colour columns (3, 12, 27, 48); resident [N] bool: rows
    of resident blocks (all of them: `--offload none`); scale: Gaussians that each row of the plans stands for. Counts are
    scaled, arrays are not. Raises ValueError without plans.
    """
    if not plans:
        raise ValueError("there is no plan to simulate")
    batches = [[count_step(step, pixels[step.view], resident, scale) for step in plan.steps] for plan in plans]
    unions = [scale * len(plan.union_rows) for plan in plans]
    graph, ends = Graph(), []
    begin: tuple[int, ...] = ()
    for k, steps in enumerate(batches):
        following = batches[(k + 1) % len(batches)]  # behind the last batch runs another one
        last = _add_batch(graph, machine, columns, k, steps, following, unions[k], begin)
        ends.append(last)
        begin = (last.publish,)
    start, end = run(graph.tasks)
    return _timeline(graph.tasks, start, end, ends, batches, columns)


@dataclass(frozen=True)
class _Ends:
    """Indices of the tasks that the accounts need."""

    computes: tuple[int, ...]
    updates: tuple[int, ...]
    publish: int


def _add_batch(
    graph: Graph,
    machine: Machine,
    columns: int,
    batch: int,
    steps: Sequence[StepCounts],
    following: Sequence[StepCounts],
    union: float,
    begin: tuple[int, ...],
) -> _Ends:
    """The tasks of one batch; `following`: the batch that is planned beside it."""
    one_core = 1.0 / machine.cores
    rows = sum(step.rows for step in following)
    plan = graph.add("plan", "plan", batch, -1, "host", 1e-9 * machine.plan_ns_per_row * rows, one_core, *begin)
    compute_on, share = ("host", machine.compute_cores * one_core) if machine.on_cpu else ("device", 1.0)
    uploads: list[int] = []  # whose staging buffers the next loads take
    released: list[int] = []
    computes: list[int] = []
    updated: list[int] = []
    for i, step in enumerate(steps):
        placed = begin
        for part, waits_for in zip(step.loads, (i - 2, i - 1), strict=True):
            if part.rows + part.resident > 0:
                slots = (released[waits_for],) if waits_for >= 0 else ()
                placed = _add_load(graph, machine, columns, batch, i, part, uploads, *begin, *slots)
        seconds = machine.render_seconds(step.rows, step.pixels)
        computes.append(graph.add("compute", "compute", batch, i, compute_on, seconds, share, *begin, *placed))
        staging = (updated[i - _STAGING],) if i >= _STAGING else ()
        gathered, arrived = _add_send_back(graph, machine, columns, batch, i, step, computes[i], *staging)
        released.append(gathered)
        updated.append(_add_update(graph, machine, columns, batch, i, step, arrived))
    entries = union * _ENTRY_TRAFFIC / (1e9 * machine.host_gather_gb_s)
    publish = graph.add("plan", "publish", batch, -1, "host", entries, 1.0, plan, *computes[-1:], *updated[-1:], *begin)
    return _Ends(tuple(computes), tuple(updated), publish)


def _add_load(
    graph: Graph, machine: Machine, columns: int, batch: int, step: int, part: Load, uploads: list[int], *after: int
) -> tuple[int, ...]:
    """Gather, move, place one part of a step's rows; returns what compute waits for."""
    row, gradient, gather = row_bytes(columns), gradient_bytes(columns), 1e9 * machine.host_gather_gb_s
    device, bus = 1e9 * machine.device_gb_s, 1e9 * machine.bus_in_gb_s
    fixed = 1e-6 * machine.step_us
    gathering = (part.rows * fetch_bytes(columns) + part.partial * 2 * gradient) / gather
    moving = (part.rows * row + part.partial * gradient) / bus
    if machine.on_cpu:
        # Resident rows are fetched straight into their slots; the others pass through staging. Gradient rows are zeroed.
        direct = part.resident * (fetch_bytes(columns) / gather + gradient / device)
        return (graph.add("load", "load", batch, step, "host", fixed + gathering + moving + direct, 1.0, *after),)
    placing = (part.rows * (2 * row + gradient) + part.resident * (fetch_bytes(columns) + gradient)) / device
    if part.rows > 0:
        buffer = uploads[-_STAGING:-1] if len(uploads) >= _STAGING else []
        gathered = graph.add("load", "gather", batch, step, "host", fixed + gathering, 1.0, *after, *buffer)
        uploads.append(graph.add("upload", "upload", batch, step, "bus_in", moving, 1.0, gathered))
    return (graph.add("upload", "place", batch, step, "device", placing, 1.0, *after),)


def _add_send_back(
    graph: Graph, machine: Machine, columns: int, batch: int, step: int, counts: StepCounts, *after: int
) -> tuple[int, int]:
    """Gather the gradients of one step and move them; returns (slots are released, gradients have arrived)."""
    gradient, moved = gradient_bytes(columns), counts.final + counts.parked
    bus, fixed = 1e9 * machine.bus_out_gb_s, 1e-6 * machine.step_us if moved else 0.0
    if machine.on_cpu:
        sent = graph.add("send_back", "send back", batch, step, "host", fixed + moved * gradient / bus, 1.0, *after)
        return sent, sent
    gathering = fixed + moved * 2 * gradient / (1e9 * machine.device_gb_s)
    gathered = graph.add("send_back", "gather", batch, step, "device", gathering, 1.0, *after)
    return gathered, graph.add("download", "download", batch, step, "bus_out", moved * gradient / bus, 1.0, gathered)


def _add_update(
    graph: Graph, machine: Machine, columns: int, batch: int, step: int, counts: StepCounts, arrived: int
) -> int:
    """Adam on the final rows of one step, each where it lives; partial gradients are put away on the host."""
    adam, rate = adam_bytes(columns), 1e9 * machine.host_adam_gb_s
    fixed = 1e-6 * machine.step_us if counts.final + counts.final_resident else 0.0
    if machine.on_cpu:
        seconds = fixed + (counts.final + counts.final_resident) * adam / rate
        return graph.add("update", "update", batch, step, "host", seconds, 1.0, arrived)
    parking = counts.parked * 2 * gradient_bytes(columns) / (1e9 * machine.host_gather_gb_s)
    after = [arrived]
    if counts.final_resident > 0:
        seconds = counts.final_resident * adam / (1e9 * machine.device_gb_s)
        after.append(graph.add("update", "update resident", batch, step, "device", seconds, 1.0, arrived))
    return graph.add("update", "update", batch, step, "host", fixed + counts.final * adam / rate + parking, 1.0, *after)


def _timeline(
    tasks: Sequence[Task],
    start: np.ndarray,
    end: np.ndarray,
    ends: Sequence[_Ends],
    batches: Sequence[Sequence[StepCounts]],
    columns: int,
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
        now = end[last.publish]
        plan_exposed += now - finished
    loaded, sent = bus_bytes((step for steps in batches for step in steps), columns)
    return Timeline(
        spans=tuple(
            Span(t.lane, t.name, t.batch, t.step, float(a), float(b))
            for t, a, b in zip(tasks, start, end, strict=True)
            if b > a
        ),
        batches=len(batches),
        images=sum(len(steps) for steps in batches),
        seconds=float(now),
        lanes=lanes,
        resources=resources,
        exposed=float(exposed),
        plan_exposed=float(plan_exposed),
        bytes_loaded=loaded,
        bytes_sent_back=sent,
    )
