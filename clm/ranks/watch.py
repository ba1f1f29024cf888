"""Ranks end together. A rank that dies leaves the others in calls that nobody answers; torch.distributed notices it only where
somebody waits for the dead rank itself. So the ranks keep lines of their own, on which nothing is said as long as all is well.

The lines are a star: rank 0 listens to every other rank, and those listen to rank 0, each in a thread that blocks. The system
closes the lines of a process that dies, however it dies, so rank 0 hears of it at once, judges, tells the others who it was and
ends; a rank that loses rank 0 ends by itself. Ending is one sentence and exit code 4, in the middle of whatever is done: what is
on disk is whole at any moment. A rank that goes says so before: at the end of a run, or because of an error that it alone has.

A rank that neither dies nor answers is found by the timeout of a collective (`talking`). Who noticed it asks rank 0, which asks
all others: one that does not answer is stopped, one that answers but waits for nobody is stuck or slow.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import NamedTuple, Protocol

EXIT_CODE = 4
_ANSWER_SECONDS = 5.0  # that ranks get to say that they are alive, or the timeout, if that is less
_VERDICT_SECONDS = 5.0  # that rank 0 gets to judge; then it counts as lost
_PARTING_SECONDS = 2.0  # that the others get to end before a rank does that caused it
_HEARING_SECONDS = 0.3  # that whoever is to hear something gets before the one who said it ends


class Word(IntEnum):
    """What is said on a line."""

    GOODBYE = 0  # I need nobody any more
    FAILED = 1  # I end because of an error
    LATE = 2  # I have waited too long: who does not answer?
    ASK = 3  # are you there?
    ANSWER = 4  # I am; and whether I wait for others
    VERDICT = 5  # all end: why, because of whom


class Why(IntEnum):
    DIED = 0
    FAILED = 1
    SILENT = 2
    BUSY = 3
    CROSSED = 4
    BROKEN = 5


class Message(NamedTuple):
    word: int
    why: int = 0
    rank: int = 0


class Wire(Protocol):
    """Lines to other ranks. Both raise when the other end is gone; several threads may send. Sending returns when the other end
    takes the message, which one that is stopped never does."""

    def send(self, message: Message, to: int) -> None: ...

    def receive(self, source: int) -> Message: ...


def sentence(why: int, name: str, seconds: float) -> str:
    """Why all end. name: of the rank because of which; seconds: the timeout of collectives."""
    return {
        Why.DIED: f"{name} died",
        Why.FAILED: f"{name} ended with an error of its own",
        Why.SILENT: f"{name} has not answered for {seconds:g} s (--rank-timeout)",
        Why.BUSY: f"{name} did not come to what the others have waited {seconds:g} s for (--rank-timeout)",
        Why.CROSSED: f"The ranks have waited {seconds:g} s for each other (--rank-timeout)",
        Why.BROKEN: "The connection to another rank broke",
    }[Why(why)]


class Watch:
    """The lines of one rank, and its part in ending all of them. Threads start with it."""

    def __init__(
        self,
        wire: Wire,
        rank: int,
        members: Sequence[tuple[str, str]],
        timeout: float,
        end: Callable[[str, bool], None] | None = None,
    ):
        """members: host and name of each rank; timeout: of collectives, in seconds, to be told; end(sentence, speaks): ends the
        process; speaks: whether it is this rank's to say it, which one of each host does."""
        self._wire, self._rank, self._members, self._timeout = wire, rank, list(members), timeout
        self._end, self._patience = end or _end_process, min(_ANSWER_SECONDS, timeout)
        self._lock, self._judged = threading.Lock(), False  # a verdict is given once
        self._inquiry = threading.Lock()
        self._talking: dict[int, float] = {}  # threads in a collective, and since when
        self._answers: dict[int, bool] = {}
        self._gone: set[int] = set()
        self._leaving = False  # this rank ends by itself, and hears no more of others
        peers = range(1, len(members)) if rank == 0 else range(1)
        self._threads = {
            peer: threading.Thread(target=self._listen, args=(peer,), name=f"watch {peer}", daemon=True)
            for peer in peers
        }
        for thread in self._threads.values():
            thread.start()

    # ---- what the rank does ----

    @contextmanager
    def talking(self) -> Iterator[None]:
        """Inside, the rank waits for others. A timeout, or a line that broke, ends it with all others."""
        me = threading.get_ident()
        outer = self._talking.get(me)
        self._talking[me] = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            self._lost(str(error))
            raise
        finally:
            self._talking.pop(me, None)
            if outer is not None:
                self._talking[me] = outer

    def goodbye(self) -> None:
        """This rank needs the others no more; returns when nobody does."""
        if self._rank:
            self._leaving = True
            self._tell(Message(Word.GOODBYE), 0).join(self._timeout)
        if not self._heard_out(self._timeout):
            silent = next(peer for peer, thread in self._threads.items() if thread.is_alive())
            self._judge(Why.SILENT, silent)
        if not self._rank:
            self._tell_all(Message(Word.GOODBYE), self._timeout)

    def fail(self) -> None:
        """This rank ends because of an error that it alone has: the others end, too, and know because of whom."""
        self._leaving = True
        if self._rank:
            self._tell(Message(Word.FAILED), 0).join(_PARTING_SECONDS)
        else:
            self._pass_on(Why.FAILED, 0, lambda: None)
        self._heard_out(_PARTING_SECONDS)

    # ---- what it hears ----

    def _listen(self, peer: int) -> None:
        while True:
            try:
                message = self._wire.receive(peer)
            except Exception:
                if not self._leaving and peer not in self._gone:
                    self._judge(Why.DIED, peer)
                return
            if message.word == Word.GOODBYE:
                self._gone.add(peer)
                return
            if message.word == Word.FAILED:
                self._judge(Why.FAILED, peer)
                return
            if message.word == Word.VERDICT:
                if message.rank != self._rank or message.why != Why.FAILED:
                    self._all_end(message.why, message.rank)
                return
            self._answer(message, peer)

    def _answer(self, message: Message, peer: int) -> None:
        if message.word == Word.LATE:
            threading.Thread(target=self._inquire, name="watch inquiry", daemon=True).start()
        elif message.word == Word.ASK:
            self._tell(Message(Word.ANSWER, int(bool(self._talking))), peer)
        elif message.word == Word.ANSWER:
            self._answers[peer] = bool(message.why)

    # ---- judging ----

    def _lost(self, text: str) -> None:
        """A collective failed; returns where that has nothing to do with the other ranks."""
        if any(sign in text.lower() for sign in _LATE_SIGNS):
            if self._rank:
                self._tell(Message(Word.LATE), 0)
            else:
                self._inquire()
            time.sleep(self._patience + _VERDICT_SECONDS)  # rank 0 judges meanwhile
            self._all_end(Why.SILENT, 0)
        elif any(sign in text.lower() for sign in _BROKEN_SIGNS):
            time.sleep(_VERDICT_SECONDS)  # a line broke, so a watching thread hears of it as well
            self._all_end(Why.BROKEN, -1)

    def _inquire(self) -> None:
        """At rank 0: somebody waited too long; who is it that does not come?"""
        with self._inquiry:
            self._find_who_is_missing()

    def _find_who_is_missing(self) -> None:
        self._answers.clear()
        others = [peer for peer in self._threads if peer not in self._gone]
        for peer in others:
            self._tell(Message(Word.ASK), peer)
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline and not all(peer in self._answers for peer in others):
            time.sleep(0.01)
        silent = [peer for peer in others if peer not in self._answers]
        if silent:
            self._judge(Why.SILENT, silent[0])
            return
        waiting = {0: bool(self._talking), **self._answers}
        busy = [rank for rank in sorted(waiting) if not waiting[rank]]
        self._judge(*((Why.BUSY, busy[0]) if busy else (Why.CROSSED, -1)))

    def _judge(self, why: Why, rank: int) -> None:
        if self._rank == 0:
            self._pass_on(why, rank, lambda: self._all_end(why, rank))
        else:
            self._all_end(why, rank)

    def _pass_on(self, why: Why, rank: int, then: Callable[[], None]) -> None:
        """At rank 0: a verdict to all; the first one holds."""
        with self._lock:
            if self._judged:
                return
            self._judged = True
            self._tell_all(Message(Word.VERDICT, why, rank), _HEARING_SECONDS)
            then()

    def _all_end(self, why: int, rank: int) -> None:
        name = self._members[rank][1] if rank >= 0 else ""
        mine = self._members[self._rank][0]
        there = [k for k, member in enumerate(self._members) if member[0] == mine and k != rank]
        what = f"{sentence(why, name, self._timeout)}; rank {self._rank} ends, too: go on from the last checkpoint with --resume."
        self._end(what, there[:1] == [self._rank])

    def _tell(self, message: Message, peer: int) -> threading.Thread:
        """Returns who says it: it may take for ever."""

        def say() -> None:
            with suppress(Exception):  # whoever is gone needs to hear nothing
                self._wire.send(message, peer)

        saying = threading.Thread(target=say, name=f"watch, to {peer}", daemon=True)
        saying.start()
        return saying

    def _tell_all(self, message: Message, seconds: float) -> None:
        """Returns when all have heard it, or after so many seconds."""
        deadline = time.monotonic() + seconds
        for saying in [self._tell(message, peer) for peer in self._threads]:
            saying.join(max(0.0, deadline - time.monotonic()))

    def _heard_out(self, seconds: float) -> bool:
        """Whether no thread listens any more, after so many seconds at most."""
        deadline = time.monotonic() + seconds
        for thread in self._threads.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads.values())


# What gloo and nccl say of a timeout, and of another rank that is gone.
_LATE_SIGNS = ("timed out", "timeout")
_BROKEN_SIGNS = (
    "closed by peer",
    "connection reset",
    "broken pipe",
    "socket closed",
    "connection refused",
    "remote process exited",
)


def _end_process(text: str, speaks: bool) -> None:
    """At once, whatever other threads are in: they may wait for a rank that is gone."""
    if speaks:
        with suppress(OSError, ValueError):
            os.write(2, f"error: {text}\n".encode())
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(EXIT_CODE)
