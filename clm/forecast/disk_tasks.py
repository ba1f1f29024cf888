"""The disk lane of the simulator: pages are written back to make room and others read, ahead of their use as far as there is
room. Reads and writes share one bandwidth; packing and checking what moves keeps the host busy meanwhile."""

from __future__ import annotations

from clm.forecast.machine import Machine
from clm.forecast.paging import Moved, PagedTurn, Tick
from clm.forecast.tasks import Graph, Task


class DiskTasks:
    """Adds the reads and writes of turns, batch after batch, to a graph. They wait for no batch to begin: pages of the views
    to come are known. They wait for the ticks in which pages that make room are used last."""

    def __init__(self, graph: Graph, machine: Machine):
        self._graph, self._machine = graph, machine
        self._over: dict[Tick, int] = {}  # when a tick is over

    def fetch(self, batch: int, turn: int, paged: PagedTurn) -> tuple[int, ...]:
        """What gathering the rows of a turn waits for."""
        return self._page(batch, turn, paged.fetch)

    def update(self, batch: int, turn: int, paged: PagedTurn) -> tuple[int, ...]:
        """What updating them waits for: pages that had to leave meanwhile."""
        return self._page(batch, turn, paged.update)

    def over(self, batch: int, turn: int, updates: bool, task: int) -> None:
        """The rows of a turn are gathered, or updated, when `task` is done."""
        self._over[Tick(batch, turn, updates)] = task

    def _page(self, batch: int, turn: int, moves: tuple[Moved, ...]) -> tuple[int, ...]:
        there: tuple[int, ...] = ()
        for moved in moves:
            # A tick that is not added yet belongs to a later turn of a batch that exceeds the frames: it waits in turn.
            over = None if moved.after is None else self._over.get(moved.after)
            room: tuple[int, ...] = () if over is None else (over,)
            for worker, name, size, rate in (
                ("disk out", "write pages", moved.written, self._machine.disk_write_gb_s),
                ("disk in", "read pages", moved.read, self._machine.disk_read_gb_s),
            ):
                if size:
                    room = self._move(batch, turn, worker, name, size, size / (1e9 * rate), room)
            there = (*there, *room)
        return there

    def _move(
        self, batch: int, turn: int, worker: str, name: str, size: float, seconds: float, room: tuple[int, ...]
    ) -> tuple[int, ...]:
        """The disk's part, and beside it the host's, which is as long where nobody takes the cores from it."""
        moved = self._graph.add(Task("disk", worker, name, batch, turn, "disk", seconds, after=room))
        machine = self._machine
        if not machine.disk_core_gb_s:
            return (moved,)
        work = size / (1e9 * machine.disk_core_gb_s) / machine.cores  # seconds of all cores
        share = min(1.0, work / seconds)
        packed = self._graph.add(
            Task("disk", f"{worker}, host", name, batch, turn, "host", work / share, share, after=room)
        )
        return moved, packed
