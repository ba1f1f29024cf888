"""How far a piece of work is that may take seconds: whoever does it reports, whoever called it decides who is told.

Nothing here prints or measures time. Reports cost a function call, so they are made per chunk, view or file, never per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")

# (what is done, how much of it is done, out of how much, in what unit). All is done when the two numbers are equal and
# not zero. A total of zero says that work has begun whose length nobody knows; 1 of 0, that it will surely be long.
Report = Callable[[str, int, int, str], None]


def unseen(_what: str, _done: int, _total: int, _unit: str) -> None:
    """For callers who show nothing."""


def _one(_item: object) -> int:
    return 1


def rows_of(chunk: tuple) -> int:
    """Rows of a chunk (geometry, colour)."""
    return len(chunk[0])


def counted(
    items: Iterable[Item], what: str, total: int, unit: str, report: Report, size: Callable[[Item], int] = _one
) -> Iterator[Item]:
    """Pass `items` on, reporting after each is used; they may come to less than `total` (rows that are left out)."""
    if total > 0:
        report(what, 0, total, unit)
    done = 0
    for item in items:
        yield item
        done += size(item)
        if done < total:
            report(what, done, total, unit)
    if total > 0:
        report(what, total, total, unit)


def tally(what: str, total: int, unit: str, report: Report) -> Callable[[int], None]:
    """A function to call with how much was done since it was called last."""
    done = 0

    def add(more: int) -> None:
        nonlocal done
        done += more
        report(what, done, total, unit)

    if total > 0:
        add(0)
    return add


@contextmanager
def pending(what: str, report: Report, *, long: bool = False) -> Iterator[None]:
    """Work in one call that cannot say how far it is. long: say so at once, because the call may let no thread speak."""
    report(what, int(long), 0, "")
    try:
        yield
    finally:
        report(what, 1, 1, "")
