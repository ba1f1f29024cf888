"""How threads of the host hand work and results to each other, in a microsecond each.

`concurrent.futures` does the same at ten to thirty times the cost, and a batch hands over dozens of times.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Outcome(Generic[T]):
    """What has come of some work: a value or an error. The first to settle it wins, whoever comes later changes nothing."""

    __slots__ = ("_claim", "_error", "_gate", "_value")

    def __init__(self) -> None:
        self._claim, self._gate = Lock(), Lock()
        self._gate.acquire()  # released once settled; then whoever passes lets the next one through
        self._error: BaseException | None = None

    def succeed(self, value: T) -> None:
        self._settle(value, None)

    def fail(self, error: BaseException) -> None:
        self._settle(None, error)

    def _settle(self, value: T | None, error: BaseException | None) -> None:
        if self._claim.acquire(blocking=False):
            self._value, self._error = value, error
            self._gate.release()

    def wait(self) -> None:
        with self._gate:
            pass

    def result(self) -> T:
        """Waits; raises the error if there was one."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]


def after(outcome: Outcome[T], why: str) -> T:
    """What another thread has come to, waited for here."""
    return outcome.result()


class HostLane:
    """A thread that does what it is given, in order."""

    def __init__(self, name: str):
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._closing = False
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def hand_over(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def at_rest(self) -> Outcome[None]:
        """Settled once everything handed over so far is done."""
        rest: Outcome[None] = Outcome()
        self._work.put(lambda: rest.succeed(None))
        return rest

    def close(self) -> None:
        """Finish what is under way, drop what has not begun."""
        self._closing = True
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            if not self._closing:
                work()
