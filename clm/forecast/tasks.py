"""Tasks that share a machine: a fluid simulation of who runs when. Knows nothing of plans or rows.

A task starts when all tasks before it have ended. It works on one resource; the tasks that work on a resource at the same
time share it evenly, except that none gets more than the share it can use alone (max-min fairness). Between two events
all speeds are constant, so the simulation jumps from event to event. A pure function of the tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Task:
    """One piece of work. `after`: indices of earlier tasks that must have ended."""

    lane: str  # what it is accounted under
    worker: str  # a thread or a stream, which does one task at a time
    name: str
    batch: int
    turn: int  # of the batch; -1: work of the whole batch
    resource: str
    seconds: float  # with the resource to itself
    share: float = 1.0  # of the resource that it keeps busy when alone, in (0, 1]
    after: tuple[int, ...] = ()


class Graph:
    """Tasks in the order in which they are added. Invariants: a task waits only for earlier ones, so there is no cycle;
    a worker does one task at a time, in order."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self._last: dict[str, int] = {}

    def add(self, task: Task) -> int:
        """Append a task behind its worker's last one and return its index."""
        before = (self._last[task.worker],) if task.worker in self._last else ()
        self.tasks.append(replace(task, after=(*before, *task.after)))
        self._last[task.worker] = len(self.tasks) - 1
        return self._last[task.worker]


def run(tasks: Sequence[Task]) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of each task in seconds [T] f64, all but the waiting ones starting at 0."""
    start, end = np.zeros(len(tasks)), np.zeros(len(tasks))
    waiting = [len(set(task.after)) for task in tasks]
    followers: list[list[int]] = [[] for _ in tasks]
    for index, task in enumerate(tasks):
        for before in set(task.after):
            followers[before].append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    left: dict[int, float] = {}  # seconds of work left of the running tasks
    now = 0.0
    while ready or left:
        while ready:
            index = ready.pop()
            start[index] = now
            left[index] = tasks[index].seconds
        speeds = _speeds(tasks, left)
        times = {index: seconds / speeds[index] for index, seconds in left.items()}
        passed = min(times.values())
        now += passed
        for index, time in times.items():
            if time <= passed * (1.0 + 1e-12):
                del left[index]
                end[index] = now
                for follower in followers[index]:
                    waiting[follower] -= 1
                    if waiting[follower] == 0:
                        ready.append(follower)
            else:
                left[index] -= passed * speeds[index]
    return start, end


def _speeds(tasks: Sequence[Task], running: dict[int, float]) -> dict[int, float]:
    """Speed of each running task, 1 when alone: resource by resource, nobody gets more than an even part of what is left."""
    by_resource: dict[str, list[int]] = {}
    for index in running:
        by_resource.setdefault(tasks[index].resource, []).append(index)
    speeds: dict[int, float] = {}
    for indices in by_resource.values():
        free = 1.0
        for count, index in enumerate(sorted(indices, key=lambda k: tasks[k].share)):
            granted = min(tasks[index].share, free / (len(indices) - count))
            free -= granted
            speeds[index] = granted / tasks[index].share
    return speeds
