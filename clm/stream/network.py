"""The network lane: splats of views go to the rank that rasterises each, their gradients come back.

A group is as many views as there are ranks; rank k rasterises its k-th. Every rank projects its own rows of all of them, each view
in a rasteriser of its own, which keeps what the way back needs. The lane has a thread: splats of the next group travel while this
one is rasterised, in the same order on every rank, because every rank's plan has the same groups (`make_plan`). What arrives is in
the order of ranks, which is that of all rows; each splat's gradient comes back to the row that it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clm.device.interface import Device, Event
from clm.kernels.memory import Room
from clm.plan.residency import views_under_way
from clm.ranks import Ranks
from clm.render import Rasterizer
from clm.stream.handover import HostLane, Outcome
from clm.stream.spans import Span


@dataclass
class Group:
    """Views of a batch from its `first` on, one for each rank or fewer; the rasterisers that have this rank's rows of them."""

    first: int
    projectors: list[Rasterizer]
    room: Room  # of my view's splats; those of the next group come before they are used
    splats: Outcome[tuple[Any, np.ndarray, Event]] = field(default_factory=Outcome)  # of my view; how many of each rank
    returned: Outcome[Event] = field(default_factory=Outcome)  # gradients of my rows are with the projectors

    @property
    def views(self) -> int:
        return len(self.projectors)


class Travelled:
    """What one rank has sent for views that train: bytes to each rank [world] i64, over so many images of all ranks."""

    def __init__(self, world: int):
        self.to_each, self.images = np.zeros(world, np.int64), 0


class Network:
    """What one rank sends to the others, and gets from them, while it trains or renders."""

    def __init__(self, ranks: Ranks, rasterizer: Rasterizer, device: Device):
        """rasterizer: which this rank's own view of each group is rasterised with."""
        self._ranks, self._rasterizer = ranks.lane("splats"), rasterizer
        self._compute, self._stream = device.stream("compute"), device.stream("network")
        self._lane = HostLane("network")
        self._projectors = [rasterizer.another() for _ in range(views_under_way(ranks.world))]
        self._splats, self._gradients = (Room(), Room()), Room()  # that come
        self.spans: list[Span] = []
        self.sent = np.zeros(ranks.world, np.int64)  # bytes to each other rank

    def groups(self, views: int) -> list[Group]:
        """Of a batch of so many views. Those of the one before are over."""
        world, groups = self._ranks.world, []
        for k, first in enumerate(range(0, views, world)):
            place = k % 2 * world
            members = self._projectors[place : place + min(world, views - first)]
            groups.append(Group(first, members, self._splats[k % 2]))
        return groups

    def send(self, group: Group) -> None:
        """All rows of the group's views are projected: their splats go, those of my view come."""
        projected = self._compute.record()
        self._hand_over(lambda: self._send(group, projected), "splats", group, group.splats)

    def splats(self, group: Group) -> tuple[Any, np.ndarray]:
        """Those of my view, for the compute stream, and how many came from each rank [world]. The host waits until all ranks have
        sent theirs."""
        splats, counts, came = group.splats.result()
        group.splats = Outcome()  # nobody asks again, and splats are large
        self._compute.wait(came, "the splats have come")
        self._compute.uses(splats)
        return splats, counts

    def send_back(self, group: Group, counts: np.ndarray, exist: bool) -> None:
        """My view is rasterised and differentiated: the gradients of its splats, counts [world] of them from each rank, go back.
        exist: whether there are any. The rasteriser may take another view when this returns."""
        mine = self._ranks.rank < group.views
        gradients = self._rasterizer.gradients_to(counts if mine else counts[:0], exist)
        going = counts + 1 if mine else np.zeros(self._ranks.world, np.int64)
        made = self._compute.record()
        self._hand_over(lambda: self._return(group, gradients, going, made), "gradients", group, group.returned)

    def returned(self, group: Group) -> None:
        """Gradients of my rows are with the projectors, for the compute stream. The host waits until all ranks have sent them."""
        self._compute.wait(group.returned.result(), "the gradients have come back")

    def close(self) -> None:
        self._lane.close()

    def _send(self, group: Group, projected: Event) -> None:
        def travel() -> tuple[Any, np.ndarray]:
            splats, counts = self._rasterizer.splats_of(group.projectors)
            return self._exchange(splats, self._of_all(counts), None, group.room)

        self._stream.wait(projected, "the splats are made")
        splats, counts = self._stream.run(travel)
        group.splats.succeed((splats, counts, self._stream.record()))

    def _return(self, group: Group, gradients: Any, going: np.ndarray, made: Event) -> None:
        coming = self._of_all(np.array([view.drawn + 1 for view in group.projectors], np.int64))
        end = np.cumsum(coming)

        def travel() -> Any:
            came, _ = self._exchange(gradients, going, coming, self._gradients)
            for view, first, last in zip(group.projectors, (end - coming).tolist(), end.tolist(), strict=False):
                view.put_gradients(came[first:last])
            return came

        self._stream.wait(made, "the gradients are made")
        self._stream.uses(gradients)
        self._compute.uses(self._stream.run(travel))
        group.returned.succeed(self._stream.record())

    def _exchange(self, rows: Any, counts: np.ndarray, coming: np.ndarray | None, room: Room) -> tuple[Any, np.ndarray]:
        """As `Ranks.exchange`, counted; rows are f32."""
        sent = 4 * rows.shape[1] * counts + (8 if coming is None else 0)
        sent[self._ranks.rank] = 0
        self.sent += sent
        return self._ranks.exchange(rows, counts, coming, lambda count: room.rows(count, rows.shape[1]))

    def _of_all(self, counts: np.ndarray) -> np.ndarray:
        """[world]: a last, smaller group has no view for some ranks."""
        return np.pad(counts, (0, self._ranks.world - len(counts)))

    def _hand_over(self, work: Callable[[], None], name: str, group: Group, outcome: Outcome[Any]) -> None:
        def run() -> None:
            began = time.perf_counter()
            try:
                work()
            except BaseException as error:
                outcome.fail(error)  # who waits for it sees it
            self.spans.append(Span("network", name, group.first, began, time.perf_counter()))

        self._lane.hand_over(run)
