"""Ranks end together: what each of them concludes, over lines that are queues."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from clm.ranks.watch import Message, Watch


class Lines:
    """Between any two ranks. A rank that is cut off neither sends nor answers; one that is closed is gone."""

    def __init__(self, world: int):
        self.queues = {(a, b): queue.Queue[Message | None]() for a in range(world) for b in range(world)}
        self.stopped: set[int] = set()

    def close(self, rank: int) -> None:
        for (source, _), messages in self.queues.items():
            if source == rank:
                messages.put(None)


class Wire:
    def __init__(self, lines: Lines, rank: int):
        self.lines, self.rank = lines, rank

    def send(self, message: Message, to: int) -> None:
        self.lines.queues[self.rank, to].put(message)

    def receive(self, source: int) -> Message:
        message = self.lines.queues[source, self.rank].get()
        if message is None:
            raise ConnectionError("gone")
        while self.rank in self.lines.stopped:
            time.sleep(0.01)
        return message


class Party:
    """Ranks with a watch each, and what ended them: (rank, sentence, whether it says it)."""

    def __init__(self, world: int, hosts: list[str] | None = None):
        self.lines, self.ended = Lines(world), queue.Queue[tuple[int, str, bool]]()
        self.gone: set[int] = set()
        names = [(hosts[k] if hosts else "here", f"Rank {k}") for k in range(world)]
        self.watches = [Watch(Wire(self.lines, k), k, names, 0.5, self.ending(k)) for k in range(world)]

    def ending(self, rank: int) -> Any:
        def end(text: str, speaks: bool) -> None:
            if rank not in self.gone:
                self.ended.put((rank, text, speaks))
                self.die(rank)

        return end

    def die(self, rank: int) -> None:
        self.gone.add(rank)
        self.lines.close(rank)

    def ends(self, count: int, seconds: float = 3.0) -> dict[int, tuple[str, bool]]:
        found = {}
        for _ in range(count):
            rank, text, speaks = self.ended.get(timeout=seconds)
            found[rank] = text, speaks
        return found


@pytest.mark.parametrize("dead", [0, 1, 3])
def test_a_rank_that_dies_ends_all_others_and_each_names_it(dead: int) -> None:
    party = Party(4)
    party.die(dead)
    ends = party.ends(3)
    assert set(ends) == {0, 1, 2, 3} - {dead}
    assert all(text.startswith(f"Rank {dead} died; ") and "--resume" in text for text, _ in ends.values())


def test_one_rank_of_each_host_says_why() -> None:
    party = Party(5, ["a", "a", "b", "b", "b"])
    party.die(2)
    assert {rank: speaks for rank, (_, speaks) in party.ends(4).items()} == {0: True, 1: False, 3: True, 4: False}


@pytest.mark.parametrize("failing", [0, 2])
def test_a_rank_with_an_error_of_its_own_ends_by_itself_and_the_others_because_of_it(failing: int) -> None:
    party = Party(3)
    ending = threading.Thread(target=party.watches[failing].fail)
    ending.start()
    ends = party.ends(2)
    assert set(ends) == {0, 1, 2} - {failing}
    assert all(text.startswith(f"Rank {failing} ended with an error of its own; ") for text, _ in ends.values())
    party.die(failing)
    ending.join(5)
    assert not ending.is_alive() and party.ended.empty()


def test_goodbyes_end_nobody() -> None:
    party = Party(3)
    leaving = [threading.Thread(target=watch.goodbye) for watch in party.watches]
    for thread in leaving:
        thread.start()
    for thread in leaving:
        thread.join(5)
        assert not thread.is_alive()
    for rank in range(3):
        party.die(rank)
    assert party.ended.empty()


@pytest.mark.parametrize("late", [0, 1])
def test_a_rank_that_is_stopped_is_named_when_another_has_waited_too_long(late: int) -> None:
    party = Party(3)
    party.lines.stopped.add(2)
    waiting = threading.Thread(target=_time_out, args=(party.watches[late],), daemon=True)
    waiting.start()
    ends = party.ends(2)
    assert all(text.startswith("Rank 2 has not answered for 0.5 s") for text, _ in ends.values())
    party.lines.stopped.clear()


def test_a_rank_that_is_busy_elsewhere_is_named() -> None:
    party = Party(3)
    both = [threading.Thread(target=_time_out, args=(party.watches[k], 0.3), daemon=True) for k in (1, 2)]
    for thread in both:
        thread.start()
    said = [text for text, _ in party.ends(3).values()]
    assert all(text.startswith("Rank 0 did not come to what the others have waited 0.5 s for") for text in said)


def test_an_error_of_ones_own_passes() -> None:
    party = Party(2)
    with pytest.raises(RuntimeError, match="sizes"), party.watches[1].talking():
        raise RuntimeError("sizes differ")
    assert party.ended.empty()


def _time_out(watch: Watch, after: float = 0.0) -> None:
    with suppress(RuntimeError), watch.talking():
        time.sleep(after)
        raise RuntimeError("Timed out waiting 500ms for recv operation to complete")
