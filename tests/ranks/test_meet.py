"""Ranks find each other whatever earlier attempts left in the store, and name who does not come."""

from __future__ import annotations

import os
import threading
import time
from datetime import timedelta

import pytest

from clm.errors import ClmError, RankLost
from clm.ranks.meet import meet
from clm.ranks.place import Place, restarts
from clm.ranks.start import _take_gpu

LAUNCHED = {"WORLD_SIZE": "4", "RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}


class Words:
    """A store in this process."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()

    def get(self, key: str) -> bytes:
        return self.values[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        deadline = time.monotonic() + timeout.total_seconds()
        while not self.check(keys):
            if time.monotonic() > deadline:
                raise RuntimeError("wait timeout")
            time.sleep(0.002)


def come(store: Words, world: int, patience: float = 5.0) -> list[str]:
    """All ranks at once; the word that each has."""
    words = [""] * world

    def one(rank: int) -> None:
        words[rank] = meet(store, rank, world, patience)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return words


def test_all_ranks_have_one_word_and_every_attempt_another() -> None:
    store = Words()
    attempts = [come(store, 4) for _ in range(3)]
    assert all(len(set(words)) == 1 for words in attempts)
    assert len({words[0] for words in attempts}) == 3


def test_a_hello_of_a_rank_that_died_is_not_taken_for_the_new_one() -> None:
    store = Words()
    store.set("hello/1", "of a dead rank")
    found: list[str] = []
    first = threading.Thread(target=lambda: found.append(meet(store, 0, 2, 5.0)))
    first.start()
    time.sleep(0.1)
    assert first.is_alive() and store.check(["welcome/of a dead rank"])
    assert meet(store, 1, 2, 5.0) == store.get("welcome/of a dead rank").decode()
    first.join()
    assert found == [store.get("welcome/of a dead rank").decode()]


def test_who_does_not_come_is_named() -> None:
    with pytest.raises(RankLost, match=r"Rank 1 \(and 1 more\) of 3 did not come within 0\.05 s"):
        meet(Words(), 0, 3, 0.05)
    with pytest.raises(RankLost, match=r"Rank 0 did not come"):
        meet(Words(), 2, 3, 0.05)
    assert RankLost("").exit_code == 4


def test_the_environment_says_who_one_is() -> None:
    assert Place.of_environment({}) is None and Place.of_environment({"WORLD_SIZE": "1", "RANK": "0"}) is None
    place = Place.of_environment(LAUNCHED)
    assert place is not None and (place.rank, place.world, place.port, place.of_agent) == (2, 4, 29500, False)
    assert place.name.startswith("Rank 2 (process ")
    under = Place.of_environment(
        {**LAUNCHED, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    )
    assert under is not None and under.of_agent and (under.local_rank, under.local_world) == (0, 2)
    assert restarts({}) == 0 and restarts({"TORCHELASTIC_RESTART_COUNT": "2"}) == 2


@pytest.mark.parametrize(("key", "value"), [("RANK", "4"), ("RANK", ""), ("MASTER_ADDR", ""), ("MASTER_PORT", "x")])
def test_an_environment_that_names_ranks_but_not_how_they_meet_is_refused(key: str, value: str) -> None:
    with pytest.raises(ClmError, match=key):
        Place.of_environment({**LAUNCHED, key: value})


def test_each_rank_of_a_host_sees_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))  # which is written to
    for shown, sees in ((None, "1"), ("4,7", "7"), ("", "")):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if shown is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        place = Place.of_environment({**LAUNCHED, "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
        assert place is not None
        _take_gpu(place, "auto")
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == sees
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(ClmError, match="shows 1 GPUs"):
        _take_gpu(place, "cuda")
    _take_gpu(place, "cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
