"""What the lanes did and when: spans of one batch, summed into seconds per lane, or drawn as a Chrome trace."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from clm.files import atomic_write

LANES = ("load", "compute", "send_back", "update", "disk", "plan", "network")


class Span(NamedTuple):
    """`lane` did `name` for turn `turn` of its batch from `start` to `end`, in seconds of `time.perf_counter`."""

    lane: str
    name: str
    turn: int
    start: float
    end: float


@dataclass
class LaneSeconds:
    """Busy seconds per lane, and the seconds of a batch in which nothing was computed."""

    load: float = 0.0
    compute: float = 0.0
    send_back: float = 0.0
    update: float = 0.0
    disk: float = 0.0  # of its threads together
    network: float = 0.0  # of splats and their gradients, waiting for other ranks included
    exposed: float = 0.0
    plan: float = 0.0  # cull + order + plan, wherever it ran
    plan_exposed: float = 0.0

    def add(self, other: LaneSeconds) -> None:
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def hidden_fraction(self) -> float:
        """Share of the lanes' work that compute did not wait for."""
        work = self.load + self.send_back + self.update
        return 1.0 if work <= 0 else float(min(1.0, max(0.0, 1.0 - self.exposed / work)))


def lane_seconds(spans: Iterable[Span], began: float, ended: float) -> LaneSeconds:
    """Sums of a batch that ran from `began` to `ended`; what no view was computed in is exposed."""
    seconds = LaneSeconds()
    for span in spans:
        setattr(seconds, span.lane, getattr(seconds, span.lane) + span.end - span.start)
    seconds.exposed = max(0.0, ended - began - seconds.compute)
    return seconds


class Trace:
    """Collects the spans of a run for chrome://tracing or Perfetto; written whole by `write`."""

    def __init__(self, path: Path):
        self.path = path
        self._spans: list[Span] = []

    def add(self, spans: Sequence[Span]) -> None:
        self._spans.extend(spans)

    def write(self) -> None:
        """Trace Event Format, complete events (`ph: X`), microseconds, one thread per lane that did something."""
        origin = min((span.start for span in self._spans), default=0.0)
        busy = {span.lane for span in self._spans}
        events: list[dict[str, object]] = [
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": tid, "args": {"name": lane.replace("_", " ")}}
            for tid, lane in enumerate(LANES)
            if lane in busy
        ]
        for lane, name, turn, start, end in self._spans:
            times = {"ts": 1e6 * (start - origin), "dur": 1e6 * (end - start)}
            events.append(
                {"ph": "X", "name": name, "pid": 1, "tid": LANES.index(lane), **times, "args": {"turn": turn}}
            )
        with atomic_write(self.path, "w") as file:
            json.dump({"traceEvents": events, "displayTimeUnit": "ms"}, file)
