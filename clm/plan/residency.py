"""The plan of one batch: which rows are loaded, kept, sent back and final at each turn, and in which slots.

The order of views is known, so what to keep is not a heuristic: the rows whose next use is nearest (Belady 1966), which
loads the fewest rows of any policy with that capacity. A pure function over arrays (`clm.kernels.plan.residency` walks
the rows); the executor carries its turns out.

Invariants: every view finds all its rows in its slots; a kept row never moves; no slot is loaded before the gradient
of its former row has been sent back; a row is final exactly once per batch, after its last use; a row that is evicted
before takes its partial gradient along and gets it back, so the sum over views runs in batch order for any capacity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from clm.kernels.plan import residency
from clm.plan.budget import GRADIENT_BYTES, PARAMETER_BYTES


@dataclass(frozen=True, eq=False)
class Turn:
    """One view of the batch. Order of events: loads, compute, sends; all arrays are int32 but the bool flags.

    The first `load_early` loads go to slots that are free while the previous turn computes: they may run beside it, as
    soon as the sends of the turn before that have left (those freed the slots, and carry partial gradients that an
    early load may bring back). The other loads wait for the previous turn's sends. At the first turn all are early.
    Loads ascend by row, and by slot, within early and within late; sends ascend by row within final and partial.
    """

    view: int
    rows: np.ndarray  # [M] ascending
    slots: np.ndarray  # [M] where they lie while the turn computes
    load_rows: np.ndarray  # [L]
    load_slots: np.ndarray  # [L]
    load_early: int
    load_partial: np.ndarray  # [L] bool: evicted earlier in this batch, its partial gradient comes back with it
    send_rows: np.ndarray  # [S] final rows first, then evicted ones
    send_slots: np.ndarray  # [S]
    send_final: np.ndarray  # [S] bool: this turn was the row's last use of the batch


@dataclass(frozen=True)
class Traffic:
    """Rows that cross the bus in one batch, and what other policies would move with the same order of views."""

    loaded: int
    loaded_partial: int  # of `loaded`: rows that bring a partial gradient back
    sent_back: int  # final and partial
    no_reuse: int  # sum |V_i|
    consecutive_reuse: (
        int  # sum |V_i \ V_{i-1}|: needs max |V_i| slots, or max |V_{i-1} u V_i| if loads overlap compute
    )
    lower_bound: int  # |union|

    @property
    def bytes_loaded(self) -> int:
        return self.loaded * PARAMETER_BYTES + self.loaded_partial * GRADIENT_BYTES

    @property
    def bytes_sent_back(self) -> int:
        return self.sent_back * GRADIENT_BYTES

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True, eq=False)
class Plan:
    """One batch, in the order in which it runs."""

    turns: tuple[Turn, ...]
    capacity: int  # slots of the arena; slots in use are below min(capacity, |union|)
    traffic: Traffic
    union_rows: np.ndarray  # [D] i32 ascending
    # Rows that come with a partial gradient from the part of the batch before this plan [C] i32 ascending (`rest_of`).
    carried: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))


def make_plan(views: Sequence[int], sets: Sequence[np.ndarray], capacity: int, block_rows: int = 2048) -> Plan:
    """Plans one batch. views: ids in the order they run; sets: their rows in that order, int32, strictly ascending.

    Loads at most as many rows as consecutive reuse does with the same `capacity` (any capacity that holds the largest
    view), and each row of the union once when capacity >= |union|. Evicts only what the next turn's loads need; among
    rows with the same next use the higher row id goes. Free slots are taken in the order in which they became free.
    `block_rows` only sizes the local numbering. The arrays of all turns are cut from a few lists over the whole batch.

    Raises ValueError when `capacity` is below the largest view, or when a set is not strictly ascending from 0 on.
    """
    largest = max((len(rows) for rows in sets), default=0)
    if capacity < largest:
        raise ValueError(f"the arena has {capacity} slots, but the largest view of the batch needs {largest}")
    if len(views) != len(sets):
        raise ValueError(f"{len(views)} views but {len(sets)} sets")
    sets = [np.ascontiguousarray(rows) for rows in sets]
    lists = residency(sets, capacity, block_rows)
    turns = []
    row = load = send = 0  # where the turn begins in the lists
    for view, rows, (loads, early, sends) in zip(views, sets, lists.counts.tolist(), strict=True):
        loaded, sent = slice(load, load + loads), slice(send, send + sends)
        turns.append(
            Turn(
                view=view,
                rows=rows,
                slots=lists.slots[row : row + len(rows)],
                load_rows=lists.load_rows[loaded],
                load_slots=lists.load_slots[loaded],
                load_early=early,
                load_partial=lists.load_partial[loaded],
                send_rows=lists.send_rows[sent],
                send_slots=lists.send_slots[sent],
                send_final=lists.send_final[sent],
            )
        )
        row, load, send = row + len(rows), load + loads, send + sends
    traffic = Traffic(
        loaded=load,
        loaded_partial=lists.partial,
        sent_back=send,
        no_reuse=row,
        consecutive_reuse=row - lists.shared,
        lower_bound=len(lists.union_rows),
    )
    return Plan(tuple(turns), capacity, traffic, lists.union_rows)


def held_after(plan: Plan, turns: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are in the arena once the first `turns` turns have sent back, and their slots: [H] i32 each, ascending."""
    slots = np.full(len(plan.union_rows), -1, np.int32)
    for turn in plan.turns[:turns]:
        slots[np.searchsorted(plan.union_rows, turn.load_rows)] = turn.load_slots
        slots[np.searchsorted(plan.union_rows, turn.send_rows)] = -1
    held = slots >= 0
    return plan.union_rows[held], slots[held]


def rest_of(plan: Plan, first: int, capacity: int, block_rows: int = 2048) -> Plan:
    """The turns from `first` on, planned anew for an arena of another size that begins empty.

    What earlier turns added to rows that are needed again is on the host (parked, or taken along from the arena by
    `held_after`): their first load brings it back, so the sum over views keeps its order.
    """
    turns = plan.turns[first:]
    rest = make_plan([turn.view for turn in turns], [turn.rows for turn in turns], capacity, block_rows)
    before = [plan.carried, *(turn.rows for turn in plan.turns[:first])]
    carried = np.intersect1d(np.concatenate(before), rest.union_rows).astype(np.int32)
    waiting, changed, brought = np.ones(len(carried), bool), [], 0
    for turn in rest.turns:
        comes = np.isin(turn.load_rows, carried[waiting])
        waiting &= ~np.isin(carried, turn.load_rows)
        changed.append(replace(turn, load_partial=turn.load_partial | comes))
        brought += int(comes.sum())
    traffic = replace(rest.traffic, loaded_partial=rest.traffic.loaded_partial + brought)
    return replace(rest, turns=tuple(changed), traffic=traffic, carried=carried)
