"""The state of one batch while the lanes carry it out: what each step has come to, and what is parked meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np

from clm.kernels.rows import AdamStep
from clm.plan.residency import Plan, Traffic
from clm.stream.device import Event
from clm.stream.parking import ParkedGradients
from clm.stream.route import Route
from clm.stream.spans import Span
from clm.stream.tiers import Tiers


@dataclass
class StepState:
    """How far one step is. A future is set when the work is handed to the device; its event is reached when it is done."""

    loaded: Future[Event] = field(default_factory=Future)  # the step's rows are in their slots
    computed: Future[Event] = field(default_factory=Future)
    released: Future[Event] = field(default_factory=Future)  # gradients have left the slots that the step gives up
    sent: Future[Event] = field(default_factory=Future)  # and are on the host
    updated: Future[None] = field(default_factory=Future)
    routed: Route | None = None

    @property
    def route(self) -> Route:
        assert self.routed is not None, "a step is routed when it is loaded"
        return self.routed

    def futures(self) -> tuple[Future, ...]:
        return self.loaded, self.computed, self.released, self.sent, self.updated


@dataclass
class Batch:
    """One plan, or the rest of an interrupted one, under way."""

    plan: Plan
    adam: AdamStep
    columns: int
    traffic: Traffic  # of the whole batch, as planned
    union: np.ndarray  # rows of the whole batch
    steps: list[StepState] = field(init=False)
    parked: ParkedGradients = field(default_factory=ParkedGradients)
    entries: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)  # rows and their new cull entries
    marks: list[tuple[str, str, int, Event, Event]] = field(default_factory=list)  # lane, name, step, start, end
    began: float = field(default_factory=time.perf_counter)
    counted: tuple[int, int, int] = (0, 0, 0)  # rows loaded, brought back and sent back by parts that were interrupted

    def __post_init__(self) -> None:
        self.steps = [StepState() for _ in self.plan.steps]

    @property
    def bf16_colours(self) -> bool:
        """Whether colours cross the bus as bf16: every fetch of the batch rounds them, so packing loses nothing."""
        return bool(self.adam.bf16_colours)

    def futures(self) -> Iterator[Future]:
        for step in self.steps:
            yield from step.futures()

    def rest(self, plan: Plan, parked_rows: int, done: int) -> Batch:
        """The same batch going on with another plan, after `done` steps of this one were sent back and `parked_rows` more
        were taken along."""
        loaded, brought_back, sent_back = self._crossed(done)
        return replace(self, plan=plan, counted=(loaded, brought_back, sent_back + parked_rows))

    def _crossed(self, sent: int) -> tuple[int, int, int]:
        routes = [step.routed for step in self.steps if step.routed is not None]
        back = [step.routed for step in self.steps[:sent] if step.routed is not None]
        loaded, brought_back, sent_back = self.counted
        return (
            loaded + sum(len(route.gather) for route in routes),
            brought_back + sum(len(route.early.partial) + len(route.late.partial) for route in routes),
            sent_back + sum(route.collected for route in back),
        )

    def moved(self, tiers: Tiers) -> Traffic:
        """What crossed the bus, once the batch is over: the plan's traffic without the rows that stayed on the device."""
        loaded, brought_back, sent_back = self._crossed(len(self.steps))
        bound = len(self.union[tiers.split(self.union)[0]])
        return replace(self.traffic, loaded=loaded, loaded_partial=brought_back, sent_back=sent_back, lower_bound=bound)

    def spans(self) -> list[Span]:
        return [Span(lane, name, step, start.seconds(), end.seconds()) for lane, name, step, start, end in self.marks]
