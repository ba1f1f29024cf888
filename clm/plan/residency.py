"""The plan of one batch: which rows are loaded, kept, sent back and final at each step, and in which slots.

The order of views is known, so what to keep is not a heuristic: the rows whose next use is nearest (Belady 1966), which
loads the fewest rows of any policy with that capacity. Pure functions over arrays; the executor carries them out.

Invariants: every view finds all its rows in its slots; a kept row never moves; no slot is loaded before the gradient
of its former row has been sent back; a row is final exactly once per batch, after its last use; a row that is evicted
before takes its partial gradient along and gets it back, so the sum over views runs in batch order for any capacity.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clm.plan.budget import GRADIENT_BYTES, PARAMETER_BYTES
from clm.plan.universe import global_rows, localize


@dataclass(frozen=True, eq=False)
class Step:
    """One view of the batch. Order of events: loads, compute, sends; all arrays are int32 but the bool flags.

    The first `load_early` loads go to slots that are free while the previous step computes: they may run beside it, as
    soon as the sends of the step before that have left (those freed the slots, and carry partial gradients that an
    early load may bring back). The other loads wait for the previous step's sends. At the first step all are early.
    Loads ascend by row, and by slot, within early and within late; sends ascend by row within final and partial.
    """

    view: int
    rows: np.ndarray  # [M] ascending
    slots: np.ndarray  # [M] where they lie while the step computes
    load_rows: np.ndarray  # [L]
    load_slots: np.ndarray  # [L]
    load_early: int
    load_partial: np.ndarray  # [L] bool: evicted earlier in this batch, its partial gradient comes back with it
    send_rows: np.ndarray  # [S] final rows first, then evicted ones
    send_slots: np.ndarray  # [S]
    send_final: np.ndarray  # [S] bool: this step was the row's last use of the batch


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

    steps: tuple[Step, ...]
    capacity: int  # slots of the arena; slots in use are below min(capacity, |union|)
    traffic: Traffic
    union_rows: np.ndarray  # [D] i32 ascending


def make_plan(views: Sequence[int], sets: Sequence[np.ndarray], capacity: int, block_rows: int = 2048) -> Plan:
    """Plans one batch. views: ids in the order they run; sets: their rows in that order, int32, strictly ascending.

    Loads at most as many rows as consecutive reuse does with the same `capacity` (any capacity that holds the largest
    view), and each row of the union once when capacity >= |union|. Evicts only what the next step's loads need; among
    rows with the same next use the higher row id goes. `block_rows` only sizes the local numbering.

    Raises ValueError when `capacity` is below the largest view.
    """
    largest = max((len(rows) for rows in sets), default=0)
    if capacity < largest:
        raise ValueError(f"the arena has {capacity} slots, but the largest view of the batch needs {largest}")
    if len(views) != len(sets):
        raise ValueError(f"{len(views)} views but {len(sets)} sets")
    dense, union_rows = _number_rows(sets, block_rows)
    next_uses = _next_uses(dense, len(union_rows))
    steps = _plan_steps(views, sets, dense, next_uses, union_rows, capacity)
    return Plan(steps, capacity, _count_traffic(steps, dense, len(union_rows)), union_rows)


def _number_rows(sets: Sequence[np.ndarray], block_rows: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Positions of each view's rows in the sorted union, and the union."""
    local, touched = localize(sets, block_rows)
    member = np.zeros(len(touched) * block_rows, bool)
    for ids in local:
        member[ids] = True
    listed = np.flatnonzero(member)
    position = np.empty(len(member), np.int64)  # i64 throughout: numpy indexes with it two to three times faster
    position[listed] = np.arange(len(listed))
    return [position.take(ids) for ids in local], global_rows(listed, touched, block_rows)


def _next_uses(dense: Sequence[np.ndarray], union: int) -> list[np.ndarray]:
    """For each view's rows the next step that uses them; the number of steps when there is none."""
    upcoming = np.full(union, len(dense), np.int32)
    result: list[np.ndarray] = []
    for i in range(len(dense) - 1, -1, -1):
        result.append(upcoming.take(dense[i]))
        upcoming[dense[i]] = i
    return result[::-1]


def _plan_steps(
    views: Sequence[int],
    sets: Sequence[np.ndarray],
    dense: Sequence[np.ndarray],
    next_uses: Sequence[np.ndarray],
    union_rows: np.ndarray,
    capacity: int,
) -> tuple[Step, ...]:
    union, count = len(union_rows), len(dense)
    slot_of = np.full(union, -1, np.int32)
    next_use = np.full(union, count, np.int32)
    evicted = np.zeros(union, bool)
    free = deque(
        [np.arange(min(capacity, union), dtype=np.int32)]
    )  # free while the previous step computes, oldest first
    freed = free[0][:0]  # free once the previous step's sends have left
    missing = dense[0] if count else np.empty(0, np.int64)
    steps = []
    for i, ids in enumerate(dense):
        loads, partial = missing, evicted.take(missing)
        early_slots = _take(free, len(loads))
        early = len(early_slots)
        load_slots = np.concatenate([early_slots, freed[: len(loads) - early]])
        slot_of[loads] = load_slots
        evicted[loads] = False
        free.append(freed[len(loads) - early :])
        slots = slot_of.take(ids)

        next_use[ids] = next_uses[i]
        sends = finals = ids.compress(next_uses[i] == count)
        if i + 1 < count:
            missing = dense[i + 1].compress(slot_of.take(dense[i + 1]) < 0)
            needed = len(missing) - sum(map(len, free)) - len(finals)
            if needed > 0:
                leaving = _farthest(slot_of, next_use, i + 1, count, needed)
                evicted[leaving] = True
                sends = np.concatenate([finals, leaving])
        send_slots = slot_of.take(sends)
        slot_of[sends] = -1
        freed = np.sort(send_slots)
        final = np.arange(len(sends)) < len(finals)
        load_rows, send_rows = union_rows.take(loads), union_rows.take(sends)
        steps.append(
            Step(views[i], sets[i], slots, load_rows, load_slots, early, partial, send_rows, send_slots, final)
        )
    return tuple(steps)


def _take(free: deque[np.ndarray], count: int) -> np.ndarray:
    """Up to `count` free slots, ascending. First in, first out by runs, so that the whole queue is never sorted."""
    taken, missing = [np.empty(0, np.int32)], count
    while missing and free:
        run = free.popleft()
        taken.append(run[:missing])
        if len(run) > missing:
            free.appendleft(run[missing:])
        missing -= len(taken[-1])
    return np.sort(np.concatenate(taken))


def _farthest(slot_of: np.ndarray, next_use: np.ndarray, step: int, never: int, count: int) -> np.ndarray:
    """The `count` rows in the arena, needed again but not at `step`, whose next use is farthest; ascending."""
    keepers = np.flatnonzero((slot_of >= 0) & (next_use > step) & (next_use < never))
    key = next_use.take(keepers).astype(np.int64) * len(slot_of) + keepers
    chosen = np.partition(key, len(key) - count)[len(key) - count :]
    return np.sort(chosen % len(slot_of))


def _count_traffic(steps: Sequence[Step], dense: Sequence[np.ndarray], union: int) -> Traffic:
    seen = np.full(union, -2, np.int32)
    consecutive = 0
    for i, ids in enumerate(dense):
        consecutive += int(np.count_nonzero(seen.take(ids) != i - 1))
        seen[ids] = i
    return Traffic(
        loaded=sum(len(step.load_rows) for step in steps),
        loaded_partial=sum(int(np.count_nonzero(step.load_partial)) for step in steps),
        sent_back=sum(len(step.send_rows) for step in steps),
        no_reuse=sum(len(ids) for ids in dense),
        consecutive_reuse=consecutive,
        lower_bound=union,
    )
