"""Ranks find each other in a store that may be older than they are: torchrun's agent keeps it when it starts them again, with all
that dead ranks said there.

Each rank says hello with a word of its own; rank 0 answers every hello with the word of this attempt, and goes on until each
rank has said that it heard it. So what is left of earlier attempts is answered, but nobody acts on it, and nothing depends on how
often which host was restarted. torch.distributed then gets that store under a prefix that is the attempt's own.
"""

from __future__ import annotations

import secrets
import time
from datetime import timedelta
from typing import Protocol

from clm.errors import RankLost

_POLL_SECONDS = 0.02


class Store(Protocol):
    """What is used of torch's TCPStore."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...

    def wait(self, keys: list[str], timeout: timedelta) -> None: ...


def meet(store: Store, rank: int, world: int, patience: float) -> str:
    """Wait until all ranks are there; the word of this attempt, the same on each. patience: seconds. Raises RankLost, which
    names the first rank that did not come."""
    word = secrets.token_hex(8)
    if rank == 0:
        _welcome(store, word, world, patience)
        return word
    store.set(f"hello/{rank}", word)
    try:
        store.wait([f"welcome/{word}"], timedelta(seconds=patience))
    except RuntimeError:
        raise RankLost(f"Rank 0 did not come within {patience:g} s.", _LOOK) from None
    attempt = store.get(f"welcome/{word}").decode()
    store.set(f"heard/{attempt}/{rank}", "")
    return attempt


_LOOK = "Look at what it said last, and whether the hosts reach each other."


def _welcome(store: Store, attempt: str, world: int, patience: float) -> None:
    deadline, missing = time.monotonic() + patience, list(range(1, world))
    answered: dict[int, str] = {}
    while missing:
        for rank in missing:
            if not store.check([f"hello/{rank}"]):
                continue
            hello = store.get(f"hello/{rank}").decode()
            if answered.get(rank) != hello:
                store.set(f"welcome/{hello}", attempt)
                answered[rank] = hello
        missing = [rank for rank in missing if not store.check([f"heard/{attempt}/{rank}"])]
        if missing and time.monotonic() > deadline:
            others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise RankLost(f"Rank {missing[0]}{others} of {world} did not come within {patience:g} s.", _LOOK)
        time.sleep(_POLL_SECONDS * bool(missing))
