"""The tasks of one batch on a machine: what each step of a plan costs, and who waits for whom.

The rules are those of the executor (`clm/stream/lanes.py`), per step i of a batch:
  gather(i)     host    after gather(i-1), once the copy of step i-2 has left its staging buffer; then one copy over the bus
  early rows    device  placed once send back(i-2) has released their slots; late rows: send back(i-1)
  compute(i)    device  after the rows of step i and compute(i-1)
  send back(i)  device  after compute(i), once update(i-2) has read the staging buffer: gradients are gathered and resident
                        rows updated where they are, which releases the slots; then one copy over the bus
  update(i)     host    Adam, once the gradients of step i have arrived
  plan          host    of the next batch, on one thread beside compute
A batch begins when the one before has ended, updates, plan and published cull entries included. Rows of resident blocks
cost neither bus nor host time: they are fetched and updated in device memory. On a CPU device there is no bus, a stream is
the thread that uses it, and everything shares the cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clm.plan.budget import CULL_BYTES
from clm.plan.machine import Machine, adam_bytes, fetch_bytes, gradient_bytes, row_bytes
from clm.plan.residency import Step
from clm.plan.tasks import Graph, Task

_STAGING = 2  # staging buffers in each direction
_ENTRY_TRAFFIC = 80  # publishing: cull entry read twice and written once, its id, its share of the block bounds


@dataclass(frozen=True)
class Load:
    """Rows of one part of a step's loads: from the store, from resident blocks, and partial gradients that come back."""

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
    parked: float  # partial gradients of evicted rows: they go to the host, wherever their rows live


def count_step(step: Step, pixels: float, resident: np.ndarray | None, scale: float) -> StepCounts:
    """Counts of a plan's step, times `scale`. resident [N] bool: rows that live on the device (None: no row does)."""
    loads = []
    for part in (slice(0, step.load_early), slice(step.load_early, None)):
        rows = step.load_rows[part]
        on_device = 0 if resident is None else int(resident[rows].sum())
        partial = int(step.load_partial[part].sum())
        loads.append(Load(scale * (len(rows) - on_device), scale * on_device, scale * partial))
    final = int(step.send_final.sum())
    kept = 0 if resident is None else int(resident[step.send_rows[step.send_final]].sum())
    return StepCounts(
        rows=scale * len(step.rows),
        pixels=pixels,
        loads=(loads[0], loads[1]),
        final=scale * (final - kept),
        final_resident=scale * kept,
        parked=scale * (len(step.send_rows) - final),
    )


@dataclass(frozen=True)
class Ends:
    """Indices of the tasks that the accounts need."""

    computes: tuple[int, ...]
    updates: tuple[int, ...]
    publish: int


@dataclass(frozen=True)
class Rates:
    """Seconds of each piece of work for so many rows, on one machine and at one number of colour columns."""

    machine: Machine
    columns: int
    moments: str = "f32"  # in the store; a device with memory of its own keeps those of resident rows in f32

    @property
    def device(self) -> str:
        """The resource that device work takes."""
        return "host" if self.machine.on_cpu else "device"

    @property
    def fixed(self) -> float:
        return 1e-6 * self.machine.step_us

    def gather(self, rows: float) -> float:
        return rows * fetch_bytes(self.columns, self.moments) / (1e9 * self.machine.host_gather_gb_s)

    def host_copy(self, gradients: float) -> float:
        return gradients * 2 * gradient_bytes(self.columns) / (1e9 * self.machine.host_gather_gb_s)

    def copy_in(self, size: float) -> float:
        return 0.0 if self.machine.on_cpu else size / (1e9 * self.machine.bus_in_gb_s)

    def copy_out(self, size: float) -> float:
        return 0.0 if self.machine.on_cpu else size / (1e9 * self.machine.bus_out_gb_s)

    def place(self, part: Load) -> float:
        """Rows from staging into slots, resident ones caught up into theirs, gradient rows zeroed."""
        row, gradient, fetch = row_bytes(self.columns), gradient_bytes(self.columns), fetch_bytes(self.columns)
        device = 1e9 * self.machine.device_gb_s
        if self.machine.on_cpu:
            zeroing = part.resident * gradient / device
            return part.rows * row / (1e9 * self.machine.bus_in_gb_s) + self.gather(part.resident) + zeroing
        return (part.rows * (2 * row + gradient) + part.resident * (fetch + gradient)) / device

    def move_gradients(self, rows: float) -> float:
        """Gradient rows between slots and staging."""
        if self.machine.on_cpu:
            return rows * gradient_bytes(self.columns) / (1e9 * self.machine.bus_out_gb_s)
        return rows * 2 * gradient_bytes(self.columns) / (1e9 * self.machine.device_gb_s)

    def adam(self, rows: float, on_device: bool) -> float:
        if on_device and not self.machine.on_cpu:
            return rows * adam_bytes(self.columns) / (1e9 * self.machine.device_gb_s)
        return rows * adam_bytes(self.columns, self.moments) / (1e9 * self.machine.host_adam_gb_s)


class BatchTasks:
    """Adds the tasks of one batch to a graph. Tasks of a step may wait for those of earlier steps only."""

    def __init__(self, graph: Graph, rates: Rates, number: int, begin: tuple[int, ...]):
        self.graph, self.rates, self.number, self.begin = graph, rates, number, begin
        # Per step:
        self.copied: list[int] = []  # its rows have left their staging buffer
        self.handed: list[int] = []  # the load thread has done its part
        self.submitted: list[int] = []  # the send back thread may hand its part over to the device
        self.released: list[int] = []
        self.computes: list[int] = []
        self.updated: list[int] = []

    def add(self, lane: str, worker: str, name: str, step: int, resource: str, seconds: float, *after: int) -> int:
        if self.rates.machine.on_cpu:  # a stream is the thread that uses it
            worker = {"copy in": "load", "copy out": "send back"}.get(worker, worker)
        return self.graph.add(
            Task(lane, worker, name, self.number, step, resource, seconds, after=(*self.begin, *after))
        )

    def load(self, i: int, step: StepCounts) -> int:
        """Gather, copy, place; returns what compute waits for."""
        rates, rows = self.rates, sum(part.rows for part in step.loads)
        seconds = rates.gather(rows) + (rates.fixed if rows else 0.0)
        staging = self.copied[i - _STAGING : i - _STAGING + 1] if i >= _STAGING else []
        handed = gathered = self.add("load", "load", "gather", i, "host", seconds, *staging)
        size = rows * row_bytes(rates.columns)
        placed = self.add("load", "copy in", "copy in", i, "bus_in", rates.copy_in(size), gathered)
        self.copied.append(placed)
        for part, earlier in zip(step.loads, (i - 2, i - 1), strict=True):
            if part.rows + part.resident == 0:
                continue
            released = (self.released[earlier],) if earlier >= 0 else ()
            # The load thread hands work over as soon as send back was handed over; on the CPU that is when it is done.
            ready = released if rates.machine.on_cpu or earlier < 0 else (self.submitted[earlier],)
            handed = self.add("load", "load", "hand over", i, "host", 0.0, *ready)
            seconds = rates.place(part)
            placed = self.add("load", "copy in", "place", i, rates.device, seconds, handed, *released)
            if part.partial > 0:
                handed, placed = self.bring_back(i, part.partial)
        self.handed.append(handed)
        return placed

    def bring_back(self, i: int, gradients: float) -> tuple[int, int]:
        """Partial gradients from the host into their slots; returns (handed over, in their slots)."""
        rates = self.rates
        parked = self.add("load", "load", "bring back", i, "host", rates.host_copy(gradients))
        size = gradients * gradient_bytes(rates.columns)
        copied = self.add("load", "copy in", "bring back", i, "bus_in", rates.copy_in(size), parked)
        seconds = rates.move_gradients(gradients)
        return parked, self.add("load", "copy in", "restore", i, rates.device, seconds, copied)

    def compute(self, i: int, step: StepCounts, placed: int) -> None:
        machine = self.rates.machine
        seconds = machine.render_seconds(step.rows, step.pixels)
        share = machine.compute_cores / machine.cores if machine.on_cpu else 1.0
        task = Task(
            "compute", "compute", "render", self.number, i, self.rates.device, seconds, share, (*self.begin, placed)
        )
        self.computes.append(self.graph.add(task))

    def send_back(self, i: int, step: StepCounts) -> int:
        """Gather gradients, update resident rows, copy; returns what update waits for."""
        rates, moved = self.rates, step.final + step.parked
        staging = self.updated[i - _STAGING : i - _STAGING + 1] if i >= _STAGING else []
        self.submitted.append(self.add("send_back", "send back", "hand over", i, "host", 0.0, self.handed[i], *staging))
        seconds = rates.move_gradients(moved) + (rates.fixed if moved else 0.0)
        waits = self.submitted[i], self.computes[i]
        released = self.add("send_back", "copy out", "collect", i, rates.device, seconds, *waits)
        if step.final_resident > 0:
            seconds = rates.adam(step.final_resident, on_device=True)
            released = self.add("update", "copy out", "device adam", i, rates.device, seconds, released)
        self.released.append(released)
        size = moved * gradient_bytes(rates.columns) + step.final_resident * CULL_BYTES
        sent = self.add("send_back", "copy out", "copy out", i, "bus_out", rates.copy_out(size), released)
        if step.parked > 0:
            sent = self.add("send_back", "send back", "park", i, "host", rates.host_copy(step.parked), sent)
        return sent

    def update(self, i: int, step: StepCounts, sent: int) -> None:
        seconds = self.rates.adam(step.final, on_device=False) + (self.rates.fixed if step.final else 0.0)
        self.updated.append(self.add("update", "update", "host adam", i, "host", seconds, sent))


def add_batch(
    graph: Graph,
    rates: Rates,
    number: int,
    steps: Sequence[StepCounts],
    following: Sequence[StepCounts],
    union: float,
    begin: tuple[int, ...],
) -> Ends:
    """The tasks of one batch; `following`: the batch that is planned beside it; union: rows that it touches."""
    machine, batch = rates.machine, BatchTasks(graph, rates, number, begin)
    rows = sum(step.rows for step in following)
    seconds, core = 1e-9 * machine.plan_ns_per_row * rows, 1.0 / machine.cores
    graph.add(Task("plan", "plan", "cull, order, plan", number, -1, "host", seconds, core, begin))
    for i, step in enumerate(steps):
        batch.compute(i, step, batch.load(i, step))
        batch.update(i, step, batch.send_back(i, step))
    entries = union * _ENTRY_TRAFFIC / (1e9 * machine.host_gather_gb_s)
    # Behind the plan, which reads the old entries: the same worker does both.
    publish = batch.add("plan", "plan", "publish", -1, "host", entries, *batch.computes[-1:], *batch.updated[-1:])
    return Ends(tuple(batch.computes), tuple(batch.updated), publish)
