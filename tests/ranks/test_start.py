"""Ranks over gloo as processes: they start, agree, and end together, however one of them ends."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from clm.errors import ClmError
from clm.ranks.handshake import agree, together
from clm.ranks.start import ranks_of_environment
from tests.ranks.processes import Member, members, wait_for_files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc and forks")


def main(folder: Path, rank: int, timeout: float, work) -> None:
    """As the command line does it: a sentence and an exit code."""
    try:
        with ranks_of_environment(timeout, "cpu") as ranks:
            (folder / f"there_{rank}").touch()
            work(ranks, folder)
    except ClmError as error:
        print(f"error: {error}", flush=True)
        sys.exit(error.exit_code)


def wait(ranks, folder: Path) -> None:
    """Rank 1 never comes; the others wait in a collective."""
    if ranks.rank == 1:
        time.sleep(600)
    ranks.total(1)


def fail(ranks, folder: Path) -> None:
    if ranks.rank == 1:
        raise ClmError("Its own disk is full.")
    ranks.total(1)


def fail_together(ranks, folder: Path) -> None:
    def work() -> None:
        if ranks.rank == 1:
            raise ClmError("No scene here.", "Copy it.")

    together(ranks, work)


def disagree(ranks, folder: Path) -> None:
    agree(ranks, {"the version": {"clm": "1"}, "the configuration": {"seed": int(ranks.rank == 2)}})


def talk(ranks, folder: Path) -> None:
    assert ranks.gather(ranks.rank) == [0, 1, 2] and ranks.lane("plan").total(ranks.rank) == 3


def all_there(folder: Path, party: list[Member]) -> None:
    wait_for_files(*(folder / f"there_{rank}" for rank in range(len(party))))


@pytest.mark.parametrize("dead", [0, 2])
def test_kill_9_of_any_rank_ends_the_others_at_once_with_a_sentence_and_code_4(tmp_path: Path, dead: int) -> None:
    with members(tmp_path, main, 3, 600.0, wait) as party:
        all_there(tmp_path, party)
        time.sleep(0.2)
        os.kill(party[dead].process.pid, signal.SIGKILL)
        codes = [member.end(10) for member in party]  # within a second on an idle machine: scripts/fault_table.py
        assert codes == [-9 if rank == dead else 4 for rank in range(3)]
        said = [member.text for rank, member in enumerate(party) if rank != dead]
        assert said[0].count("error: ") == 1 and f"Rank {dead} (process " in said[0] and "died" in said[0], said
        assert said[1] == ""  # one of a host speaks


def test_a_stopped_rank_is_found_by_the_timeout_and_named(tmp_path: Path) -> None:
    with members(tmp_path, main, 3, 3.0, wait) as party:
        all_there(tmp_path, party)
        os.kill(party[1].process.pid, signal.SIGSTOP)
        assert party[0].end(30) == 4 and party[2].end(30) == 4
        assert "Rank 1 (process " in party[0].text and "has not answered for 3 s" in party[0].text
        os.kill(party[1].process.pid, signal.SIGCONT)
        assert party[1].end(5) == 4


def test_a_rank_that_lives_and_does_not_come_is_named(tmp_path: Path) -> None:
    with members(tmp_path, main, 3, 2.0, wait) as party:
        codes = [member.end(30) for member in party]
        assert codes == [4, 4, 4]
        assert "Rank 1 (process " in party[0].text and "did not come" in party[0].text


def test_an_error_of_one_rank_ends_the_others_and_keeps_its_own_code(tmp_path: Path) -> None:
    with members(tmp_path, main, 3, 600.0, fail) as party:
        assert [member.end(30) for member in party] == [4, 2, 4]
        assert party[1].text == "error: Its own disk is full.\n"
        assert "Rank 1 (process " in party[0].text and "ended with an error of its own" in party[0].text


def test_an_error_that_is_told_is_everybodys(tmp_path: Path) -> None:
    with members(tmp_path, main, 3, 600.0, fail_together) as party:
        assert [member.end(30) for member in party] == [2, 2, 2]
        assert party[1].text == "error: No scene here. Copy it.\n"
        assert "Rank 1 (process " in party[0].text and "No scene here. Copy it." in party[0].text


def test_a_rank_that_would_train_something_else_is_refused_and_named(tmp_path: Path) -> None:
    with members(tmp_path, main, 3, 600.0, disagree) as party:
        assert [member.end(30) for member in party] == [2, 2, 2]
        for member in party:
            assert "Rank 2 (process " in member.text and "seed is 1 instead of 0" in member.text


def test_a_clean_end_is_silent(tmp_path: Path) -> None:
    with members(tmp_path, main, 3, 600.0, talk) as party:
        assert [member.end(30) for member in party] == [0, 0, 0]
        assert [member.text for member in party] == ["", "", ""]
