"""The disk lane of the simulator: pages are written back to make room and read, some turns ahead, on one bandwidth."""

from __future__ import annotations

from clm.forecast.machine import Machine
from clm.forecast.paging import PagedTurn
from clm.forecast.tasks import Graph, Task


class DiskTasks:
    """Adds the reads and writes of turns, batch after batch, to a graph. They wait for no batch to begin: pages of the views
    to come are known."""

    def __init__(self, graph: Graph, machine: Machine, ahead: int):
        """ahead: turns, of this batch or the next, whose pages are read while an earlier one is under way."""
        self._graph, self._machine, self._ahead = graph, machine, ahead
        self._over: list[int] = []  # of each turn so far: when it is over

    def fetch(self, batch: int, turn: int, paged: PagedTurn) -> tuple[int, ...]:
        """What gathering the rows of a turn waits for."""
        return self._page(batch, turn, paged.fetch_read, paged.fetch_written)

    def update(self, batch: int, turn: int, paged: PagedTurn) -> tuple[int, ...]:
        """What updating them waits for: pages that had to leave meanwhile."""
        return self._page(batch, turn, paged.update_read, paged.update_written)

    def turn_over(self, task: int) -> None:
        """The turn after the last one is over when `task` is done."""
        self._over.append(task)

    def _page(self, batch: int, turn: int, read: float, written: float) -> tuple[int, ...]:
        room = tuple(self._over[-self._ahead :][:1]) if len(self._over) >= self._ahead else ()
        for worker, name, size, rate in (
            ("disk out", "write pages", written, self._machine.disk_write_gb_s),
            ("disk in", "read pages", read, self._machine.disk_read_gb_s),
        ):
            if size:
                room = (
                    self._graph.add(Task("disk", worker, name, batch, turn, "disk", size / (1e9 * rate), after=room)),
                )
        return room
