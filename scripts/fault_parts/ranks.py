"""Ranks that die, stop, differ or are interrupted: the others end with a sentence, nothing that was saved is lost, and the run
goes on, also with another number of ranks, to the model of one undisturbed process.

Expected of a rank that dies: every other one ends within a second (times what the machine is slower than an idle one) with exit
code 4, and one of them says who it was. Under torchrun's agent, which returns 1 whatever its ranks return, the same.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fault_parts.bench import BATCH, ROOT, SAVE_EVERY, Said, images_done, judge, last_saved, saved, wait_for
from fault_parts.tries import Fault, Hang, Lost, Traceback, Try

_LIMIT = 120.0  # seconds of one process
_AT_ONCE = 1.0  # seconds that the others get to end
_TIMEOUT = "5"  # --rank-timeout, where a rank hangs
_PLY_ROW = 4 * 62  # bytes


class Party:
    """Some ranks of one run, each a process, without an agent."""

    def __init__(self, t: Try, world: int, run: Path, *more: str, differ: Sequence[Sequence[str]] = ()):
        self.t, self.run, port = t, run, _free_port()
        words = t.bench.train_words(run, *more, *(["--resume"] if saved(run) else []))
        self.logs = [t.folder / f"rank{rank}-{time.monotonic_ns()}" for rank in range(world)]
        self.words = [[*words, *(differ[rank] if rank < len(differ) else ())] for rank in range(world)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            named = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
            named |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": ROOT}
            environment = {**os.environ, **{key: str(value) for key, value in named.items()}}
            with open(log, "wb") as file:
                command = [sys.executable, "-m", "clm", *self.words[rank]]
                process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
            process.words = command  # type: ignore[attr-defined]
            self.processes.append(process)

    def reach(self, images: int) -> bool:
        """Wait until so many images are done; False: some rank ended before."""
        return (
            wait_for(
                lambda: images_done(self.run) >= images or self.ended,
                self.processes[0],
                _LIMIT * self.t.bench.patience,
            )
            and not self.ended
        )

    @property
    def ended(self) -> bool:
        return any(process.poll() is not None for process in self.processes)

    def said(self, rank: int) -> str:
        return self.logs[rank].read_text(errors="replace")

    def end(self, seconds: float, *expected: int) -> None:
        """All ranks end with the codes that are expected."""
        deadline = time.monotonic() + seconds * self.t.bench.patience
        for rank, process in enumerate(self.processes):
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.kill()
                raise Hang(f"rank {rank} still ran after {seconds:g} s: {self.said(rank)[-1000:]}") from None
        for rank, (process, code) in enumerate(zip(self.processes, expected, strict=True)):
            judge(self.words[rank], Said(process.returncode, self.said(rank)), also=(4, -9))
            if process.returncode != code:
                raise Lost(f"rank {rank} ended with {process.returncode}, not {code}: {self.said(rank)[-1000:]}")

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _moment(t: Try) -> int:
    return int(t.rng.integers(1, t.bench.images * 3 // 4))


def _one_sentence(party: Party, about: int, word: str) -> None:
    """One rank says who it was, and why all end."""
    text = "".join(party.said(rank) for rank in range(len(party.processes)) if rank != about)
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    if len(lines) != 1 or f"Rank {about} (" not in lines[0] or word not in lines[0]:
        raise Lost(f"not one sentence about rank {about}: {lines or text[-1000:]}")


def _kept(run: Path, before: int) -> None:
    newest = max(saved(run), default=0)
    if newest < before:
        raise Lost(f"image {before} was saved, the newest checkpoint is of {newest}")


def _same_model(t: Try, run: Path) -> None:
    """The rows of the final PLY are those of the undisturbed run, bit for bit; where they lie in it, ranks decide."""
    ply = run / t.bench.ply.relative_to(t.bench.reference)
    if not ply.exists():
        raise Lost(f"no {ply.relative_to(run)} at the end")
    if sorted_rows(ply) != sorted_rows(t.bench.ply):
        raise Lost("the model at the end is not that of the undisturbed run")


def sorted_rows(ply: Path) -> list[bytes]:
    body = ply.read_bytes().partition(b"end_header\n")[2]
    return sorted(body[at : at + _PLY_ROW] for at in range(0, len(body), _PLY_ROW))


def _go_on_alone(t: Try, run: Path) -> None:
    """One process ends what several began."""
    said = t.bench.clm(*t.bench.train_words(run, *(["--resume"] if saved(run) else [])))
    if said.code:
        raise Lost(f"going on alone ended with code {said.code}: {said.sentence}")
    _same_model(t, run)


def _go_on_with(t: Try, run: Path, worlds: Sequence[int]) -> None:
    """To the end with the last number of ranks, some of them killed on the way with the numbers before it."""
    for world in worlds[:-1]:
        party = Party(t, world, run)
        if party.reach(min(images_done(run) + int(t.rng.integers(1, 200)), t.bench.images * 9 // 10)):
            _kill_one(t, party)
        else:
            party.end(_LIMIT, *[0] * world)
            return _same_model(t, run)
    party = Party(t, worlds[-1], run)
    party.end(_LIMIT, *[0] * worlds[-1])
    _same_model(t, run)


def _kill_one(t: Try, party: Party) -> None:
    world, before = len(party.processes), last_saved(party.run)
    dead = int(t.rng.integers(world))
    time.sleep(float(t.rng.uniform(0.0, 0.05)))
    if party.ended:
        return party.end(_LIMIT, *[0] * world)
    party.processes[dead].kill()
    party.end(_AT_ONCE, *(-9 if rank == dead else 4 for rank in range(world)))
    if world > 1:
        _one_sentence(party, dead, "died")
    _kept(party.run, before)


def _killed(t: Try) -> None:
    """4 -> 2 -> 1 -> 3 ranks, one of each but the last killed -9 at any time."""
    orders = ((4, 2, 1, 3), (3, 1, 2), (2, 3, 1), (1, 4, 2))
    _go_on_with(t, t.folder / "run", orders[t.case % len(orders)])


def _torchrun(t: Try, world: int, run: Path, *flags: str) -> tuple[subprocess.Popen[bytes], Path]:
    log = t.folder / f"torchrun-{time.monotonic_ns()}"
    words = [*t.bench.train_words(run), *(["--resume"] if saved(run) else [])]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world)]
    command += ["--master-port", str(_free_port()), *flags, "-m", "clm", *words]
    with open(log, "wb") as file:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    process.words = command  # type: ignore[attr-defined]
    return process, log


def _ranks_of(agent: subprocess.Popen[bytes]) -> list[int]:
    """Process ids of the ranks that an agent has started, by rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError, IndexError):
            continue
        rank = [entry[5:] for entry in environment if entry.startswith(b"RANK=")]
        if parent == agent.pid and rank:
            found[int(rank[0])] = int(folder.name)
    return [found[rank] for rank in sorted(found)]


def _wait_agent(t: Try, agent: subprocess.Popen[bytes], log: Path, code: int) -> str:
    try:
        agent.wait(_LIMIT * t.bench.patience)
    except subprocess.TimeoutExpired:
        agent.kill()
        raise Hang(f"torchrun still ran after {_LIMIT:g} s: {log.read_text(errors='replace')[-1500:]}") from None
    text = log.read_text(errors="replace")
    ours = "".join(line for line in text.splitlines(keepends=True) if line.startswith(("error: ", "bug: ")))
    if "bug: " in ours:
        raise Traceback(text[-2000:])
    if agent.returncode != code:
        raise Lost(f"torchrun returned {agent.returncode}, not {code}: {text[-2000:]}")
    return text


def _kill_under_agent(t: Try, agent: subprocess.Popen[bytes], run: Path, world: int) -> bool:
    """Kill a rank at any moment; False: the run was over before."""
    moment = _moment(t)
    if not wait_for(lambda: images_done(run) >= moment, agent, _LIMIT * t.bench.patience):
        return False
    ranks = _ranks_of(agent)
    if len(ranks) != world:
        return False
    os.kill(ranks[int(t.rng.integers(world))], signal.SIGKILL)
    return True


def _agent(t: Try) -> None:
    run, world = t.folder / "run", 2 + t.case % 2
    agent, log = _torchrun(t, world, run)
    killed = _kill_under_agent(t, agent, run, world)
    before = last_saved(run)
    _wait_agent(t, agent, log, int(killed))
    _kept(run, before)
    _go_on_alone(t, run)


def _restarted(t: Try) -> None:
    run, world = t.folder / "run", 2 + t.case % 2
    agent, log = _torchrun(t, world, run, "--max-restarts", "1")
    _kill_under_agent(t, agent, run, world)
    _wait_agent(t, agent, log, 0)
    _same_model(t, run)


def _stopped(t: Try) -> None:
    run, world = t.folder / "run", 3
    party = Party(t, world, run, "--rank-timeout", _TIMEOUT)
    if not party.reach(_moment(t)):
        raise Lost(f"ended before it was stopped: {party.said(0)[-1000:]}")
    stopped, before = int(t.rng.integers(world)), last_saved(run)
    os.kill(party.processes[stopped].pid, signal.SIGSTOP)
    try:
        others = [process for rank, process in enumerate(party.processes) if rank != stopped]
        for process in others:
            try:
                process.wait((float(_TIMEOUT) + 15) * t.bench.patience)
            except subprocess.TimeoutExpired:
                raise Hang("a rank waits for the stopped one beyond the timeout") from None
    finally:
        os.kill(party.processes[stopped].pid, signal.SIGCONT)
    party.end(_AT_ONCE + 10, 4, 4, 4)
    _one_sentence(party, stopped, "has not answered") if stopped else None
    _kept(run, before)
    _go_on_alone(t, run)


def _interrupted(t: Try) -> None:
    """Ctrl-C: torchrun passes it on to all ranks, which save once."""
    run, world = t.folder / "run", 2
    agent, log = _torchrun(t, world, run)
    moment = _moment(t)
    if not wait_for(lambda: images_done(run) >= moment, agent, _LIMIT * t.bench.patience):
        raise Lost(f"ended before it was interrupted: {log.read_text(errors='replace')[-1000:]}")
    agent.send_signal(signal.SIGINT)
    try:
        agent.wait(_LIMIT)
    except subprocess.TimeoutExpired:
        agent.kill()
        raise Hang(f"torchrun ran on after Ctrl-C: {log.read_text(errors='replace')[-1500:]}") from None
    if max(saved(run), default=0) < images_done(run):
        raise Lost(f"image {images_done(run)} was done, checkpoints are of {saved(run)}")
    _go_on_alone(t, run)


def _differs(t: Try) -> None:
    """A rank with another configuration or scene."""
    run, world = t.folder / "run", 3
    other = 1 + t.case % 2
    kinds = (
        ("--seed", "7"),
        ("--batch-size", str(2 * BATCH)),
        ("--test-every", "3"),
        ("--save-every", str(SAVE_EVERY + 4)),
    )
    differ: list[Sequence[str]] = [()] * world
    differ[other] = kinds[t.case % len(kinds)]
    party = Party(t, world, run, differ=differ)
    party.end(_LIMIT, 2, 2, 2)
    for rank in (0, other):
        if f"Rank {other} (" not in party.said(rank):
            raise Lost(f"rank {rank} does not name rank {other}: {party.said(rank)[-600:]}")
    if saved(run) or images_done(run):
        raise Lost("something was trained before the ranks agreed")


FAULTS = [
    Fault("rank-kill", "kill -9 of any rank, then another number of ranks: 4, 2, 1, 3", 20, 1, _killed, 600.0),
    Fault("rank-agent", "kill -9 of a rank under torchrun", 10, 1, _agent, 300.0),
    Fault("rank-restart", "the same with --max-restarts 1: it goes on by itself", 10, 1, _restarted, 300.0),
    Fault("rank-stop", "SIGSTOP of a rank: found by the timeout, and named", 6, 1, _stopped, 300.0),
    Fault("rank-sigint", "Ctrl-C under torchrun: saved once", 6, 1, _interrupted, 300.0),
    Fault("rank-differs", "a rank with other options or another scene: refused and named", 8, 1, _differs, 300.0),
]
