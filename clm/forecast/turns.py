"""The tasks of one batch on a machine: what each turn of a plan costs, and who waits for whom.

The rules are those of the executor (`clm/stream/lanes.py`), per turn i of a batch; rows move in parcels:
  route(i)      host    once turn i-4 is over
  gather(i)     host    after the parcel before, once an earlier one has left the staging buffer, and turn i-2 is over where pages
                        of its rows are on disk; then a copy over the bus
  early rows    device  placed once send back(i-2) has released their slots; late rows: send back(i-1)
  brought back  host    partial gradients, after their rows, once the parcel before has left the staging buffer
  compute(i)    device  after the rows of turn i and compute(i-1)
  send back(i)  device  after compute(i): gradients are collected parcel by parcel, once an earlier one has been read from the
                        staging buffer, and copied over the bus; resident rows are updated where they are, parcel by parcel,
                        and their cull entries copied back; then the slots are released
  update(i)     host    Adam, once the gradients of a parcel have arrived
  pages         disk    where rows are on disk: those that gather(i) lacks are read before it, each once the page that leaves
                        for it is used no more until then, and is written back; so are pages that left before update(i)
  plan          host    of the next batch, on one thread beside compute, once the first view is computed; before it, the
                        cull entries of the last batch are written
A batch begins when the updates of the one before have ended and its plan is made. Rows of resident blocks cost neither bus
nor host time: they are fetched and updated in device memory. On a CPU device there is no bus, a stream is the thread that
uses it, and everything shares the cores. `tests/forecast/test_simulate_edges.py` holds these waits against the lanes' own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from clm.forecast.disk_tasks import DiskTasks
from clm.forecast.machine import Machine, adam_bytes, fetch_bytes, gradient_bytes, row_bytes
from clm.forecast.paging import PagedTurn
from clm.forecast.tasks import Graph, Task
from clm.plan.budget import CULL_BYTES, TURNS_UNDER_WAY, staging_depth
from clm.plan.residency import Turn
from clm.store.layout import CHUNK_ROWS

_MOST_PARCELS = 16  # of one turn: more are simulated as so many larger ones
_ENTRY_TRAFFIC = 80  # publishing: cull entry read twice and written once, its id, its share of the block bounds


@dataclass(frozen=True)
class Load:
    """Rows of one part of a turn's loads: from the store, from resident blocks, and partial gradients that come back."""

    rows: float
    resident: float
    partial: float


@dataclass(frozen=True)
class TurnCounts:
    """What one turn moves and computes, in rows; counts may be scaled."""

    rows: float  # of the view, or of a piece of it
    pixels: float
    passes: int  # over the rows: to splats, back from them
    renders: bool  # whether the view is rasterised in this turn
    loads: tuple[Load, Load]  # early, late
    final: float  # rows of the store that are final: sent back and updated on the host
    final_resident: float  # rows of resident blocks that are final: updated on the device
    parked: float  # partial gradients of evicted rows: they go to the host, wherever their rows live


def count_turn(turn: Turn, pixels: float, resident: np.ndarray | None, scale: float) -> TurnCounts:
    """Counts of a plan's turn, times `scale`. pixels: of its view; resident [N] bool: rows that live on the device (None: no
    row does)."""
    loads = []
    for part in (slice(0, turn.load_early), slice(turn.load_early, None)):
        rows = turn.load_rows[part]
        on_device = 0 if resident is None else int(resident[rows].sum())
        partial = int(turn.load_partial[part].sum())
        loads.append(Load(scale * (len(rows) - on_device), scale * on_device, scale * partial))
    kept = 0 if resident is None else int(resident[turn.send_rows[: turn.finals]].sum())
    return TurnCounts(
        rows=scale * len(turn.rows),
        pixels=pixels,
        passes=turn.projects + turn.adds,
        renders=turn.renders,
        loads=(loads[0], loads[1]),
        final=scale * (turn.finals - kept),
        final_resident=scale * kept,
        parked=scale * turn.partials,
    )


@dataclass(frozen=True)
class Ends:
    """Indices of the tasks that the accounts need."""

    computes: tuple[int, ...]
    updates: tuple[int, ...]
    plan: int  # of the next batch


@dataclass(frozen=True)
class Rates:
    """Seconds of each piece of work for so many rows, on one machine and at one number of colour columns."""

    machine: Machine
    columns: int
    moments: str = "f32"  # in the store; a device with memory of its own keeps those of resident rows in f32
    colour_bus: str = "f32"

    @property
    def device(self) -> str:
        """The resource that device work takes."""
        return "host" if self.machine.on_cpu else "device"

    @property
    def fixed(self) -> float:
        return 1e-6 * self.machine.hand_over_us

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


def _parcels(rows: float) -> int:
    """In how many parcels so many rows move; none of no rows."""
    return min(math.ceil(rows / CHUNK_ROWS), _MOST_PARCELS)


def _depth(moved: Iterable[float]) -> int:
    """Staging buffers of one direction, where each turn moves so many rows."""
    return staging_depth(math.ceil(max(moved)))


def _free(emptied: Sequence[int], depth: int) -> tuple[int, ...]:
    """What the next parcel waits for: that the one whose buffer it gets, of `depth` that are taken in turn, is out of it."""
    return tuple(emptied[-depth:][:1]) if len(emptied) >= depth else ()


class BatchTasks:
    """Adds the tasks of one batch to a graph. Tasks of a turn may wait for those of earlier turns only."""

    def __init__(
        self,
        graph: Graph,
        rates: Rates,
        number: int,
        turns: Sequence[TurnCounts],
        begin: tuple[int, ...],
        disk: DiskTasks | None = None,
        paged: Sequence[PagedTurn] = (),
    ) -> None:
        self.graph, self.rates, self.number, self.begin = graph, rates, number, begin
        self.disk, self.paged = disk, paged
        # Staging is for the largest turn, wherever its rows live.
        self.load_depth = _depth(sum(part.rows + part.resident for part in turn.loads) for turn in turns)
        self.send_depth = _depth(turn.final + turn.final_resident + turn.parked for turn in turns)
        # Per parcel:
        self.copied: list[int] = []  # its rows have left their staging buffer
        self.restored: list[int] = []  # its partial gradients have left theirs, of which there is one
        self.read: list[int] = []  # what came back in its staging buffer has been used
        self.taken: list[int] = []  # so have the cull entries of its resident rows
        # Per turn:
        self.handed: list[int] = []  # the load thread has done its part
        self.submitted: list[int] = []  # the send back thread has handed its part over to the device
        self.released: list[int] = []
        self.computes: list[int] = []
        self.updated: list[int] = []

    def add(self, lane: str, worker: str, name: str, turn: int, resource: str, seconds: float, *after: int) -> int:
        if self.rates.machine.on_cpu:  # a stream is the thread that uses it, and nothing has to arrive before Adam
            worker = {"copy in": "load", "copy out": "send back", "update": "send back"}.get(worker, worker)
        return self.graph.add(
            Task(lane, worker, name, self.number, turn, resource, seconds, after=(*self.begin, *after))
        )

    def load(self, i: int, turn: TurnCounts) -> int:
        """Gather, copy, place; returns what compute waits for."""
        apart = 2 if self.disk and self.paged[i].fetch else TURNS_UNDER_WAY
        over = (self.updated[i - apart],) if i >= apart else ()
        paged = self.disk.fetch(self.number, i, self.paged[i]) if self.disk else ()
        handed = placed = gathered = self.add("load", "load", "route", i, "host", 0.0, *over)
        for part, earlier in zip(turn.loads, (i - 2, i - 1), strict=True):
            parcels = _parcels(part.rows)
            for _ in range(parcels):
                parcel = Load(part.rows / parcels, 0.0, 0.0)
                gathered = self.gather(i, parcel.rows, *paged)
                handed, placed = self.arrive(i, parcel, earlier, gathered)
            if part.resident > 0:
                handed, placed = self.arrive(i, Load(0.0, part.resident, 0.0), earlier, handed)
            parcels = _parcels(part.partial)
            for _ in range(parcels):
                handed, placed = self.bring_back(i, part.partial / parcels)
        self.handed.append(handed)
        if self.disk:
            self.disk.over(self.number, i, False, gathered)
        return placed

    def gather(self, i: int, rows: float, *paged: int) -> int:
        """Rows from the store to the device's staging, once `paged` has brought them there."""
        rates, free = self.rates, _free(self.copied, self.load_depth)
        gathered = self.add("load", "load", "gather", i, "host", rates.gather(rows) + rates.fixed, *free, *paged)
        seconds = rates.copy_in(rows * row_bytes(rates.columns, rates.colour_bus))
        self.copied.append(self.add("load", "copy in", "copy in", i, "bus_in", seconds, gathered))
        return gathered

    def arrive(self, i: int, parcel: Load, earlier: int, before: int) -> tuple[int, int]:
        """Rows into the slots that turn `earlier` releases; returns (handed over, in their slots)."""
        rates = self.rates
        released = (self.released[earlier],) if earlier >= 0 else ()
        # The load thread hands work over as soon as send back was handed over; on the CPU that is when it is done.
        ready = released if rates.machine.on_cpu or earlier < 0 else (self.submitted[earlier],)
        handed = self.add("load", "load", "hand over", i, "host", 0.0, before, *ready)
        seconds = rates.place(parcel)
        return handed, self.add("load", "copy in", "place", i, rates.device, seconds, handed, *released)

    def bring_back(self, i: int, gradients: float) -> tuple[int, int]:
        """Partial gradients from the host into their slots; returns (handed over, in their slots)."""
        rates, free = self.rates, _free(self.restored, 1)
        parked = self.add("load", "load", "bring back", i, "host", rates.host_copy(gradients), *free)
        size = gradients * gradient_bytes(rates.columns)
        copied = self.add("load", "copy in", "bring back", i, "bus_in", rates.copy_in(size), parked)
        seconds = rates.move_gradients(gradients)
        self.restored.append(self.add("load", "copy in", "restore", i, rates.device, seconds, copied))
        return parked, self.restored[-1]

    def compute(self, i: int, turn: TurnCounts, placed: int) -> None:
        machine = self.rates.machine
        seconds = machine.turn_seconds(turn.rows, turn.passes, turn.pixels if turn.renders else None)
        share = machine.compute_cores / machine.cores if machine.on_cpu else 1.0
        task = Task(
            "compute", "compute", "render", self.number, i, self.rates.device, seconds, share, (*self.begin, placed)
        )
        self.computes.append(self.graph.add(task))

    def send_back(self, i: int, turn: TurnCounts) -> None:
        """Collect, copy and update final rows; update resident ones; park what leaves before its last use."""
        rates = self.rates
        last = self.add("send_back", "send back", "hand over", i, "host", 0.0, self.handed[i])
        updated, released = last, self.computes[i]
        paged = self.disk.update(self.number, i, self.paged[i]) if self.disk else ()
        parcels = _parcels(turn.final)
        for _ in range(parcels):
            last, released = self.collect(i, turn.final / parcels)
            seconds = rates.adam(turn.final / parcels, on_device=False) + rates.fixed
            updated = self.add("update", "update", "host adam", i, "host", seconds, released, *paged)
            self.read.append(updated)
        parcels = _parcels(turn.final_resident)
        for _ in range(parcels):
            last, released = self.device_adam(i, turn.final_resident / parcels)
            updated = self.add("update", "update", "entries", i, "host", 0.0, released)
            self.taken.append(updated)
        parcels = _parcels(turn.parked)
        for _ in range(parcels):
            last, released = self.collect(i, turn.parked / parcels)
            seconds = rates.host_copy(turn.parked / parcels)
            last = self.add("send_back", "send back", "park", i, "host", seconds, released)
            self.read.append(last)
        self.submitted.append(last)
        self.released.append(released)
        self.updated.append(self.add("update", "update", "updated", i, "host", 0.0, updated, released))
        if self.disk:
            self.disk.over(self.number, i, True, self.updated[-1])

    def collect(self, i: int, rows: float) -> tuple[int, int]:
        """Gradients of `rows` rows to the host; returns (handed over, arrived)."""
        rates, free = self.rates, _free(self.read, self.send_depth)
        handed = self.add("send_back", "send back", "hand over", i, "host", 0.0, self.handed[i], *free)
        seconds = rates.move_gradients(rows) + rates.fixed
        waits = handed, self.computes[i]
        collected = self.add("send_back", "copy out", "collect", i, rates.device, seconds, *waits)
        seconds = rates.copy_out(rows * gradient_bytes(rates.columns))
        return handed, self.add("send_back", "copy out", "copy out", i, "bus_out", seconds, collected)

    def device_adam(self, i: int, rows: float) -> tuple[int, int]:
        """Resident rows are updated, their cull entries come to the host; returns (handed over, arrived)."""
        rates, free = self.rates, _free(self.taken, self.send_depth)
        handed = self.add("send_back", "send back", "hand over", i, "host", 0.0, self.handed[i], *free)
        seconds, waits = rates.adam(rows, on_device=True), (handed, self.computes[i])
        stepped = self.add("update", "copy out", "device adam", i, rates.device, seconds, *waits)
        seconds = rates.copy_out(rows * CULL_BYTES)
        return handed, self.add("send_back", "copy out", "copy out", i, "bus_out", seconds, stepped)

    def plan(self, published: float, rows: float, first: int) -> int:
        """Cull entries of `published` rows are written, and the next batch is planned, which sees `rows` rows in all; not
        before the task `first`."""
        machine = self.rates.machine
        entries = published * _ENTRY_TRAFFIC / (1e9 * machine.host_gather_gb_s)
        self.add("update", "plan", "publish", -1, "host", entries, first)
        seconds, core = 1e-9 * machine.plan_ns_per_row * rows, 1.0 / machine.cores
        return self.graph.add(
            Task("plan", "plan", "cull, order, plan", self.number, -1, "host", seconds, core, (*self.begin, first))
        )


def add_batch(
    graph: Graph,
    rates: Rates,
    number: int,
    turns: Sequence[TurnCounts],
    following: Sequence[TurnCounts],
    published: float,
    begin: tuple[int, ...],
    disk: DiskTasks | None = None,
    paged: Sequence[PagedTurn] = (),
) -> Ends:
    """The tasks of one batch; `following`: the batch that is planned beside it; published: rows that the batch before it
    touched; disk: where rows are on one, and then `paged`, of each turn."""
    batch, planned = BatchTasks(graph, rates, number, turns, begin, disk, paged), -1
    for i, turn in enumerate(turns):
        placed = batch.load(i, turn)
        batch.compute(i, turn, placed)
        if i == 0:
            rows = sum(turn.rows for turn in following)
            planned = batch.plan(published, rows, batch.computes[0] if len(turns) > 1 else placed)
        batch.send_back(i, turn)
    return Ends(tuple(batch.computes), tuple(batch.updated), planned)
