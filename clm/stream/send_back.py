"""The send-back and update lanes: gradients of final rows are collected, copied to the host, and stepped on there.

Rows of resident blocks are updated where they are, and only their cull entries come back. Rows that leave before their last
use have their gradient parked on the host. Collecting runs on the send-back thread and stream, Adam on the update thread, or
on the same one where nothing has to arrive first. The store's rows are only written here, each once per batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Lock

import numpy as np

from clm.device.interface import Gradients, Indices, Stream, gradient_floats, packed_gradients
from clm.kernels import rows as row_kernels
from clm.stream.batch import Batch
from clm.stream.handover import HostLane, Outcome, after
from clm.stream.staging import Buffer, Ring
from clm.stream.tiers import Tiers


class SendBack:
    """Carries out the sends of a plan, one turn at a time, in any thread; `update_lane` does the host's Adam."""

    def __init__(self, tiers: Tiers, stream: Stream, update_lane: HostLane, parcel_rows: int):
        self._tiers, self.stream, self._update_lane = tiers, stream, update_lane
        self._gradients, self._entries = Ring(tiers.device, parcel_rows), Ring(tiers.device, parcel_rows)
        self._turn = Lock()

    def reserve(self, batch: Batch) -> None:
        """While no lane works: staging for the largest sends of the plan."""
        traffic = batch.plan.traffic
        sends = max((turn.finals + turn.partials for turn in batch.plan.turns), default=0)
        crossing = not self._tiers.everything_resident or traffic.sent_back > traffic.lower_bound  # some are parked
        self._reserve_gradients(sends if crossing else 0, batch)
        self._entries.reserve(sends if self._tiers.residents is not None else 0, lambda n: 4 * n)

    def _reserve_gradients(self, rows: int, batch: Batch) -> None:
        self._gradients.reserve(rows, lambda n: gradient_floats(n, batch.columns))

    @property
    def staging_bytes(self) -> int:
        return self._gradients.bytes + self._entries.bytes

    def run(self, batch: Batch, i: int) -> None:
        """Release the slots that turn i gives up; its final rows are updated when the batch's `updated` of that turn is
        settled."""
        with self._turn:
            self._run(batch, i)

    def _run(self, batch: Batch, i: int) -> None:
        turn = batch.turns[i]
        self.stream.wait(turn.computed.result(), "the gradients of this turn are complete")
        route = turn.route
        for part in self._gradients.parcels(len(route.final)):
            buffer = self._collect(batch, i, route.final_slots[part])
            self._once_arrived(batch, i, partial(self._host_adam, batch, i, route.final[part], buffer), buffer)
        for part in self._entries.parcels(len(route.resident_final)):
            buffer = self._device_adam(batch, i, route.resident_positions[part], route.resident_slots[part])
            self._once_arrived(batch, i, partial(_take_entries, batch, route.resident_final[part], buffer), buffer)
        for part in self._gradients.parcels(len(route.partial)):
            self._park(batch, i, route.partial[part], route.partial_slots[part])
        turn.released.succeed(self.stream.record())
        self._once_arrived(batch, i, partial(batch.end_turn, i))

    def park(self, batch: Batch, i: int, rows: np.ndarray, slots: np.ndarray) -> None:
        """While no lane works: take the gradients of rows [n] at arena slots [n] along to the host, before turn i."""
        self._reserve_gradients(len(rows), batch)
        for part in self._gradients.parcels(len(rows)):
            self._park(batch, i, rows[part], self._tiers.device.indices([slots[part]])[0])

    def _collect(self, batch: Batch, i: int, slots: Indices) -> Buffer:
        """The gradients at `slots` [n], on their way to the host."""
        device, columns, stream, count = self._tiers.device, batch.columns, self.stream, len(slots)
        buffer = _writable(self._gradients.take())
        with batch.span(stream, "send_back", "collect", i):
            target = packed_gradients(buffer.staging.device, count, columns)
            stream.run(device.collect, self._tiers.arena, slots, target, columns)
        with batch.span(stream, "send_back", "copy out", i):
            stream.run(device.to_host, buffer.staging, gradient_floats(count, columns))
        return buffer

    def _park(self, batch: Batch, i: int, rows: np.ndarray, slots: Indices) -> None:
        """Gradients of rows [n] to the host, where they stay until they are brought back."""
        buffer, count, columns = self._collect(batch, i, slots), len(rows), batch.columns
        self.stream.record().synchronize("what is parked has arrived on the host")
        source = packed_gradients(buffer.staging.host, count, columns)
        batch.parked.park(rows, source, np.arange(count, dtype=np.int32), columns)

    def _device_adam(self, batch: Batch, i: int, positions: Indices, slots: Indices) -> Buffer:
        """Update resident rows where they are; their new cull entries are on their way to the host."""
        tiers, stream = self._tiers, self.stream
        assert batch.adam is not None, "a batch that only renders has no final rows"
        buffer = _writable(self._entries.take())
        with batch.span(stream, "update", "device adam", i):
            where = positions, slots, tiers.arena
            stream.run(tiers.resident.adam, batch.adam, *where, batch.columns, buffer.staging)
        with batch.span(stream, "send_back", "copy out", i):
            stream.run(tiers.device.to_host, buffer.staging, 4 * len(slots))
        return buffer

    def _once_arrived(self, batch: Batch, i: int, work: Callable[[], None], buffer: Buffer | None = None) -> None:
        """Have `work` done on the update lane when the host has all that was handed over for turn i so far; `buffer`: what it
        reads of that."""
        arrived, read = self.stream.record(), Outcome[None]()
        if buffer is not None:
            buffer.read = read

        def run() -> None:
            try:
                arrived.synchronize("the gradients of this turn have arrived on the host")
                work()
            except BaseException as error:
                batch.turns[i].updated.fail(error)
            read.succeed(None)

        if self._tiers.device.shares_host_memory:
            run()  # nothing has to arrive, and waking another thread takes longer than it saves
        else:
            self._update_lane.hand_over(run)

    def _host_adam(self, batch: Batch, i: int, rows: np.ndarray, buffer: Buffer) -> None:
        store, columns = self._tiers.store, batch.columns
        assert batch.adam is not None, "a batch that only renders has no final rows"
        with batch.host_span("update", "host adam", i):
            entries = np.empty((len(rows), 4), np.float32)
            gradients = packed_gradients(buffer.staging.host, len(rows), columns)
            for part, held, at in store.reach(rows, changing=True):
                mine = Gradients(gradients.grad_geometry[part], gradients.grad_colour[part])
                row_kernels.adam(held, batch.adam, at, mine, None, columns, held.statistics, entries[part])
            batch.entries.append((rows, entries))


def _writable(buffer: Buffer) -> Buffer:
    if buffer.read is not None:
        after(buffer.read, "the host has read this staging buffer before it is written again")
    return buffer


def _take_entries(batch: Batch, rows: np.ndarray, buffer: Buffer) -> None:
    """The cull entries of resident rows that were updated on the device."""
    batch.entries.append((rows, buffer.staging.host[: 4 * len(rows)].reshape(-1, 4).copy()))
