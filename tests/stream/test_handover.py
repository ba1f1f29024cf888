"""Threads hand over work in order, and what comes of it exactly once."""

from __future__ import annotations

import threading
import time

import pytest

from clm.stream.handover import HostLane, Outcome


def test_all_who_wait_get_the_value_and_later_ones_at_once() -> None:
    outcome: Outcome[int] = Outcome()
    got: list[int] = []
    waiting = [threading.Thread(target=lambda: got.append(outcome.result())) for _ in range(8)]
    for thread in waiting:
        thread.start()
    time.sleep(0.01)
    assert not got, "nobody passes before it is settled"
    outcome.succeed(7)
    for thread in waiting:
        thread.join(timeout=5)
    assert got == [7] * 8 and outcome.result() == 7


def test_an_error_reaches_everybody_who_asks() -> None:
    outcome: Outcome[int] = Outcome()
    outcome.fail(OSError("lost"))
    for _ in range(2):
        with pytest.raises(OSError, match="lost"):
            outcome.result()
    outcome.wait()  # does not raise: it is settled


def test_the_first_to_settle_wins_from_many_threads() -> None:
    for _ in range(50):
        outcome: Outcome[int] = Outcome()
        ready = threading.Barrier(4)

        def settle(value: int, outcome: Outcome[int] = outcome, ready: threading.Barrier = ready) -> None:
            ready.wait()
            if value % 2:
                outcome.fail(ValueError(str(value)))
            else:
                outcome.succeed(value)

        threads = [threading.Thread(target=settle, args=(value,)) for value in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=5)
        seen = set()
        for _ in range(3):
            try:
                seen.add(("value", outcome.result()))
            except ValueError as error:
                seen.add(("error", int(str(error))))
        assert len(seen) == 1


def test_a_lane_works_in_order_and_rests_when_all_is_done() -> None:
    lane, done = HostLane("test"), []
    for k in range(100):
        lane.hand_over(lambda k=k: done.append(k))
    lane.at_rest().wait()
    assert done == list(range(100))
    lane.close()


def test_a_closed_lane_finishes_what_is_under_way_and_drops_the_rest() -> None:
    lane, done, begun = HostLane("test"), [], threading.Event()

    def slow() -> None:
        begun.set()
        time.sleep(0.05)
        done.append("slow")

    lane.hand_over(slow)
    lane.hand_over(lambda: done.append("dropped"))
    begun.wait(timeout=5)
    lane.close()
    assert done == ["slow"]
