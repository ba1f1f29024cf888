"""Work that takes longer shows how far it is, on a terminal and off it; work that does not shows nothing."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path

import pytest

from clm.progress import counted, pending, unseen
from clm.run import bars
from clm.run.bars import sparse
from clm.run.console import Console, EventLog
from clm.run.events import (
    BatchDone,
    Cleared,
    Densified,
    Event,
    Finished,
    LanesSampled,
    Message,
    Started,
    Working,
    reporter,
)
from tests.demo_run import clm, of_type, read_events, run_demo

STARTED = Started(0, 100, 10, 4, 1, "cpu", "host")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """perf_counter of the code under test, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bars, "time", clock)
    return clock


def batch(iteration: int) -> BatchDone:
    return BatchDone(iteration // 4, iteration, 0.1, 10, 0.1, 5, 1000, 0.5)


def work(console: Console, clock: Clock, seconds: float, what: str = "exporting") -> None:
    """100 pieces of work that take `seconds` in all."""
    for _ in counted(range(100), what, 100, "Gaussians", reporter(console)):
        clock.now += seconds / 100


def shown(stream: io.StringIO) -> list[str]:
    """Lines that stay on the screen, and the last state of a line that is redrawn."""
    return [line.rpartition("\r")[2].strip() for line in stream.getvalue().split("\n")]


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_work_of_less_than_two_seconds_shows_nothing(clock: Clock, stream: type[io.StringIO]) -> None:
    console = Console(screen := stream())
    work(console, clock, 1.9)
    console.close()
    assert screen.getvalue() == ""


def test_a_terminal_shows_a_bar_with_the_time_left_that_goes_when_the_work_is_done(clock: Clock) -> None:
    console = Console(screen := Terminal())
    work(console, clock, 30.0)
    # Two of thirty seconds are over when it appears; tqdm's own clock stands nearly still in this test.
    assert re.search(r"exporting: +\d+%\|.*\| \d+/100 \[00:02<00:\d\d, .*Gaussians/s\]", screen.getvalue())
    assert shown(screen) == [""]


def test_elsewhere_a_line_comes_every_ten_seconds_and_says_how_long_it_will_take(clock: Clock) -> None:
    console = Console(screen := io.StringIO())
    work(console, clock, 34.5)
    lines = screen.getvalue().splitlines()
    assert lines[0] == "exporting: 29%, ETA 0:00:24"
    assert lines[1:3] == ["exporting: 58%, ETA 0:00:14", "exporting: 87%, ETA 0:00:04"]
    assert lines[3:] == ["exporting: done after 0:00:34"]


def test_the_bar_of_training_survives_a_bar_below_it(clock: Clock) -> None:
    console = Console(screen := Terminal())
    console(STARTED)
    console(batch(40))
    work(console, clock, 20.0, "saving step_40")
    console(batch(44))
    console._bar.refresh()
    assert "saving step_40" in screen.getvalue()
    assert re.match(r" *44%\|.*44/100 ", shown(screen)[-1]), shown(screen)
    console(Message("a sentence"))
    assert "a sentence" in shown(screen)
    console(batch(100))
    console(Finished(100, False, 30.0, 10))
    assert any(re.match(r"100%\|.*100/100 ", line) for line in shown(screen))
    assert shown(screen)[-2].startswith("done at image 100")


def test_a_sentence_during_work_gets_a_line_of_its_own(clock: Clock) -> None:
    console = Console(screen := Terminal())
    for k in counted(range(10), "evaluating", 10, "views", reporter(console)):
        clock.now += 1.0
        if k == 6:
            console(Message("view 6 is not evaluated", "warning"))
    assert "warning: view 6 is not evaluated" in shown(screen)


def test_work_that_fails_leaves_no_bar_behind_its_error(clock: Clock) -> None:
    console = Console(screen := Terminal())
    for k in counted(range(10), "loading", 10, "Gaussians", reporter(console)):
        clock.now += 1.0
        if k == 6:
            break
    console.close()
    assert shown(screen) == [""]


def test_work_of_unknown_length_is_named_once_it_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(screen := io.StringIO())
    monkeypatch.setattr(bars, "SHOW_AFTER", 0.02)
    with pending("sorting", reporter(console)):
        time.sleep(0.2)
    monkeypatch.setattr(bars, "SHOW_AFTER", 60.0)
    with pending("neighbours", reporter(console)):
        pass
    with pending("reading a large model", reporter(console), long=True):
        assert screen.getvalue().splitlines() == ["sorting ...", "reading a large model ..."]


def test_programs_hear_of_long_work_once_a_second(clock: Clock) -> None:
    heard: list[Event] = []
    emit = sparse(heard.append)
    for _ in counted(range(1000), "quick", 1000, "rows", reporter(emit)):
        clock.now += 0.001
    emit(Message("between"))
    for _ in counted(range(1000), "slow", 1000, "rows", reporter(emit)):
        clock.now += 0.01
    assert [type(event) for event in heard] == [Message] + [Working] * 9 and all(e.what == "slow" for e in heard[1:])
    assert heard[-1] == Working("slow", 1000, 1000, "rows")


def test_counting_passes_everything_on_and_ends_at_the_total_even_when_items_are_missing() -> None:
    told: list[tuple[str, int, int, str]] = []
    chunks = [[1, 2, 3], [4], [5, 6]]
    report = lambda *words: told.append(words)  # noqa: E731
    assert list(counted(chunks, "loading", 8, "rows", report, len)) == chunks
    assert [(done, total) for _, done, total, _ in told] == [(0, 8), (3, 8), (4, 8), (6, 8), (8, 8)]
    assert list(counted([], "nothing", 0, "rows", report)) == [] and len(told) == 5
    assert list(counted("ab", "unseen", 2, "rows", unseen)) == ["a", "b"]


def test_refused_growth_is_said_once_and_summed_up_at_the_end() -> None:
    console = Console(screen := io.StringIO())
    for k in range(7):
        console(Densified(100 * k, 5, 0, 1000 + k, 50, False))
    console(Finished(700, False, 3.0, 50))
    lines = [line for line in screen.getvalue().splitlines() if "wanted" in line or "refused" in line]
    assert lines[0] == "image 0: 1,000 Gaussians more were wanted than the budget admits"
    assert len(lines) == 2 and "refused 7 times, of up to 1,006 Gaussians at once" in lines[1]


def test_what_is_cleared_away_is_said_with_its_reason_and_nothing_where_nothing_went() -> None:
    console = Console(screen := io.StringIO())
    console(Cleared(1032, 0, 0, 5000, 0))
    assert not screen.getvalue()
    console(Cleared(1032, 1200, 34, 5000, 7))
    assert screen.getvalue().startswith(
        "image 1032: 1,234 Gaussians are gone that would float in front of other views: 1,200 that"
    )


def test_everything_that_may_take_long_in_a_run_reports_its_beginning_and_its_end(tmp_path: Path) -> None:
    events = run_demo(tmp_path / "run", iterations=8, offload="host")
    last = {event.what: event for event in of_type(events, Working)}
    expected = {"nearest", "sorting", "finding", "writing", "exporting", "evaluating", "saving"}
    assert expected <= {what.split()[0] for what in last}
    assert all(event.done == event.total > 0 for event in last.values())
    again = run_demo(tmp_path / "run", iterations=16, offload="host", resume=True)
    loaded = [event for event in of_type(again, Working) if event.what == "loading step_8"]
    assert loaded[0].done == 0 and loaded[-1].done == loaded[-1].total == last["saving step_8"].total


def test_the_log_of_a_run_does_not_keep_them(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", append=False)
    for event in (Working("loading", 0, 2, "rows"), STARTED, Working("loading", 2, 2, "rows"), batch(4)):
        log(event)
    log.close()
    assert [event["type"] for event in read_events(tmp_path)] == ["started", "batch_done"]


def test_nothing_is_reported_from_inside_the_training_loop(tmp_path: Path) -> None:
    """Between two batches without growth, evaluation or saving there is no event but BatchDone, and the lanes of ten batches."""
    events = run_demo(tmp_path / "run", iterations=24, densify_until=0)
    events = [event for event in events if not isinstance(event, LanesSampled)]
    batches = [k for k, event in enumerate(events) if isinstance(event, BatchDone)]
    assert batches == list(range(batches[0], batches[0] + 6))


def test_eval_json_is_nothing_but_json_and_quiet_is_silent(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_demo(run, iterations=8)
    result = clm("eval", run, "--json")
    figures, metrics = json.loads(result.stdout), json.loads((run / "metrics.json").read_text())
    assert result.stderr == "" and figures.keys() == metrics.keys()
    assert figures["test"]["psnr"] == pytest.approx(metrics["test"]["psnr"], abs=0.01) and figures["train"] is None
    trained = json.loads(clm("eval", run, "--json", "-q", "--split", "train").stdout)
    assert len(trained["train"]["per_view"]) == 35 and trained["test"] is None
    for quiet in (("eval", run), ("export", run, tmp_path / "a.ply"), ("render", run, "-o", tmp_path / "views")):
        result = clm(*quiet, "-q")
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
