"""The load lane: rows catch up and are gathered into staging, copied, and placed in their slots.

The host's part runs on the load thread, the rest on the load stream. Rows of resident blocks are caught up straight into
their slots. The store is only read.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clm.device.interface import Rows, Stream, gradient_floats, packed_gradients, packed_rows, row_floats
from clm.kernels import rows as row_kernels
from clm.plan.budget import TURNS_UNDER_WAY
from clm.store.layout import CHUNK_ROWS
from clm.stream.batch import Batch
from clm.stream.handover import after
from clm.stream.route import Arrivals, route_turn
from clm.stream.staging import Ring
from clm.stream.tiers import Tiers


class Fetch:
    """Carries out the loads of a plan, turn by turn, one at a time."""

    def __init__(self, tiers: Tiers, stream: Stream | None = None, parcel_rows: int = CHUNK_ROWS):
        """stream: None for a load stream of its own."""
        self.tiers, self.stream = tiers, stream or tiers.device.stream("load")
        self._rows, self._returning = Ring(tiers.device, parcel_rows), Ring(tiers.device, parcel_rows)

    def reserve(self, batch: Batch) -> None:
        """While no lane works: staging for the largest load of the plan."""
        plan, columns = batch.plan, batch.columns
        loads = max((len(turn.load_rows) for turn in plan.turns), default=0)
        rows, back = 0 if self.tiers.everything_resident else loads, loads if plan.traffic.loaded_partial else 0
        self._rows.reserve(rows, lambda n: row_floats(n, columns, batch.bf16_colours))
        self._returning.reserve(back, lambda n: gradient_floats(n, columns), in_turn=False)

    @property
    def staging_bytes(self) -> int:
        return self._rows.bytes + self._returning.bytes

    def run(self, batch: Batch, i: int) -> None:
        """Have all rows of turn i in their slots before the batch's `loaded` event of that turn."""
        stream, turns = self.stream, batch.turns
        if i >= TURNS_UNDER_WAY:
            after(turns[i - TURNS_UNDER_WAY].updated, "the index lists of few turns are on the device at a time")
        if batch.ticks is not None and i >= 2 and batch.ticks.lacks(i):
            after(turns[i - 2].updated, "pages of this turn come instead of those that turn i - 2 steps on")
        with batch.host_span("load", "route", i):
            route = route_turn(batch.plan.turns[i], self.tiers)
        turns[i].begin(route)
        for arrivals, earlier, why in (
            (route.early, i - 2, "the slots of early rows were released two turns ago"),
            (route.late, i - 1, "the slots of late rows are released by the previous turn"),
        ):
            if arrivals.any:
                self._arrive(batch, i, arrivals, earlier, why)
                self._bring_back(batch, i, arrivals)
        if batch.ticks is not None:
            batch.ticks.loaded(i)
        turns[i].loaded.succeed(stream.record())

    def _arrive(self, batch: Batch, i: int, arrivals: Arrivals, earlier: int, why: str) -> None:
        """Rows into the slots that turn `earlier` releases, where their gradient rows start at zero. The first parcel is staged
        before that."""
        tiers, stream, columns = self.tiers, self.stream, batch.columns

        def run(work: Callable[..., None], *arguments: object) -> None:
            if earlier >= 0:
                stream.wait(batch.turns[earlier].released.result(), why)
            with batch.span(stream, "load", "place", i):
                stream.run(work, *arguments, tiers.arena, columns)

        for part in self._rows.parcels(len(arrivals.rows)):
            run(tiers.device.place, self._stage(batch, i, arrivals.rows[part]), arrivals.slots[part])
        if len(arrivals.positions):
            assert batch.adam is not None, "rows without moments are not resident"
            run(tiers.resident.fetch, batch.adam, arrivals.positions, arrivals.resident_slots)

    def _stage(self, batch: Batch, i: int, rows: np.ndarray) -> Rows:
        """Rows [n] (ids), caught up, in a staging buffer on the device."""
        tiers, stream, columns, count = self.tiers, self.stream, batch.columns, len(rows)
        buffer = self._rows.take()
        with batch.host_span("load", "gather", i):
            if buffer.left is not None:
                buffer.left.synchronize("the rows gathered before have left this staging buffer")
            packed = packed_rows(buffer.staging.host, count, columns, np.uint16 if batch.bf16_colours else None)
            for part, held, at in tiers.store.reach(rows):
                row_kernels.fetch(held, batch.adam, at, packed.geometry[part], packed.colour[part], columns)
        with batch.span(stream, "load", "copy in", i):
            stream.run(tiers.device.to_device, buffer.staging, row_floats(count, columns, batch.bf16_colours))
        buffer.left = stream.record()
        return packed_rows(buffer.staging.device, count, columns, tiers.device.bf16 if batch.bf16_colours else None)

    def _bring_back(self, batch: Batch, i: int, arrivals: Arrivals) -> None:
        """Partial gradients that rows left behind when they were evicted, back into their slots.

        They are parked by now: a row evicted after turn e comes back at turn e + 2 at the earliest, into a slot that turn
        e + 1 released, and the send-back lane parks the rows of turn e before it takes up turn e + 1."""
        device, columns, stream = self.tiers.device, batch.columns, self.stream
        for part in self._returning.parcels(len(arrivals.partial)):
            buffer, count = self._returning.take(), part.stop - part.start
            if buffer.left is not None:
                buffer.left.synchronize("the gradients brought back before have left this staging buffer")
            with batch.span(stream, "load", "bring back", i):
                target = packed_gradients(buffer.staging.host, count, columns)
                batch.parked.copy_to(arrivals.partial[part], target, columns)
                stream.run(device.to_device, buffer.staging, gradient_floats(count, columns))
                source = packed_gradients(buffer.staging.device, count, columns)
                stream.run(device.restore, source, arrivals.partial_slots[part], self.tiers.arena, columns)
            buffer.left = stream.record()
