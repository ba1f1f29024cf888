"""A few ranks as processes of this machine, without torchrun: forks of one warm process, so that torch is imported once."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch.distributed")
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["torch.distributed", "clm.ranks.joined", "clm.ranks.start", "clm.run.loop"])


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Member:
    """One rank that runs."""

    process: Any
    said: Path

    @property
    def text(self) -> str:
        return self.said.read_text()

    def end(self, seconds: float) -> int:
        """Its exit code; it has so long to end."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running after {seconds:g} s: {self.text}"
        return int(self.process.exitcode)


@contextmanager
def members(folder: Path, work: Callable[..., None], world: int, *given: Any, **more: str) -> Iterator[list[Member]]:
    """`work(folder, rank, *given)` in `world` processes whose environment names them as ranks; more: of that environment.
    Whoever is left is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    port, started = free_port(), []
    for rank in range(world):
        said = folder / f"said_{rank}"
        said.touch()
        environment = {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
        environment |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **more}
        process = _FORKS.Process(target=_begin, args=(environment, said, work, folder, rank, *given))
        process.start()
        started.append(Member(process, said))
    try:
        yield started
    finally:
        for member in started:
            member.process.kill()
            member.process.join()


def _begin(environment: dict[str, str], said: Path, work: Callable[..., None], *given: Any) -> None:
    os.environ.pop(
        "CUDA_VISIBLE_DEVICES", None
    )  # tests run on the CPU, whatever is left of others in the process that forks
    os.environ.update(environment)
    file = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
    work(*given)


def wait_for_files(*paths: Path, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, f"no {[str(path) for path in paths if not path.exists()]}"
        time.sleep(0.01)
