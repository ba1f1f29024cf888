"""The slow twin of `clm.plan.residency.make_plan`: the same rule in numpy passes over the sorted union.

Also the local numbering of a batch's rows that it and `slow_order` use: blocks that no view touches are squeezed out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from clm.plan.residency import Plan, Traffic, Turn


def localize(sets: Sequence[np.ndarray], page_rows: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Local ids (int64, below t * page_rows) of sorted int32 row sets, and the touched blocks [t], ascending."""
    if page_rows < 1:
        raise ValueError(f"page_rows must be positive, got {page_rows}")
    blocks = [(rows // np.int32(page_rows)).astype(np.int64) for rows in sets]
    touched = np.zeros(max((int(b[-1]) + 1 for b in blocks if len(b)), default=0), bool)
    for block in blocks:
        touched[block] = True
    listed = np.flatnonzero(touched)
    if len(listed) == len(touched):
        return [rows.astype(np.int64) for rows in sets], listed
    shift = np.zeros(len(touched), np.int64)
    shift[listed] = (np.arange(len(listed)) - listed) * page_rows
    return [rows + shift.take(block) for rows, block in zip(sets, blocks, strict=True)], listed


def global_rows(local: np.ndarray, touched: np.ndarray, page_rows: int) -> np.ndarray:
    """Row ids int32 of local ids: the inverse of `localize`."""
    shift = (touched - np.arange(len(touched))) * page_rows
    return (local + shift.take(local // page_rows)).astype(np.int32)


class SlowTurn(NamedTuple):
    view: int
    view_rows: np.ndarray
    first: int
    projects: bool
    adds: bool
    rows: np.ndarray


def slow_make_plan(
    views: Sequence[int], sets: Sequence[np.ndarray], capacity: int, page_rows: int = 2048, trains: bool = True
) -> Plan:
    """What `make_plan` must return, field by field."""
    listed = [turn for view, rows in zip(views, sets, strict=True) for turn in slow_turns(view, rows, capacity, trains)]
    dense, union_rows = _number_rows([turn.rows for turn in listed], page_rows)
    next_uses = _next_uses(dense, len(union_rows))
    turns = _plan_turns(listed, dense, next_uses, union_rows, capacity)
    return Plan(turns, capacity, _count_traffic(turns, dense, len(union_rows)), union_rows)


def slow_turns(view: int, rows: np.ndarray, capacity: int, trains: bool) -> list[SlowTurn]:
    """The turns of one view: there over all pieces, and back."""
    count = 1
    while len(rows) > capacity and -(-len(rows) // count) > max(1, capacity // 2):
        count += 1
    edges = [len(rows) * k // count for k in range(count + 1)]
    there = [SlowTurn(view, rows, a, True, trains and b == edges[-1], rows[a:b]) for a, b in pairwise(edges)]
    back = [SlowTurn(view, rows, a, False, True, rows[a:b]) for a, b in pairwise(edges[:-1])][::-1]
    return there + (back if trains else [])


def _number_rows(sets: Sequence[np.ndarray], page_rows: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Positions of each view's rows in the sorted union, and the union."""
    local, touched = localize(sets, page_rows)
    member = np.zeros(len(touched) * page_rows, bool)
    for ids in local:
        member[ids] = True
    listed = np.flatnonzero(member)
    position = np.empty(len(member), np.int64)  # i64 throughout: numpy indexes with it two to three times faster
    position[listed] = np.arange(len(listed))
    return [position.take(ids) for ids in local], global_rows(listed, touched, page_rows)


def _next_uses(dense: Sequence[np.ndarray], union: int) -> list[np.ndarray]:
    """For each view's rows the next turn that uses them; the number of turns when there is none."""
    upcoming = np.full(union, len(dense), np.int32)
    result: list[np.ndarray] = []
    for i in range(len(dense) - 1, -1, -1):
        result.append(upcoming.take(dense[i]))
        upcoming[dense[i]] = i
    return result[::-1]


def _plan_turns(
    listed: Sequence[SlowTurn],
    dense: Sequence[np.ndarray],
    next_uses: Sequence[np.ndarray],
    union_rows: np.ndarray,
    capacity: int,
) -> tuple[Turn, ...]:
    union, count = len(union_rows), len(dense)
    slot_of = np.full(union, -1, np.int32)
    next_use = np.full(union, count, np.int32)
    evicted, added = np.zeros(union, bool), np.zeros(union, bool)
    free = deque(
        [np.arange(min(capacity, union), dtype=np.int32)]
    )  # free while the previous turn computes, oldest first
    freed = free[0][:0]  # free once the previous turn's sends have left
    missing = dense[0] if count else np.empty(0, np.int64)
    turns = []
    for i, ids in enumerate(dense):
        loads, partial = missing, evicted.take(missing)
        early_slots = _take(free, len(loads))
        early = len(early_slots)
        load_slots = np.concatenate([early_slots, freed[: len(loads) - early]])
        slot_of[loads] = load_slots
        evicted[loads] = False
        free.append(freed[len(loads) - early :])
        slots = slot_of.take(ids)

        added[ids] |= listed[i].adds
        next_use[ids] = next_uses[i]
        over, leaving = ids.compress(next_uses[i] == count), ids[:0]
        if i + 1 < count:
            missing = dense[i + 1].compress(slot_of.take(dense[i + 1]) < 0)
            needed = len(missing) - sum(map(len, free)) - len(over)
            if needed > 0:
                leaving = _farthest(slot_of, next_use, i + 1, count, needed)
                evicted[leaving] = added[leaving]
        finals, partials = over[added[over]], leaving[added[leaving]]
        dropped = np.sort(np.concatenate([over[~added[over]], leaving[~added[leaving]]]))
        sends = np.concatenate([finals, partials, dropped])
        send_slots = slot_of.take(sends)
        slot_of[sends] = -1
        freed = np.sort(send_slots)
        turns.append(
            Turn(
                *listed[i],
                slots,
                union_rows.take(loads),
                load_slots,
                early,
                partial,
                union_rows.take(sends),
                send_slots,
                len(finals),
                len(partials),
            )
        )
    return tuple(turns)


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


def _farthest(slot_of: np.ndarray, next_use: np.ndarray, turn: int, never: int, count: int) -> np.ndarray:
    """The `count` rows in the arena, needed again but not at `turn`, whose next use is farthest; ascending."""
    keepers = np.flatnonzero((slot_of >= 0) & (next_use > turn) & (next_use < never))
    key = next_use.take(keepers).astype(np.int64) * len(slot_of) + keepers
    chosen = np.partition(key, len(key) - count)[len(key) - count :]
    return np.sort(chosen % len(slot_of))


def _count_traffic(turns: Sequence[Turn], dense: Sequence[np.ndarray], union: int) -> Traffic:
    seen = np.full(union, -2, np.int32)
    consecutive = 0
    for i, ids in enumerate(dense):
        consecutive += int(np.count_nonzero(seen.take(ids) != i - 1))
        seen[ids] = i
    return Traffic(
        loaded=sum(len(turn.load_rows) for turn in turns),
        loaded_partial=sum(int(np.count_nonzero(turn.load_partial)) for turn in turns),
        sent_back=sum(turn.finals + turn.partials for turn in turns),
        no_reuse=sum(len(ids) for ids in dense),
        consecutive_reuse=consecutive,
        lower_bound=union,
    )
