"""The lanes that carry a plan out: load, send back and update run beside the caller, who computes.

The plan says what each lane does; the lanes only carry it out. Three host threads (load, send back, update) do the host's
part and hand the rest to three streams of the device (load, compute, send back). Rows and gradients pass through staging in
parcels. Who waits for whom, per turn i:

  route(i)       host    waits until turn i-4 is over: index lists of few turns are on the device
  gather(i)      host    waits until an earlier parcel has left the staging buffer whose turn it is; until turn i-2 is
                         over where pages of its rows are on disk
  early rows(i)  stream  wait until send back i-2 has released their slots: they were free before turn i-1 computed
  late rows(i)   stream  wait until send back i-1 has released their slots
  compute(i)     stream  waits for the rows of turn i
  send back(i)   stream  waits for compute i; the host waits until the staging buffer whose turn it is has been read
  update(i)      host    waits until the gradients of its parcel have arrived

The store is only read by load and only written by update, and never the same rows in one batch: a row is final after its
last use. What the caller would only wait for, the first load and the last update, it does itself: waking a thread and being
woken takes longer. Cull entries of updated rows are collected, so that the next batch can be planned meanwhile, and written
by whoever is the first to need them after the batch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from threading import Lock
from typing import TypeVar

import numpy as np

from clm.device.interface import Event, Indices
from clm.kernels import rows as row_kernels
from clm.kernels.rows import AdamStep
from clm.plan.residency import Plan, Traffic, held_after
from clm.store.layout import CHUNK_ROWS
from clm.stream.batch import Batch
from clm.stream.fetch import Fetch
from clm.stream.handover import HostLane, Outcome, after
from clm.stream.send_back import SendBack
from clm.stream.spans import LaneSeconds, Span, lane_seconds
from clm.stream.ticks import Ticks, uses_of
from clm.stream.tiers import Tiers

T = TypeVar("T")


class Lanes:
    """Carries out plans between the tiers. Invariant: between `finish` and the next `begin` all lanes are idle, and the
    store's cull entries are those after the last batch once `publish_entries` returns."""

    def __init__(self, tiers: Tiers, parcel_rows: int = CHUNK_ROWS):
        self.tiers = tiers
        self._host = {name: HostLane(name) for name in ("load", "send_back", "update")}
        load, self.compute_stream, back = (tiers.device.stream(name) for name in ("load", "compute", "send_back"))
        self.fetch = Fetch(tiers, load, parcel_rows)
        self._send_back = SendBack(tiers, back, self._host["update"], parcel_rows)
        self._under_way: Batch | None = None
        self._coming: Sequence[np.ndarray] = ()
        self._foreseeing = Lock()
        self._unpublished: deque[Batch] = deque()
        self._publishing = Lock()
        self.spans: deque[Span] = (
            deque()
        )  # beside those of turns: what was published since the last batch ended, or travelled

    @property
    def _batch(self) -> Batch:
        assert self._under_way is not None, "no batch is under way"
        return self._under_way

    @property
    def staging_bytes(self) -> int:
        """On the host."""
        return self.fetch.staging_bytes + self._send_back.staging_bytes

    @property
    def device_staging_bytes(self) -> int:
        """Their counterparts on a device with memory of its own."""
        return 0 if self.tiers.device.shares_host_memory else self.staging_bytes

    @property
    def first_view(self) -> Outcome[Event]:
        """Settled once the first view is computed (where it is the only one: once its rows are there). What can wait begins
        then: before, it would keep the first rows waiting."""
        turns = self._batch.turns
        return turns[0].computed if len(turns) > 1 else turns[0].loaded

    def begin(self, plan: Plan, adam: AdamStep, columns: int, coming: Sequence[np.ndarray] = ()) -> None:
        """Start loading for `plan`; rows are caught up to `adam.step - 1`, `columns` of their colours are active. coming: pages
        of the views after it, of a store on disk."""
        self.tiers.device.start_clock()
        self.tiers.about_to_change(plan.union_rows)
        self._coming = coming
        self._begin(Batch(plan, adam, columns, plan.traffic, plan.union_rows))

    def foresee(self, plan: Plan, coming: Sequence[np.ndarray]) -> None:
        """The batch under way, if any, is followed by `plan`: rows on disk are read for its turns instead of for its views. coming:
        pages of the views after that. From any thread, before the batch ends."""
        with self._foreseeing:
            if self._under_way is not None and self._under_way.ticks is not None:
                self._coming = [*uses_of(plan, self.tiers), *coming]
                self._under_way.ticks.follow(self._coming)

    def _begin(self, batch: Batch) -> None:
        if batch.plan.capacity > self.tiers.arena.slots:
            raise ValueError(f"a plan for {batch.plan.capacity} slots in an arena of {self.tiers.arena.slots}")
        self.fetch.reserve(batch)
        self._send_back.reserve(batch)
        with self._foreseeing:
            if self.tiers.store.disk is not None:
                batch.ticks = Ticks(batch.plan, self.tiers, self._coming)
            self._under_way = batch
        for i, turn in enumerate(batch.turns):
            self._run("load" if i else None, self.fetch.run, i, turn.loaded)

    def compute(self, i: int, work: Callable[[Indices], T]) -> T:
        """Run `work(slots of turn i)` on the device once its rows are there."""
        turn, stream = self._batch.turns[i], self.compute_stream
        stream.wait(turn.loaded.result(), "the rows of this turn are in their slots")
        began = stream.record()
        result = stream.run(work, turn.route.view_slots)
        done = stream.record()
        self._batch.marks.append(("compute", "render", i, began, done))
        turn.computed.succeed(done)
        return result

    def send_back(self, i: int) -> None:
        """Turn i's gradients are complete: send back what the plan says and update the final rows."""
        turns = self._batch.turns
        last = i + 1 == len(turns)
        self._run(None if last else "send_back", self._send_back.run, i, turns[i].released, turns[i].updated)

    def finish(self) -> tuple[Traffic, LaneSeconds, list[Span]]:
        """Wait until every row of the batch is updated; then hand back what crossed the bus and what the lanes did."""
        batch = self._batch
        for turn in batch.turns:
            after(turn.updated, "the next batch reads the rows that this one updates")
        ended, spans = time.perf_counter(), batch.spans()
        while self.spans:
            spans.append(self.spans.popleft())
        if (disk := self.tiers.store.disk) is not None:
            moved = disk.drain([(span.start, span.end) for span in spans if span.lane == "compute"])
            spans += [Span("disk", "read, write", -1, *moment) for moment in moved]
        return batch.moved(self.tiers), lane_seconds(spans, batch.began, ended), spans

    def end(self) -> None:
        """Nobody plans by the old cull entries any more: those of the batch may be published."""
        self._unpublished.append(self._batch)
        self._under_way = None

    def publish_entries(self) -> None:
        """Make the store's cull entries and block bounds those after the last batch that was ended. From any thread."""
        store = self.tiers.store
        with self._publishing:
            while self._unpublished:
                batch, began = self._unpublished.popleft(), time.perf_counter()
                for rows, entries in batch.entries:
                    row_kernels.put_entries(rows, entries, store.entries)
                if len(batch.union):
                    store.publish(batch.union)
                self.spans.append(Span("update", "publish", -1, began, time.perf_counter()))

    def interrupt(self, i: int) -> None:
        """Turn i could not be computed: when this returns, the lanes are idle and the arena may be replaced.

        Rows that earlier turns made final are updated; the gradients of all others are parked. `go_on` follows."""
        batch = self._batch
        for turn in batch.turns[i:]:
            turn.computed.fail(CancelledError())
            turn.released.fail(CancelledError())  # loads of later turns wait for these two
            turn.updated.fail(CancelledError())
        for lane in self._host.values():  # each after those that hand work over to it
            after(lane.at_rest(), "the host's lanes have done what earlier turns gave them")
        for turn in batch.turns[:i]:
            turn.updated.result()  # done: what went wrong in a lane is raised here
        self.fetch.stream.record().synchronize("rows under way to the arena are there before it is replaced")
        self.compute_stream.record().synchronize("what was begun of the view is over before the arena is replaced")
        rows, slots = held_after(batch.plan, i)
        self._send_back.park(batch, i, rows, slots)
        batch.stop(i, len(rows))

    def go_on(self, rest: Plan) -> None:
        """The rest of an interrupted batch, in an arena that may be another one now."""
        self._begin(self._batch.rest(rest))

    def close(self) -> None:
        """Stop the lanes; a batch that was abandoned half-way is cancelled, so that no lane waits for compute forever."""
        if self._under_way is not None:
            self._under_way.cancel()
        for lane in self._host.values():
            lane.close()
        for stream in (self.fetch.stream, self.compute_stream, self._send_back.stream):
            stream.record().synchronize("arena and staging may go when no stream works with them any more")

    def _run(self, lane: str | None, work: Callable[[Batch, int], None], i: int, *outcomes: Outcome) -> None:
        """Have `work` done for turn i by a lane, or do it now."""
        batch = self._batch

        def run() -> None:
            try:
                work(batch, i)
            except BaseException as error:
                for outcome in outcomes:
                    outcome.fail(error)  # compute sees it at its next wait

        if lane is None:
            run()
        else:
            self._host[lane].hand_over(run)
