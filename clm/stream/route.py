"""One turn of a plan, split by where its rows are: what crosses the bus, and what stays on the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clm.device.interface import Indices
from clm.plan.residency import Turn
from clm.stream.tiers import Tiers


@dataclass(frozen=True, eq=False)
class Arrivals:
    """Loads of one turn that may begin at the same time, by id and slot; `Indices` are on the device."""

    rows: np.ndarray  # ids of loads from the host
    slots: Indices  # where those go
    positions: Indices  # resident rows
    resident_slots: Indices
    partial: np.ndarray  # ids whose partial gradient comes back
    partial_slots: Indices

    @property
    def any(self) -> bool:
        return len(self.rows) > 0 or len(self.positions) > 0


@dataclass(frozen=True, eq=False)
class Route:
    """Loads and sends of a turn."""

    view_slots: Indices  # where the view's rows lie
    early: Arrivals
    late: Arrivals
    final: np.ndarray  # ids of final rows on the host
    final_slots: Indices
    resident_final: np.ndarray  # ids
    resident_positions: Indices
    resident_slots: Indices
    partial: np.ndarray  # ids of rows that leave before their last use with a gradient, wherever they live
    partial_slots: Indices

    @property
    def crossing(self) -> tuple[int, int, int]:
        """Rows that come from the host, gradient rows that come back from there, gradient rows that go there."""
        parts = self.early, self.late
        loaded, brought_back = sum(len(part.rows) for part in parts), sum(len(part.partial) for part in parts)
        return loaded, brought_back, len(self.final) + len(self.partial)


def route_turn(turn: Turn, tiers: Tiers) -> Route:
    """Split a turn; every index list that the device needs goes there in one call."""
    lists, ids = [turn.slots], []
    for part in (slice(0, turn.load_early), slice(turn.load_early, None)):
        rows, slots, partial = turn.load_rows[part], turn.load_slots[part], turn.load_partial[part]
        on_host, resident = tiers.split(rows)
        lists += [slots[on_host], tiers.positions(rows[resident]), slots[resident], slots[partial]]
        ids += [rows[on_host], rows[partial]]
    final, slots = turn.send_rows[: turn.finals], turn.send_slots[: turn.finals]
    parked = slice(
        turn.finals, turn.finals + turn.partials
    )  # behind them: rows with no gradient, whose slots are free now
    on_host, resident = tiers.split(final)
    lists += [slots[on_host], tiers.positions(final[resident]), slots[resident], turn.send_slots[parked]]
    there = tiers.device.indices(lists)
    return Route(
        there[0],
        Arrivals(ids[0], there[1], there[2], there[3], ids[1], there[4]),
        Arrivals(ids[2], there[5], there[6], there[7], ids[3], there[8]),
        final[on_host],
        there[9],
        final[resident],
        there[10],
        there[11],
        turn.send_rows[parked],
        there[12],
    )
