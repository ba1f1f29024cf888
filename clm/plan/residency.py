"""The plan of one batch: which rows are loaded, kept, sent back and final at each turn, and in which slots.

A turn is a view, or a piece of one: a view whose visible set exceeds the arena is cut into ranges of it, each at most half
the arena. Its pieces are projected one after the other; the last turn of these also rasterises the view and takes its own
gradients; the others follow in reverse order for theirs. To the planner a turn is a set of rows.

The order of turns is known, so what to keep is not a heuristic: the rows whose next use is nearest (Belady 1966), which
loads the fewest rows of any policy with that capacity. A pure function over arrays (`clm.kernels.plan.residency` walks
the rows); the executor carries its turns out.

Invariants: every turn finds all its rows in its slots; a kept row never moves; no slot is loaded before the gradient
of its former row has been sent back; a row is final exactly once per batch, after its last use; a row that is evicted
before takes its partial gradient along, if it has one, and gets it back, so the sum over views runs in batch order for any
capacity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from clm.kernels.plan import residency
from clm.plan.budget import GRADIENT_BYTES, PARAMETER_BYTES
from clm.store.layout import PAGE_ROWS


@dataclass(frozen=True, eq=False)
class Turn:
    """A view of the batch, or a piece of one. Order of events: loads, compute, sends; arrays are int32 but the bool flags.

    The first `load_early` loads go to slots that are free while the previous turn computes: they may run beside it, as
    soon as the sends of the turn before that have left (those freed the slots, and carry partial gradients that an
    early load may bring back). The other loads wait for the previous turn's sends. At the first turn all are early.
    Loads ascend by row, and by slot, within early and within late; sends ascend by row within each of their three kinds.
    """

    view: int
    view_rows: np.ndarray  # [V] ascending: the view's visible set
    first: int  # the turn's rows are those of the view from here on
    projects: bool  # its rows become splats
    adds: bool  # its rows get their gradients
    rows: np.ndarray  # [M] ascending
    slots: np.ndarray  # [M] where they lie while the turn computes
    load_rows: np.ndarray  # [L]
    load_slots: np.ndarray  # [L]
    load_early: int
    load_partial: np.ndarray  # [L] bool: evicted earlier in this batch, its partial gradient comes back with it
    send_rows: np.ndarray  # [S] final rows, then those evicted with a partial gradient, then those that leave with none
    send_slots: np.ndarray  # [S]
    finals: int  # of them: this turn was the row's last use of the batch
    partials: int
    # Where several ranks rasterise a group of views at a time (`make_plan`):
    position: int = 0  # of the view in the batch
    sends: bool = False  # all splats of the group are there, and go to who rasterises them
    draws: bool = False  # the group is rasterised before anything is added

    @property
    def begins(self) -> bool:
        """Whether the view begins with this turn."""
        return self.projects and self.first == 0

    @property
    def renders(self) -> bool:
        """Whether all of the view's splats are there now: the view is rasterised in this turn."""
        return self.projects and self.first + len(self.rows) == len(self.view_rows)


@dataclass(frozen=True)
class Traffic:
    """Rows that cross the bus in one batch, and what other policies would move with the same turns. A view in pieces takes
    most of its rows twice, so it counts twice where nothing is kept."""

    loaded: int
    loaded_partial: int  # of `loaded`: rows that bring a partial gradient back
    sent_back: int  # final and partial
    no_reuse: int  # sum |T_i| over the turns
    consecutive_reuse: (
        int  # sum |T_i \ T_{i-1}|: needs max |T_i| slots, or max |T_{i-1} u T_i| if loads overlap compute
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

    @property
    def views(self) -> list[int]:
        """Ids of the views that the plan renders, in order."""
        return [turn.view for turn in self.turns if turn.renders]


class _Cut(NamedTuple):
    """What a turn is before rows have slots; see `Turn`."""

    view: int
    view_rows: np.ndarray
    first: int
    end: int
    projects: bool
    adds: bool
    position: int = 0
    sends: bool = False
    draws: bool = False

    @property
    def rows(self) -> np.ndarray:
        return self.view_rows[self.first : self.end]


def make_plan(
    views: Sequence[int],
    sets: Sequence[np.ndarray],
    capacity: int,
    page_rows: int = PAGE_ROWS,
    *,
    trains: bool = True,
    ranks: int = 1,
) -> Plan:
    """Plans one batch. views: ids in the order they run; sets: their rows in that order, int32, strictly ascending.

    Loads at most as many rows as consecutive reuse of the same turns does with the same `capacity`, and each row of the
    union once when capacity >= |union|. Evicts only what the next turn's loads need; among rows with the same next use the
    higher row id goes. Free slots are taken in the order in which they became free. `page_rows` only sizes the local
    numbering. The arrays of all turns are cut from a few lists over the whole batch. trains False: views are only
    rendered, in one pass, and nothing is sent back. ranks: so many views are rasterised at a time (`_cut_groups`).

    Raises ValueError when there are rows but no slots, when a set is not strictly ascending from 0 on, or when the blocks
    that the batch touches have more than 2^31 - 1 places.
    """
    if len(views) != len(sets):
        raise ValueError(f"{len(views)} views but {len(sets)} sets")
    each = [_cut(view, np.ascontiguousarray(rows), capacity, trains) for view, rows in zip(views, sets, strict=True)]
    cuts = [cut for those in each for cut in those] if ranks == 1 else _cut_groups(each, ranks)
    return _plan(cuts, capacity, page_rows)


def _cut(view: int, rows: np.ndarray, capacity: int, trains: bool) -> list[_Cut]:
    """The turns of one view: one if the arena holds its rows, else every piece, and back again but for the last."""
    bounds = _bounds(len(rows), capacity)
    forward = [_Cut(view, rows, first, end, True, False) for first, end in pairwise(bounds)]
    if not trains:
        return forward
    back = [cut._replace(projects=False, adds=True) for cut in reversed(forward[:-1])]
    return [*forward[:-1], forward[-1]._replace(adds=True), *back]


def _cut_groups(each: Sequence[list[_Cut]], ranks: int) -> list[_Cut]:
    """The turns of views that have these ones alone, in groups of `ranks` views. All views of a group are projected, and those of
    the next group, too, whose splats travel while this one is rasterised; then the gradients of the group's views are added, one
    view after the other: each row's sum runs in the order of the batch, whatever the number of ranks."""
    there: list[list[_Cut]] = []
    back: list[list[_Cut]] = []
    for first in range(0, len(each), ranks):
        projecting, adding = [], []
        for position, cuts in enumerate(each[first : first + ranks], first):
            forward = [cut._replace(adds=False, position=position) for cut in cuts if cut.projects]
            projecting += forward
            adding += [cut._replace(projects=False, adds=True) for cut in reversed(forward)]
        projecting[-1] = projecting[-1]._replace(sends=True)
        adding[0] = adding[0]._replace(draws=True)
        there.append(projecting)
        back.append(adding)
    cuts = [*there[0]] if there else []
    for k, adding in enumerate(back):
        cuts += [*(there[k + 1] if k + 1 < len(there) else []), *adding]
    return cuts


def views_under_way(ranks: int) -> int:
    """Views of which a rank holds splats at one time, where several rasterise a group."""
    return 2 * ranks


def largest_turn(rows: int, capacity: int) -> int:
    """Rows of the largest turn of a view of so many rows: all, or a piece."""
    return rows if rows <= capacity else max(1, capacity // 2)


def _bounds(count: int, capacity: int) -> list[int]:
    """Where a view of `count` rows is cut: near-equal pieces of at most half the arena, so that one loads beside another."""
    if count and not capacity:
        raise ValueError(f"an arena without slots for a view of {count} rows")
    pieces = -(-count // max(1, largest_turn(count, capacity))) or 1
    return [count * piece // pieces for piece in range(pieces + 1)]


def _plan(cuts: Sequence[_Cut], capacity: int, page_rows: int) -> Plan:
    """Gives the turns' rows their slots."""
    lists = residency([cut.rows for cut in cuts], [cut.adds for cut in cuts], capacity, page_rows)
    turns = []
    row = load = send = 0  # where the turn begins in the lists
    for cut, (loads, early, *leaving) in zip(cuts, lists.counts.tolist(), strict=True):
        rows, sends = cut.rows, sum(leaving)
        loaded, sent = slice(load, load + loads), slice(send, send + sends)
        turns.append(
            Turn(
                view=cut.view,
                view_rows=cut.view_rows,
                first=cut.first,
                projects=cut.projects,
                adds=cut.adds,
                rows=rows,
                slots=lists.slots[row : row + len(rows)],
                load_rows=lists.load_rows[loaded],
                load_slots=lists.load_slots[loaded],
                load_early=early,
                load_partial=lists.load_partial[loaded],
                send_rows=lists.send_rows[sent],
                send_slots=lists.send_slots[sent],
                finals=leaving[0],
                partials=leaving[1],
                position=cut.position,
                sends=cut.sends,
                draws=cut.draws,
            )
        )
        row, load, send = row + len(rows), load + loads, send + sends
    traffic = Traffic(
        loaded=load,
        loaded_partial=lists.partial,
        sent_back=sum(turn.finals + turn.partials for turn in turns),
        no_reuse=row,
        consecutive_reuse=row - lists.shared,
        lower_bound=len(lists.union_rows),
    )
    return Plan(tuple(turns), capacity, traffic, lists.union_rows)


def _with_gradients(plan: Plan, turns: int) -> np.ndarray:
    """Rows that have a gradient once the first `turns` turns are over, ascending."""
    return np.unique(np.concatenate([plan.carried, *(turn.rows for turn in plan.turns[:turns] if turn.adds)]))


def held_after(plan: Plan, turns: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are in the arena with a gradient once the first `turns` turns have sent back, and their slots: [H] i32 each,
    ascending by row."""
    slots = np.full(len(plan.union_rows), -1, np.int32)
    for turn in plan.turns[:turns]:
        slots[np.searchsorted(plan.union_rows, turn.load_rows)] = turn.load_slots
        slots[np.searchsorted(plan.union_rows, turn.send_rows)] = -1
    held = (slots >= 0) & np.isin(plan.union_rows, _with_gradients(plan, turns))
    return plan.union_rows[held], slots[held]


def rest_of(plan: Plan, first: int, capacity: int, page_rows: int = PAGE_ROWS) -> Plan:
    """The turns from `first` on, planned anew for an arena of another size that begins empty.

    A view that is interrupted before anything of it was added begins again; one that is on its way back goes on with the
    gradients of the splats that are left. What earlier turns added to rows that are needed again is on the host (parked, or
    taken along from the arena by `held_after`): each load brings it back until more is added, so the sum over views keeps
    its order.
    """
    cuts: list[_Cut] = []
    at = first
    while at < len(plan.turns) and not plan.turns[at].projects:  # on its way back: the same pieces, if they still fit
        turn = plan.turns[at]
        edges = [turn.first + edge for edge in _bounds(len(turn.rows), capacity)]
        cuts += [_Cut(turn.view, turn.view_rows, a, b, False, True) for a, b in reversed([*pairwise(edges)])]
        at += 1
    for turn in plan.turns[at:]:
        if turn.renders:
            cuts += _cut(turn.view, turn.view_rows, capacity, trains=True)
    rest = _plan(cuts, capacity, page_rows)
    carried = np.intersect1d(_with_gradients(plan, first), rest.union_rows).astype(np.int32)
    waiting, changed, brought = np.ones(len(carried), bool), [], 0
    for turn in rest.turns:
        comes = np.isin(turn.load_rows, carried[waiting])
        if turn.adds:
            waiting &= ~np.isin(carried, turn.rows)
        changed.append(replace(turn, load_partial=turn.load_partial | comes))
        brought += int(comes.sum())
    traffic = replace(rest.traffic, loaded_partial=rest.traffic.loaded_partial + brought)
    return replace(rest, turns=tuple(changed), traffic=traffic, carried=carried)
