"""The state of one batch while the lanes carry it out: what each turn has come to, and what is parked meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from clm.device.interface import Event, Moment, Stream
from clm.kernels.rows import AdamStep
from clm.plan.residency import Plan, Traffic
from clm.stream.handover import Outcome
from clm.stream.parking import ParkedGradients
from clm.stream.route import Route
from clm.stream.spans import Span
from clm.stream.ticks import Ticks
from clm.stream.tiers import Tiers


@dataclass
class TurnState:
    """How far one turn is. Settled when the work is handed to the device; the event is reached when it is done there."""

    loaded: Outcome[Event] = field(default_factory=Outcome)  # the turn's rows are in their slots
    computed: Outcome[Event] = field(default_factory=Outcome)
    released: Outcome[Event] = field(default_factory=Outcome)  # gradients have left the slots that the turn gives up
    updated: Outcome[None] = field(default_factory=Outcome)
    crossed: tuple[int, int, int] | None = (
        None  # rows loaded, brought back and sent back over the bus, once it is routed
    )
    _route: Route | None = None

    @property
    def route(self) -> Route:
        assert self._route is not None, "a turn is routed when it is loaded, until it is over"
        return self._route

    def begin(self, route: Route) -> None:
        self._route, self.crossed = route, route.crossing

    def end(self) -> None:
        """Nothing works for the turn any more: its index lists leave the device."""
        self._route = None
        self.updated.succeed(None)

    def outcomes(self) -> tuple[Outcome, ...]:
        return self.loaded, self.computed, self.released, self.updated


@dataclass
class Batch:
    """One plan, or the rest of an interrupted one, under way."""

    plan: Plan
    adam: AdamStep | None  # None: of a store without moments, whose rows are only rendered
    columns: int
    traffic: Traffic  # of the whole batch, as planned
    union: np.ndarray  # rows of the whole batch
    ticks: Ticks | None = None  # of a store on disk, while a batch trains
    turns: list[TurnState] = field(init=False)
    parked: ParkedGradients = field(default_factory=ParkedGradients)
    entries: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)  # rows and their new cull entries
    marks: list[tuple[str, str, int, Event, Event]] = field(default_factory=list)  # lane, name, turn, start, end
    began: float = field(default_factory=time.perf_counter)
    counted: tuple[int, int, int] = (0, 0, 0)  # rows loaded, brought back and sent back by parts that were interrupted

    def __post_init__(self) -> None:
        self.turns = [TurnState() for _ in self.plan.turns]

    @property
    def bf16_colours(self) -> bool:
        """Whether colours cross the bus as bf16: every fetch of the batch rounds them, so packing loses nothing."""
        return self.adam is not None and bool(self.adam.bf16_colours)

    @contextmanager
    def span(self, stream: Stream, lane: str, name: str, i: int) -> Iterator[None]:
        """Time of work on a stream."""
        began = stream.record()
        yield
        self.marks.append((lane, name, i, began, stream.record()))

    @contextmanager
    def host_span(self, lane: str, name: str, i: int) -> Iterator[None]:
        """Time of work on a host thread."""
        began = Moment()
        yield
        self.marks.append((lane, name, i, began, Moment()))

    def end_turn(self, i: int) -> None:
        """The final rows of turn i are updated."""
        if self.ticks is not None:
            self.ticks.updated(i)
        self.turns[i].end()

    def cancel(self) -> None:
        """Nobody waits forever for what will not come."""
        for turn in self.turns:
            for outcome in turn.outcomes():
                outcome.fail(CancelledError())

    def stop(self, i: int, parked_rows: int) -> None:
        """The batch ends before turn i; gradients of `parked_rows` rows were taken along to the host."""
        loaded, brought_back, sent_back = self._crossed(i)
        self.counted = loaded, brought_back, sent_back + parked_rows

    def rest(self, plan: Plan) -> Batch:
        """What is left of a stopped batch, going on with another plan."""
        return replace(self, plan=plan)

    def _crossed(self, sent: int) -> tuple[int, int, int]:
        begun = [turn.crossed for turn in self.turns if turn.crossed is not None]
        ended = [turn.crossed for turn in self.turns[:sent] if turn.crossed is not None]
        loaded, brought_back, sent_back = self.counted
        return (
            loaded + sum(rows for rows, _, _ in begun),
            brought_back + sum(rows for _, rows, _ in begun),
            sent_back + sum(rows for _, _, rows in ended),
        )

    def moved(self, tiers: Tiers) -> Traffic:
        """What crossed the bus, once the batch is over: the plan's traffic without the rows that stayed on the device."""
        planned, bound = self.traffic, len(self.union[tiers.split(self.union)[0]])
        return Traffic(*self._crossed(len(self.turns)), planned.no_reuse, planned.consecutive_reuse, bound)

    def spans(self) -> list[Span]:
        return [Span(lane, name, turn, start.seconds(), end.seconds()) for lane, name, turn, start, end in self.marks]
