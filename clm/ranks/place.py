"""Where this process stands among the ranks of a run, as whoever started it (torchrun, a script) says in the environment."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from clm.errors import ClmError

_HOW = "Start the ranks with torchrun, or unset WORLD_SIZE to train with one process."


@dataclass(frozen=True)
class Place:
    """One of several ranks, and where they meet."""

    rank: int
    world: int
    local_rank: int  # among those of its host,
    local_world: int  # of which there are so many
    address: str  # of the store in which they meet
    port: int
    of_agent: bool  # whether the store is that of torchrun's agent, which outlives a restart; else rank 0 has it
    host: str = field(default_factory=socket.gethostname)
    process: int = field(default_factory=os.getpid)

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Place | None:
        """None: one process alone. Raises ClmError where the environment names ranks, but not how they meet."""
        if environment.get("WORLD_SIZE", "1") in ("", "1"):
            return None
        world = _number(environment, "WORLD_SIZE", 1, 1 << 20)
        rank = _number(environment, "RANK", 0, world - 1)
        local_world = _number(environment, "LOCAL_WORLD_SIZE", 1, world) if "LOCAL_WORLD_SIZE" in environment else 1
        local_rank = _number(environment, "LOCAL_RANK", 0, world - 1) if "LOCAL_RANK" in environment else 0
        return cls(
            rank,
            world,
            local_rank,
            max(local_world, local_rank + 1),
            _word(environment, "MASTER_ADDR"),
            _number(environment, "MASTER_PORT", 1, 65535),
            environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )

    @property
    def name(self) -> str:
        """For sentences."""
        return name_of(self.rank, self.host, self.process)


def name_of(rank: int, host: str, process: int) -> str:
    """How a rank is called in sentences."""
    return f"Rank {rank} (process {process} on {host})"


def restarts(environment: Mapping[str, str] = os.environ) -> int:
    """How often torchrun has started this run again by itself (`--max-restarts`)."""
    text = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    return int(text) if text.isdecimal() else 0


def _word(environment: Mapping[str, str], name: str) -> str:
    if not environment.get(name):
        raise ClmError(f"WORLD_SIZE is {environment['WORLD_SIZE']}, but {name} is not set.", _HOW)
    return environment[name]


def _number(environment: Mapping[str, str], name: str, least: int, most: int) -> int:
    text = _word(environment, name)
    if not text.isdecimal() or not least <= int(text) <= most:
        raise ClmError(f"{name} is {text!r} instead of a number from {least} to {most}.", _HOW)
    return int(text)
