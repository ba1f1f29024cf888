"""What several ranks would do with a run: whose the rows are, what they send each other, how fast they would be together.

Rows are shared out in the order of the store, in near-equal ranges, as a run does. Each rank's plan of a batch is the real one,
of its own rows and in groups of views; which of its rows a view draws, the projection of the CPU's rasteriser says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from clm.camera import Camera
from clm.errors import ClmError
from clm.forecast.links import exchanges, link_bytes, pixel_bytes
from clm.forecast.machine import Machine
from clm.forecast.rank_tasks import RankBatch, RankTasks, count_batch
from clm.forecast.tasks import Graph, run
from clm.forecast.turns import Rates
from clm.plan.residency import Plan, make_plan
from clm.render import CpuRasterizer
from clm.store.store import Store


class Sharing:
    """Rows [N] in near-equal ranges, one for each rank; what the largest view of a rank has."""

    def __init__(self, rows: int, ranks: int):
        self.ranks, self.edges = ranks, rows * np.arange(ranks + 1, dtype=np.int64) // ranks
        self.largest_view = 0

    def split(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rows [M] i32 (ascending) by rank, each counted from that rank's first row."""
        cuts = np.searchsorted(rows, self.edges)
        return [
            (rows[a:b] - edge).astype(np.int32)
            for a, b, edge in zip(cuts[:-1], cuts[1:], self.edges[:-1].tolist(), strict=True)
        ]

    def noting(self, sets: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Passes visible sets on."""
        for rows in sets:
            self.largest_view = max(self.largest_view, int(np.diff(np.searchsorted(rows, self.edges)).max(initial=0)))
            yield rows


@dataclass(frozen=True, eq=False)
class Party:
    """Several ranks, and the batches that they begin with."""

    ranks: int
    views: tuple[list[int], ...]  # of each batch, in the order in which they run
    plans: tuple[tuple[Plan, ...], ...]  # of each batch, one for each rank
    drawn: tuple[np.ndarray, ...]  # of each batch [views, ranks] f64: rows that they draw, scaled
    pixels: tuple[np.ndarray, ...]  # of each batch [views]
    residents: tuple[np.ndarray, ...]  # of each rank [rows] bool
    scale: float
    absgrad: bool

    @property
    def images(self) -> int:
        return sum(map(len, self.views))

    @property
    def links(self) -> np.ndarray:
        """Bytes from each rank to each other one [ranks, ranks] i64, over all these batches."""
        return np.sum([link_bytes(drawn, self.absgrad) for drawn in self.drawn], axis=0)

    @property
    def rows_drawn(self) -> float:
        return float(sum(drawn.sum() for drawn in self.drawn))

    @property
    def rows_seen(self) -> float:
        """Of visible sets."""
        turns = (turn for batch in self.plans for plan in batch for turn in plan.turns if turn.projects)
        return self.scale * sum(len(turn.rows) for turn in turns)

    @property
    def pixel_bytes(self) -> float:
        return sum(pixel_bytes(drawn, pixels) for drawn, pixels in zip(self.drawn, self.pixels, strict=True))

    @property
    def busy_ranks(self) -> float:
        """Ranks that have a view to rasterise, on average over groups."""
        groups = sum(-(-len(views) // self.ranks) for views in self.views)
        return self.images / groups


@dataclass(frozen=True)
class RankTimeline:
    """What the first batches take."""

    seconds_per_batch: float
    images_per_second: float
    lanes: dict[str, float]  # busy seconds of a batch, on average over ranks
    network_exposed: float  # seconds of a batch that a network which takes no time would save


def plan_party(
    store: Store,
    cameras: Sequence[Camera],
    batches: Sequence[tuple[list[int], list[np.ndarray]]],
    sharing: Sharing,
    resident: np.ndarray,
    capacity: int,
    scale: float,
    rasterizer: CpuRasterizer,
    sh_degree: int,
) -> Party:
    """batches: views in their order, and their visible sets; resident [N] bool and capacity (slots of each rank): in rows of the
    store, each of which stands for `scale` Gaussians. rasterizer: says what views draw."""
    plans, drawn, pixels = [], [], []
    for views, sets in batches:
        by_rank = list(zip(*(sharing.split(rows) for rows in sets), strict=True))
        plans.append(
            tuple(make_plan(views, list(rows), capacity, store.page_rows, ranks=sharing.ranks) for rows in by_rank)
        )
        counts = np.zeros((len(views), sharing.ranks))
        for k, (view, rows) in enumerate(zip(views, sets, strict=True)):
            for rank, theirs in enumerate(np.split(rows, np.searchsorted(rows, sharing.edges[1:-1]))):
                rasterizer.begin(cameras[view], sh_degree)
                counts[k, rank] = rasterizer.project(store.geometry, store.colour, np.ascontiguousarray(theirs))
        drawn.append(scale * counts)
        pixels.append(np.array([cameras[view].width * cameras[view].height for view in views], np.float64))
    residents = tuple(resident[a:b] for a, b in zip(sharing.edges[:-1], sharing.edges[1:], strict=True))
    orders = tuple(views for views, _ in batches)
    return Party(sharing.ranks, orders, tuple(plans), tuple(drawn), tuple(pixels), residents, scale, rasterizer.absgrad)


def check_network(machine: Machine, ranks: int) -> None:
    """ClmError where a machine file does not say how fast its ranks talk."""
    needed = ["link_gb_s"] * (machine.ranks_per_host > 1) + ["network_gb_s"] * (ranks > machine.ranks_per_host)
    for key in needed if ranks > 1 else ():
        if not getattr(machine, key):
            raise ClmError(
                f"How fast ranks of {machine.name} talk to each other is not known (`{key}`).",
                f"Add `{key}` to its file, in 10^9 bytes per second.",
            )


def simulate_party(
    party: Party, machine: Machine, *, columns: int = 48, moments: str = "f32", colour_bus: str = "f32", late: int = 0
) -> RankTimeline:
    """The first batches on a machine; columns, moments, colour_bus as for `simulate`, late as for `RankTasks`. ClmError where it
    does not say how fast its network is."""
    check_network(machine, party.ranks)
    seconds, lanes = _run(party, machine, columns, moments, colour_bus, late)
    free = replace(machine, link_gb_s=1e9, network_gb_s=1e9, network_us=0.0)
    without, _ = _run(party, free, columns, moments, colour_bus, late)
    count = len(party.plans)
    return RankTimeline(
        seconds / count,
        party.images / seconds if seconds else math.inf,
        {lane: busy / count / party.ranks for lane, busy in lanes.items()},
        max(0.0, seconds - without) / count,
    )


def _run(
    party: Party, machine: Machine, columns: int, moments: str, colour_bus: str, late: int
) -> tuple[float, dict[str, float]]:
    graph = Graph()
    tasks = RankTasks(graph, Rates(machine, columns, moments, colour_bus), party.ranks, late)
    counted: list[list[RankBatch]] = [
        [
            count_batch(plan, party.ranks, resident, party.scale)
            for plan, resident in zip(plans, party.residents, strict=True)
        ]
        for plans in party.plans
    ]
    for k, ranks in enumerate(counted):
        links = exchanges(party.drawn[k], party.absgrad)
        tasks.batch(ranks, counted[(k + 1) % len(counted)], party.drawn[k], party.pixels[k], links)
    start, end = run(graph.tasks)
    lanes: dict[str, float] = {}
    for task, began, ended in zip(graph.tasks, start, end, strict=True):
        lanes[task.lane] = lanes.get(task.lane, 0.0) + float(ended - began)
    return float(end.max(initial=0.0)), lanes
