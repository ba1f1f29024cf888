"""The tasks of one batch over several ranks: what each rank does for each group of views, and who waits for whom.

The rules are those of the run (`clm/run/shared_views.py`, `clm/stream/network.py`), a group of views at a time instead of turn by
turn, in this order on every rank:
  project(0), project(1), draw(0), add(0), project(2), draw(1), add(1), ...
  load, send back, update   beside, as in `clm.forecast.turns`: of each step's rows; loads run two steps ahead
  splats(g)     network     once every rank has projected group g
  draw(g)       device      of the rank whose view it is: sort, lists, blend, compare, differentiate; once its splats are there
  gradients(g)  network     once all views of the group are drawn
  add(g)        device      project backward, once the gradients are back
A batch begins when all ranks have ended the one before. What goes from rank to rank of one host takes the link of either; what
goes to another host takes the network of both, which all ranks of a host share. Both carry as much in either direction at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from clm.forecast.machine import Machine, gradient_bytes, row_bytes
from clm.forecast.tasks import Graph, Task
from clm.forecast.turns import Load, Rates, count_turn
from clm.plan.budget import CULL_BYTES
from clm.plan.residency import Plan, Turn

PROJECT_SHARE = (
    0.5  # of what rendering costs by rows that is projecting, there and back; the rest is sorting and blending
)
_LOADS_AHEAD = 2  # steps


@dataclass(frozen=True)
class Step:
    """Rows of one rank that a group of views needs on the way there, or back."""

    rows: float
    loads: Load
    final: float
    final_resident: float
    parked: float


@dataclass(frozen=True)
class RankBatch:
    """One batch of one rank: project[g] and add[g] of each group."""

    project: list[Step]
    add: list[Step]
    rows: float  # of all views


def count_batch(plan: Plan, world: int, resident: np.ndarray | None, scale: float) -> RankBatch:
    """Of a rank's plan, whose views go in groups of `world`; counts times `scale`."""
    project: list[Step] = []
    add: list[Step] = []
    for (_, _, adds), turns in groupby(plan.turns, lambda turn: _step_of(turn, world)):
        counts = [count_turn(turn, 0, resident, scale) for turn in turns]
        parts = [part for turn in counts for part in turn.loads]
        load = Load(*(sum(getattr(part, name) for part in parts) for name in ("rows", "resident", "partial")))
        names = ("rows", "final", "final_resident", "parked")
        rows, *sent = (sum(getattr(turn, name) for turn in counts) for name in names)
        (add if adds else project).append(Step(rows, load, *sent))
    if world == 1:  # there and back in one
        none = Load(0.0, 0.0, 0.0)
        project = [Step(step.rows, step.loads, 0.0, 0.0, 0.0) for step in add]
        add = [Step(step.rows, none, step.final, step.final_resident, step.parked) for step in add]
    return RankBatch(project, add, sum(step.rows for step in project))


def _step_of(turn: Turn, world: int) -> tuple[int, int, bool]:
    """Turns with one of these follow each other, and are one step. One rank alone takes a view at a time."""
    return (turn.view, 0, True) if world == 1 else (-1, turn.position // world, turn.adds)


class RankTasks:
    """Adds the tasks of one batch after the other, of all ranks, to a graph."""

    def __init__(self, graph: Graph, rates: Rates, world: int, late: int = 0):
        """late: so many groups are drawn between a group's own drawing and its gradients being added. A run has none: what another
        order would bring can be asked."""
        self.graph, self.rates, self.world, self.late = graph, rates, world, late
        self.machine: Machine = rates.machine
        self.begin: tuple[int, ...] = ()
        self._number = -1

    def host_of(self, rank: int) -> int:
        return int(rank // self.machine.ranks_per_host)

    def batch(
        self,
        ranks: Sequence[RankBatch],
        following: Sequence[RankBatch],
        drawn: np.ndarray,
        pixels: np.ndarray,
        links: list[tuple[np.ndarray, np.ndarray]],
    ) -> None:
        """drawn [views, world] and pixels [views] in the order of the batch; links: `exchanges` of it; following: the batch that is
        planned beside it."""
        self._number += 1
        self._released: dict[int, list[int]] = {rank: [] for rank in range(self.world)}
        self._ends: list[int] = []
        groups = len(links)
        splats: dict[int, list[tuple[int, ...]]] = {}
        back: list[list[tuple[int, ...]]] = []
        for g in range(groups):
            for ahead in range(2 if g == 0 else 1):
                if (project := g + ahead + (g > 0)) < groups:
                    splats[project] = self._project(ranks, project, links[project][0])
            views = drawn[g * self.world : (g + 1) * self.world], pixels[g * self.world : (g + 1) * self.world]
            back.append(self._draw(g, *views, splats.pop(g), links[g][1]))
            if g >= self.late:
                self._add(ranks, g - self.late, back[g - self.late])
        for g in range(max(0, groups - self.late), groups):
            self._add(ranks, g, back[g])
        for rank, batch in enumerate(following):
            self._ends.append(self._plan(rank, batch))
        self.begin = tuple(self._ends)

    # ---- steps ----

    def _project(self, ranks: Sequence[RankBatch], g: int, links: np.ndarray) -> list[tuple[int, ...]]:
        ready = []
        for rank, batch in enumerate(ranks):
            step = batch.project[g]
            placed = self._load(rank, step.loads)
            packed = 2 * float(links[rank].sum()) / (1e9 * self.machine.device_gb_s)
            ready.append(self._compute(rank, "project", self._rows_seconds(step.rows) + packed, placed))
            self._send_back(rank, step, ready[-1])
        return self._network("splats", links, ready)

    def _draw(
        self, g: int, drawn: np.ndarray, pixels: np.ndarray, there: list[tuple[int, ...]], links: np.ndarray
    ) -> list[tuple[int, ...]]:
        machine, ready = self.machine, []
        for rank, (rows, size) in enumerate(zip(drawn.sum(axis=1).tolist(), pixels.tolist(), strict=True)):
            by_rows = 1e-9 * machine.render_ns_per_row * (1 - PROJECT_SHARE) * rows
            seconds = by_rows + 1e-3 * machine.render_ms_per_view + 1e-9 * machine.render_ns_per_pixel * size
            ready.append(self._compute(rank, "draw", seconds, *there[rank]))
        return self._network("gradients", links, ready)

    def _add(self, ranks: Sequence[RankBatch], g: int, back: list[tuple[int, ...]]) -> None:
        for rank, batch in enumerate(ranks):
            step = batch.add[g]
            placed = self._load(rank, step.loads)
            added = self._compute(rank, "add", self._rows_seconds(step.rows), placed, *back[rank])
            self._send_back(rank, step, added)

    def _rows_seconds(self, rows: float) -> float:
        """Projecting so many rows, there or back."""
        return 1e-9 * self.machine.render_ns_per_row * PROJECT_SHARE / 2 * rows

    # ---- what they consist of ----

    def _task(self, lane: str, worker: str, name: str, rank: int, where: str, seconds: float, *after: int) -> int:
        """Work of one rank. Of the host it has its share of the cores."""
        machine = self.machine
        if machine.on_cpu and where == "device":
            where = "host"
        if where == "host":
            share = 1.0 / machine.ranks_per_host
            task = Task(
                lane, f"{worker} {rank}", name, self._number, -1, f"host {self.host_of(rank)}", seconds / share, share,
                (*self.begin, *after),
            )  # fmt: skip
        else:
            waits = (*self.begin, *after)
            task = Task(lane, f"{worker} {rank}", name, self._number, -1, f"{where} {rank}", seconds, 1.0, waits)
        return self.graph.add(task)

    def _compute(self, rank: int, name: str, seconds: float, *after: int) -> int:
        return self._task("compute", "compute", name, rank, "device", seconds, *after)

    def _load(self, rank: int, part: Load) -> int:
        rates, released = self.rates, self._released[rank]
        free = (released[-_LOADS_AHEAD],) if len(released) >= _LOADS_AHEAD else ()
        gathered = self._task("load", "load", "gather", rank, "host", rates.gather(part.rows) + rates.fixed, *free)
        size = part.rows * row_bytes(rates.columns, rates.colour_bus) + part.partial * gradient_bytes(rates.columns)
        copied = self._task("load", "copy in", "copy in", rank, "bus_in", rates.copy_in(size), gathered)
        seconds = rates.place(part) + rates.move_gradients(part.partial)
        return self._task("load", "place", "place", rank, "device", seconds, copied)

    def _send_back(self, rank: int, step: Step, computed: int) -> None:
        rates, sent = self.rates, step.final + step.parked
        seconds = rates.move_gradients(sent) + rates.adam(step.final_resident, on_device=True)
        collected = self._task("send_back", "collect", "collect", rank, "device", seconds, computed)
        size = sent * gradient_bytes(rates.columns) + step.final_resident * CULL_BYTES
        copied = self._task("send_back", "copy out", "copy out", rank, "bus_out", rates.copy_out(size), collected)
        seconds = rates.adam(step.final, on_device=False) + rates.host_copy(step.parked) + rates.fixed * (sent > 0)
        self._ends.append(self._task("update", "update", "host adam", rank, "host", seconds, copied))
        self._released[rank].append(copied)

    def _plan(self, rank: int, batch: RankBatch) -> int:
        machine = self.machine
        seconds, core = 1e-9 * machine.plan_ns_per_row * batch.rows, 1.0 / machine.cores
        where = f"host {self.host_of(rank)}"
        return self.graph.add(
            Task("plan", f"plan {rank}", "cull, order, plan", self._number, -1, where, seconds, core, self.begin)
        )

    def _network(self, name: str, links: np.ndarray, ready: list[int]) -> list[tuple[int, ...]]:
        """An exchange that begins when all ranks are ready; what each rank waits for. links [world, world]: bytes."""
        machine, hosts = self.machine, np.array([self.host_of(rank) for rank in range(self.world)])
        if self.world == 1:
            return [(ready[0],)]
        same, fixed = hosts[:, None] == hosts[None, :], 1e-6 * machine.network_us
        near, far = np.where(same, links, 0.0), np.where(same, 0.0, links)
        arrives: dict[int, tuple[int, ...]] = {}
        for host in sorted(set(hosts.tolist())) if far.any() else ():
            mine = hosts == host
            most = max(float(far[mine].sum()), float(far[:, mine].sum()))
            seconds = fixed + most / (1e9 * machine.network_gb_s)
            task = Task(
                "network", f"network {host}", name, self._number, -1, f"network {host}", seconds, 1.0, tuple(ready)
            )
            arrives[host] = (self.graph.add(task),)
        there = []
        for rank in range(self.world):
            most = max(float(near[rank].sum()), float(near[:, rank].sum()))
            seconds = fixed + (most / (1e9 * machine.link_gb_s) if most else 0.0)
            task = Task("network", f"link {rank}", name, self._number, -1, f"link {rank}", seconds, 1.0, tuple(ready))
            there.append((self.graph.add(task), *arrives.get(int(hosts[rank]), ())))
        return there
