"""Lanes on the CPU device: load, send back and update run in threads beside the caller, who computes.

The plan says what each lane does; the lanes only carry it out. Who waits for whom, per step i:
  load(i) early part   waits for send_back(i-2): its slots were free before step i-1 computed
  load(i) late part    waits for send_back(i-1): its slots are released by it
  compute(i)           waits for load(i)
  send_back(i)         waits for compute(i) (the caller submits it) and for update(i-2): it reuses that staging buffer
  update(i)            waits for send_back(i)
The store is only read by load and only written by update, and never the same rows in one batch: a row is final after its
last use. Cull entries of updated rows are collected and published by `finish`, so the next batch can be planned meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from clm.gaussians.store import Store
from clm.kernels import rows as row_kernels
from clm.kernels.rows import AdamStep
from clm.plan.residency import Plan, Step
from clm.stream.arena import Arena, GradientBuffer, RowStaging
from clm.stream.parking import ParkedGradients

_SEND_DEPTH = 2  # staging buffers between send back and update


@dataclass
class LaneSeconds:
    """Busy seconds per lane, and the seconds that compute stood waiting for a lane."""

    load: float = 0.0
    compute: float = 0.0
    send_back: float = 0.0
    update: float = 0.0
    exposed: float = 0.0
    plan: float = 0.0  # cull + order + plan, wherever it ran
    plan_exposed: float = 0.0

    def add(self, other: LaneSeconds) -> None:
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def hidden_fraction(self) -> float:
        """Share of the lanes' work that compute did not wait for."""
        work = self.load + self.send_back + self.update
        return 1.0 if work <= 0 else float(min(1.0, max(0.0, 1.0 - self.exposed / work)))


@dataclass
class _Batch:
    """One plan being carried out."""

    plan: Plan
    adam: AdamStep
    columns: int
    loaded: list[Future[None]]
    sent: list[Future[None]]
    updated: list[Future[None]]
    parked: ParkedGradients
    entries: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    seconds: LaneSeconds = field(default_factory=LaneSeconds)


class CpuLanes:
    """Carries out plans between a store and an arena. `resident`: the store is on the device itself, rows are caught up
    straight into their slots and Adam reads the gradient rows where they are; otherwise they pass through staging."""

    def __init__(self, store: Store, arena: Arena, *, resident: bool):
        self.store, self.arena, self.resident = store, arena, resident
        self._pools = {name: ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("load", "send_back", "update")}
        self._row_staging = RowStaging(0)
        self._grad_staging = [GradientBuffer(0) for _ in range(_SEND_DEPTH)]
        self._batch: _Batch | None = None

    @property
    def staging_bytes(self) -> int:
        return self._row_staging.bytes + sum(buffer.bytes for buffer in self._grad_staging)

    def begin(self, plan: Plan, adam: AdamStep, columns: int) -> None:
        """Start loading for `plan`; rows are caught up to `adam.step - 1`."""
        n = len(plan.steps)
        self._size_staging(plan)
        futures = [[Future() for _ in range(n)] for _ in range(3)]
        self._batch = _Batch(plan, adam, columns, *futures, parked=ParkedGradients())
        for i in range(n):
            self._submit("load", self._batch.loaded[i], self._load, i)

    def wait_loaded(self, i: int) -> None:
        """Compute waits here for the rows of step i."""
        self._wait(self._batch.loaded[i])

    def send_back(self, i: int) -> None:
        """Step i's gradients are complete: send back what the plan says and update the final rows."""
        batch = self._batch
        self._submit("send_back", batch.sent[i], self._send_back, i)
        self._submit("update", batch.updated[i], self._update, i)

    def finish(self) -> LaneSeconds:
        """Wait until every row of the batch is updated; then hand back the lanes' seconds."""
        batch = self._batch
        for future in batch.updated:
            self._wait(future)  # the next batch reads these rows
        return batch.seconds

    def publish_entries(self) -> None:
        """Write the new cull entries and block bounds. Not before the next batch's culling has read the old ones."""
        for rows, entries in self._batch.entries:
            row_kernels.put_entries(rows, entries, self.store.entries)
        if len(self._batch.plan.union_rows):
            self.store.refresh_blocks(self._batch.plan.union_rows)
        self._batch = None

    def close(self) -> None:
        """Stop the lanes; a batch that was abandoned half-way is cancelled, so that no lane waits for compute forever."""
        if self._batch is not None:
            for future in (*self._batch.sent, *self._batch.updated):
                if not future.done():
                    future.set_exception(CancelledError())
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)

    # The lanes' work, each in its own thread.

    def _load(self, batch: _Batch, i: int) -> None:
        step = batch.plan.steps[i]
        early = step.load_early
        if i >= 2:
            batch.sent[i - 2].result()  # early slots were released by step i-2 at the latest
        self._load_rows(batch, step, slice(0, early))
        if early < len(step.load_rows):
            batch.sent[i - 1].result()  # late slots are released by step i-1's send back
            self._load_rows(batch, step, slice(early, None))

    def _load_rows(self, batch: _Batch, step: Step, part: slice) -> None:
        rows, slots, partial = step.load_rows[part], step.load_slots[part], step.load_partial[part]
        if not len(rows):
            return
        started = time.perf_counter()
        arena, columns = self.arena, batch.columns
        if self.resident:
            row_kernels.fetch(self.store, batch.adam, rows, arena.geometry, arena.colour, columns, slots)
            row_kernels.place(None, slots, arena.geometry, arena.colour, arena, columns)
        else:
            staging = self._row_staging.geometry[: len(rows)], self._row_staging.colour[: len(rows)]
            row_kernels.fetch(self.store, batch.adam, rows, *staging, columns)
            row_kernels.place(staging, slots, arena.geometry, arena.colour, arena, columns)
        if partial.any():
            parked, positions = batch.parked.find(rows[partial])
            row_kernels.move_gradients(parked, positions, arena, slots[partial], len(positions), columns)
        batch.seconds.load += time.perf_counter() - started

    def _send_back(self, batch: _Batch, i: int) -> None:
        step = batch.plan.steps[i]
        if i >= _SEND_DEPTH:
            batch.updated[i - _SEND_DEPTH].result()  # Adam still reads the staging buffer this step writes
        started = time.perf_counter()
        final = step.send_final
        if not self.resident and final.any():
            slots = step.send_slots[final]
            staging = self._grad_staging[i % _SEND_DEPTH]
            row_kernels.move_gradients(self.arena, slots, staging, None, len(slots), batch.columns)
        if not final.all():
            batch.parked.park(step.send_rows[~final], self.arena, step.send_slots[~final], batch.columns)
        batch.seconds.send_back += time.perf_counter() - started

    def _update(self, batch: _Batch, i: int) -> None:
        batch.sent[i].result()  # the gradients of step i have left the arena
        step = batch.plan.steps[i]
        rows = step.send_rows[step.send_final]
        if not len(rows):
            return
        started = time.perf_counter()
        entries = np.empty((len(rows), 4), np.float32)
        slots = step.send_slots[step.send_final] if self.resident else None
        source = self.arena if self.resident else self._grad_staging[i % _SEND_DEPTH]
        row_kernels.adam(self.store, batch.adam, rows, source, slots, batch.columns, self.store.statistics, entries)
        batch.entries.append((rows, entries))
        batch.seconds.update += time.perf_counter() - started

    def _size_staging(self, plan: Plan) -> None:
        if self.resident:
            return
        loads = max((len(step.load_rows) for step in plan.steps), default=0)
        sends = max((int(step.send_final.sum()) for step in plan.steps), default=0)
        if loads > self._row_staging.rows:
            self._row_staging = RowStaging(loads + loads // 4)
        for k, buffer in enumerate(self._grad_staging):
            if sends > buffer.rows:
                self._grad_staging[k] = GradientBuffer(sends + sends // 4)

    def _submit(self, lane: str, future: Future[None], work: Callable[[_Batch, int], None], i: int) -> None:
        batch = self._batch

        def run() -> None:
            try:
                work(batch, i)
            except BaseException as error:
                if not future.done():
                    future.set_exception(error)  # compute sees it at its next wait
            else:
                if not future.done():
                    future.set_result(None)

        self._pools[lane].submit(run)

    def _wait(self, future: Future[None]) -> None:
        started = time.perf_counter()
        future.result()
        self._batch.seconds.exposed += time.perf_counter() - started
