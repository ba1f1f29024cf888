"""The lanes that carry a plan out: load, send back and update run beside the caller, who computes.

The plan says what each lane does; the lanes only carry it out. Three host threads (load, send back, update) do the host's
part and hand the rest to three streams of the device (load, compute, send back). Who waits for whom, per step i:

  gather(i)      host    waits until the copy of step i-2 has left its staging buffer
  early rows(i)  stream  wait until send back i-2 has released their slots: they were free before step i-1 computed
  late rows(i)   stream  wait until send back i-1 has released their slots
  compute(i)     stream  waits for the rows of step i
  send back(i)   stream  waits for compute i; the host waits until update i-2 has read the staging buffer it writes
  update(i)      host    waits until the gradients of step i have arrived

The store is only read by load and only written by update, and never the same rows in one batch: a row is final after its
last use. Rows of resident blocks take the same way without the bus: load catches them up into their slots, send back runs
Adam on them where their gradients are. Cull entries of updated rows are collected and published when the batch is over,
so the next batch can be planned meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

import numpy as np

from clm.gaussians.layout import CHUNK_ROWS
from clm.kernels import rows as row_kernels
from clm.kernels.rows import AdamStep
from clm.plan.residency import Plan, Traffic, held_after
from clm.stream.batch import Batch
from clm.stream.device import (
    Event,
    Indices,
    Moment,
    Rows,
    Staging,
    Stream,
    gradient_floats,
    packed_gradients,
    packed_rows,
    row_floats,
)
from clm.stream.route import Arrivals, route_step
from clm.stream.spans import LaneSeconds, Span, lane_seconds
from clm.stream.tiers import Tiers

T = TypeVar("T")
_DEPTH = 2  # staging buffers per direction: one is filled while the other is under way


def _after(future: Future[T], why: str) -> T:
    """What a lane of the host has finished, waited for here."""
    return future.result()


class _HostLane:
    """A thread that does what it is given, in order. Handing over costs a microsecond: an executor's future takes thirty."""

    def __init__(self, name: str):
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._closing = False
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def hand_over(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def at_rest(self) -> Future[None]:
        """Set once everything handed over so far is done."""
        rest: Future[None] = Future()
        self._work.put(lambda: rest.set_result(None))
        return rest

    def close(self) -> None:
        """Finish what is under way, drop what has not begun."""
        self._closing = True
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            if not self._closing:
                work()


class _Ring:
    """Staging buffers taken in turn, and the event after which each may be written again."""

    def __init__(self, tiers: Tiers, depth: int = _DEPTH):
        self._device = tiers.device
        self.buffers: list[Staging] = [self._device.staging(0) for _ in range(depth)]
        self.left: list[Event | None] = [None] * depth

    def reserve(self, floats: int) -> None:
        """While no lane works: room for `floats` in every buffer, and a quarter more."""
        for k, buffer in enumerate(self.buffers):
            if floats > buffer.floats:
                self.buffers[k] = self._device.staging(floats + floats // 4)
            self.left[k] = None

    @property
    def bytes(self) -> int:
        return sum(buffer.bytes for buffer in self.buffers)


class Lanes:
    """Carries out plans between the tiers. Invariant: between `finish` and the next `begin` all lanes are idle."""

    def __init__(self, tiers: Tiers):
        self.tiers = tiers
        self._host = {name: _HostLane(name) for name in ("load", "send_back", "update")}
        streams: list[Stream] = [tiers.device.stream(name) for name in ("load", "compute", "send_back")]
        self._load_stream, self.compute_stream, self._back_stream = streams
        self._rows, self._gradients, self._entries = _Ring(tiers), _Ring(tiers), _Ring(tiers)
        self._returning = _Ring(tiers, 1)  # partial gradients on their way back to the device
        self._under_way: Batch | None = None

    @property
    def _batch(self) -> Batch:
        assert self._under_way is not None, "no batch is under way"
        return self._under_way

    @property
    def staging_bytes(self) -> int:
        """On the host."""
        return sum(ring.bytes for ring in (self._rows, self._gradients, self._entries, self._returning))

    @property
    def device_staging_bytes(self) -> int:
        """Their counterparts on a device with memory of its own."""
        return 0 if self.tiers.device.shares_host_memory else self.staging_bytes

    @property
    def first_view(self) -> Future[Event]:
        """Set once the first view is computed (where it is the only one: once its rows are there). What can wait begins
        then: before, it would keep the first rows waiting."""
        steps = self._batch.steps
        return steps[0].computed if len(steps) > 1 else steps[0].loaded

    def begin(self, plan: Plan, adam: AdamStep, columns: int) -> None:
        """Start loading for `plan`; rows are caught up to `adam.step - 1`, `columns` of their colours are active."""
        self.tiers.device.start_clock()
        self._begin(Batch(plan, adam, columns, plan.traffic, plan.union_rows))

    def _begin(self, batch: Batch) -> None:
        if batch.plan.capacity > self.tiers.arena.slots:
            raise ValueError(f"a plan for {batch.plan.capacity} slots in an arena of {self.tiers.arena.slots}")
        self._size_staging(batch)
        self._under_way = batch
        for i, step in enumerate(batch.steps):
            self._submit("load", self._load, i, step.loaded)

    def compute(self, i: int, work: Callable[[Indices], T]) -> T:
        """Run `work(slots of step i)` on the device once its rows are there."""
        step, stream = self._batch.steps[i], self.compute_stream
        stream.wait(step.loaded.result(), "the rows of this step are in their slots")
        began = stream.record()
        result = stream.run(work, step.route.view_slots)
        done = stream.record()
        self._batch.marks.append(("compute", "render", i, began, done))
        step.computed.set_result(done)
        return result

    def send_back(self, i: int) -> None:
        """Step i's gradients are complete: send back what the plan says and update the final rows."""
        step = self._batch.steps[i]
        self._submit("send_back", self._send_back, i, step.released, step.sent)
        # Where nothing has to arrive first, the same thread goes on: waking another takes longer than it saves.
        lane = "send_back" if self.tiers.device.shares_host_memory else "update"
        self._submit(lane, self._update, i, step.updated)

    def finish(self) -> tuple[Traffic, LaneSeconds, list[Span]]:
        """Wait until every row of the batch is updated; then hand back what crossed the bus and what the lanes did."""
        batch = self._batch
        for step in batch.steps:
            _after(step.updated, "the next batch reads the rows that this one updates")
        ended, spans = time.perf_counter(), batch.spans()
        return batch.moved(self.tiers), lane_seconds(spans, batch.began, ended), spans

    def publish_entries(self) -> float:
        """Write the new cull entries and block bounds, not before the next batch's culling has read the old ones. Returns
        the seconds it took."""
        store, batch, began = self.tiers.store, self._batch, time.perf_counter()
        for rows, entries in batch.entries:
            row_kernels.put_entries(rows, entries, store.entries)
        if len(batch.union):
            store.refresh_blocks(batch.union)
        self._under_way = None
        return time.perf_counter() - began

    def interrupt(self, i: int) -> None:
        """Step i could not be computed: when this returns, the lanes are idle and the arena may be replaced.

        Rows that earlier steps made final are updated; the gradients of all others are parked. `go_on` follows."""
        batch = self._batch
        for step in batch.steps[i:]:
            step.computed.set_exception(CancelledError())
            step.released.set_exception(CancelledError())  # loads of later steps wait for it
        for lane in self._host.values():
            _after(lane.at_rest(), "the host's lanes have done what earlier steps gave them")
        for step in batch.steps[:i]:
            step.updated.result()  # done: what went wrong in a lane is raised here
        self._load_stream.record().synchronize("rows under way to the arena are there before it is replaced")
        self.compute_stream.record().synchronize("what was begun of the view is over before the arena is replaced")
        rows, slots = held_after(batch.plan, i)
        for first in range(0, len(rows), CHUNK_ROWS):
            part = slice(first, first + CHUNK_ROWS)
            self._park(rows[part], slots[part])
        self._stopped_at, self._taken_along = i, len(rows)

    def _park(self, rows: np.ndarray, slots: np.ndarray) -> None:
        """Take the gradients at `slots` [K] along to the host, while no lane works."""
        batch, stream, device, count = self._batch, self._back_stream, self.tiers.device, len(rows)
        floats = gradient_floats(count, batch.columns)
        self._gradients.reserve(floats)
        staging, [where] = self._gradients.buffers[0], device.indices([slots])
        target = packed_gradients(staging.device, count, batch.columns)
        stream.run(device.collect, self.tiers.arena, where, target, batch.columns)
        stream.run(device.to_host, staging, floats)
        stream.record().synchronize("what is parked of an interrupted batch has arrived on the host")
        source = packed_gradients(staging.host, count, batch.columns)
        batch.parked.park(rows, source, np.arange(count, dtype=np.int32), batch.columns)

    def go_on(self, rest: Plan) -> None:
        """The rest of an interrupted batch, in an arena that may be another one now."""
        self._begin(self._batch.rest(rest, self._taken_along, self._stopped_at))

    def close(self) -> None:
        """Stop the lanes; a batch that was abandoned half-way is cancelled, so that no lane waits for compute forever."""
        if self._under_way is not None:
            for future in self._under_way.futures():
                if not future.done():
                    future.set_exception(CancelledError())
        for lane in self._host.values():
            lane.close()
        for stream in (self._load_stream, self.compute_stream, self._back_stream):
            stream.record().synchronize("arena and staging may go when no stream works with them any more")

    # The lanes' work, each in its own thread.

    def _load(self, batch: Batch, i: int) -> None:
        tiers, stream, columns, steps = self.tiers, self._load_stream, batch.columns, batch.steps
        with self._host_span(batch, "load", "gather", i):
            route = steps[i].routed = route_step(batch.plan.steps[i], tiers)
            count, staging = len(route.gather), self._rows.buffers[i % _DEPTH]
            if count:
                if (left := self._rows.left[i % _DEPTH]) is not None:
                    left.synchronize("the rows gathered two steps ago have left this staging buffer")
                packed = packed_rows(staging.host, count, columns, np.uint16 if batch.bf16_colours else None)
                row_kernels.fetch(tiers.store, batch.adam, route.gather, *packed, columns)
        if count:
            with self._span(batch, stream, "load", "copy in", i):
                stream.run(tiers.device.to_device, staging, row_floats(count, columns, batch.bf16_colours))
            self._rows.left[i % _DEPTH] = stream.record()
        for arrivals, earlier, why in (
            (route.early, i - 2, "the slots of early rows were released two steps ago"),
            (route.late, i - 1, "the slots of late rows are released by the previous step"),
        ):
            if arrivals.any:
                if earlier >= 0:
                    stream.wait(steps[earlier].released.result(), why)
                self._arrive(batch, i, arrivals, staging, count)
                self._bring_back(batch, i, arrivals)
        steps[i].loaded.set_result(stream.record())

    def _arrive(self, batch: Batch, i: int, arrivals: Arrivals, staging: Staging, count: int) -> None:
        """Rows into their slots: staged ones, and resident ones caught up on the way; their gradient rows start at zero."""
        tiers, stream, columns = self.tiers, self._load_stream, batch.columns
        with self._span(batch, stream, "load", "place", i):
            if len(arrivals.slots):
                rows = packed_rows(staging.device, count, columns, tiers.device.bf16 if batch.bf16_colours else None)
                part = Rows(*(array[arrivals.host] for array in rows))
                stream.run(tiers.device.place, part, arrivals.slots, tiers.arena, columns)
            if len(arrivals.positions):
                fetch = tiers.resident.fetch
                stream.run(fetch, batch.adam, arrivals.positions, arrivals.resident_slots, tiers.arena, columns)

    def _bring_back(self, batch: Batch, i: int, arrivals: Arrivals) -> None:
        """Partial gradients that rows left behind when they were evicted, back into their slots.

        They are parked by now: a row evicted after step e comes back at step e + 2 at the earliest, into a slot that step
        e + 1 released, and the send-back lane parks the rows of step e before it takes up step e + 1."""
        count, columns, stream = len(arrivals.partial), batch.columns, self._load_stream
        if not count:
            return
        staging, left = self._returning.buffers[0], self._returning.left[0]
        if left is not None:
            left.synchronize("the gradients brought back before have left this staging buffer")
        with self._span(batch, stream, "load", "bring back", i):
            batch.parked.copy_to(arrivals.partial, packed_gradients(staging.host, count, columns), columns)
            stream.run(self.tiers.device.to_device, staging, gradient_floats(count, columns))
            source = packed_gradients(staging.device, count, columns)
            stream.run(self.tiers.device.restore, source, arrivals.partial_slots, self.tiers.arena, columns)
        self._returning.left[0] = stream.record()

    def _send_back(self, batch: Batch, i: int) -> None:
        tiers, stream, columns, step = self.tiers, self._back_stream, batch.columns, batch.steps[i]
        route = step.route
        count, residents = route.collected, len(route.resident_final)
        staging, entries = self._gradients.buffers[i % _DEPTH], self._entries.buffers[i % _DEPTH]
        if i >= _DEPTH:
            _after(batch.steps[i - _DEPTH].updated, "Adam has read the staging buffers that this step writes")
        stream.wait(step.computed.result(), "the gradients of this step are complete")
        if count:
            with self._span(batch, stream, "send_back", "collect", i):
                target = packed_gradients(staging.device, count, columns)
                stream.run(tiers.device.collect, tiers.arena, route.collect_slots, target, columns)
        if residents:
            with self._span(batch, stream, "update", "device adam", i):
                where = route.resident_positions, route.resident_slots
                stream.run(tiers.resident.adam, batch.adam, *where, tiers.arena, columns, entries)
        step.released.set_result(stream.record())
        if count or residents:
            with self._span(batch, stream, "send_back", "copy out", i):
                stream.run(tiers.device.to_host, staging, gradient_floats(count, columns))
                stream.run(tiers.device.to_host, entries, 4 * residents)
        sent = stream.record()
        if len(route.partial):
            sent.synchronize("what is parked has arrived on the host")
            positions = np.arange(len(route.final), count, dtype=np.int32)
            batch.parked.park(route.partial, packed_gradients(staging.host, count, columns), positions, columns)
        step.sent.set_result(sent)

    def _update(self, batch: Batch, i: int) -> None:
        step, store = batch.steps[i], self.tiers.store
        step.sent.result().synchronize("the gradients of this step have arrived on the host")
        route = step.route
        with self._host_span(batch, "update", "host adam", i):
            if len(route.final):
                entries = np.empty((len(route.final), 4), np.float32)
                gradients = packed_gradients(self._gradients.buffers[i % _DEPTH].host, route.collected, batch.columns)
                statistics = store.statistics
                row_kernels.adam(store, batch.adam, route.final, gradients, None, batch.columns, statistics, entries)
                batch.entries.append((route.final, entries))
            if len(route.resident_final):
                entries = self._entries.buffers[i % _DEPTH].host[: 4 * len(route.resident_final)]
                batch.entries.append((route.resident_final, entries.reshape(-1, 4).copy()))
        step.updated.set_result(None)

    def _size_staging(self, batch: Batch) -> None:
        """Room for the largest load and the largest sends of the plan."""
        plan, columns = batch.plan, batch.columns
        loads = max((len(step.load_rows) for step in plan.steps), default=0)
        sends = max((len(step.send_rows) for step in plan.steps), default=0)
        back = max((int(step.load_partial.sum()) for step in plan.steps), default=0)
        gradients = sends
        if self.tiers.everything_resident:
            loads, gradients = 0, max((int((~step.send_final).sum()) for step in plan.steps), default=0)
        self._rows.reserve(row_floats(loads, columns, batch.bf16_colours))
        self._gradients.reserve(gradient_floats(gradients, columns))
        self._entries.reserve(4 * sends if self.tiers.residents is not None else 0)
        self._returning.reserve(gradient_floats(back, columns))

    def _submit(self, lane: str, work: Callable[[Batch, int], None], i: int, *outcomes: Future) -> None:
        batch = self._batch

        def run() -> None:
            try:
                work(batch, i)
            except BaseException as error:
                for outcome in outcomes:
                    if not outcome.done():
                        outcome.set_exception(error)  # compute sees it at its next wait

        self._host[lane].hand_over(run)

    @contextmanager
    def _span(self, batch: Batch, stream: Stream, lane: str, name: str, i: int) -> Iterator[None]:
        """Time of work on a stream."""
        began = stream.record()
        yield
        batch.marks.append((lane, name, i, began, stream.record()))

    @contextmanager
    def _host_span(self, batch: Batch, lane: str, name: str, i: int) -> Iterator[None]:
        """Time of work on a host thread."""
        began = Moment()
        yield
        batch.marks.append((lane, name, i, began, Moment()))
