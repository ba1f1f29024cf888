"""One step of a plan, split by where its rows are: what crosses the bus, and what stays on the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clm.plan.residency import Step
from clm.stream.device import Indices
from clm.stream.tiers import Tiers


@dataclass(frozen=True, eq=False)
class Arrivals:
    """Loads of one step that may begin at the same time, by id and slot; `Indices` are on the device."""

    host: slice  # which of the step's gathered rows
    slots: Indices  # where those go
    positions: Indices  # resident rows
    resident_slots: Indices
    partial: np.ndarray  # ids whose partial gradient comes back
    partial_slots: Indices

    @property
    def any(self) -> bool:
        return self.host.stop > self.host.start or len(self.positions) > 0


@dataclass(frozen=True, eq=False)
class Route:
    """Loads and sends of a step."""

    view_slots: Indices  # where the view's rows lie
    gather: np.ndarray  # ids of loads from the host: the early ones, then the late ones
    early: Arrivals
    late: Arrivals
    final: np.ndarray  # ids of final rows on the host
    partial: np.ndarray  # ids of rows that leave before their last use, wherever they live
    collect_slots: Indices  # of `final`, then of `partial`
    resident_final: np.ndarray  # ids
    resident_positions: Indices
    resident_slots: Indices

    @property
    def collected(self) -> int:
        """Gradient rows that go to the host."""
        return len(self.final) + len(self.partial)


def route_step(step: Step, tiers: Tiers) -> Route:
    """Split a step; every index list that the device needs goes there in one call."""
    gather, lists = [], [step.slots]
    partial_rows = []
    for part in (slice(0, step.load_early), slice(step.load_early, None)):
        rows, slots, partial = step.load_rows[part], step.load_slots[part], step.load_partial[part]
        on_host, resident = tiers.split(rows)
        gather.append(rows[on_host])
        partial_rows.append(rows[partial])
        lists += [slots[on_host], tiers.positions(rows[resident]), slots[resident], slots[partial]]
    final, slots = step.send_rows[step.send_final], step.send_slots[step.send_final]
    on_host, resident = tiers.split(final)
    collect = slots[on_host]
    if len(final) < len(step.send_rows):
        collect = np.concatenate([collect, step.send_slots[~step.send_final]])
    lists += [collect, tiers.positions(final[resident]), slots[resident]]
    ids = tiers.device.indices(lists)
    early = len(gather[0])
    return Route(
        ids[0],
        np.concatenate(gather) if len(gather[1]) else gather[0],
        Arrivals(slice(0, early), ids[1], ids[2], ids[3], partial_rows[0], ids[4]),
        Arrivals(slice(early, early + len(gather[1])), ids[5], ids[6], ids[7], partial_rows[1], ids[8]),
        final[on_host],
        step.send_rows[~step.send_final],
        ids[9],
        final[resident],
        ids[10],
        ids[11],
    )
