"""The disk lane of the simulator: what is read and written follows from who sees which pages, and nobody gathers too early."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clm.forecast.paging import Moved, PagedTurn, Paging, SeenPages, Tick, page_batches
from clm.forecast.simulate import simulate
from clm.plan.batch import batch_views
from clm.plan.residency import make_plan
from tests.forecast.test_simulate import CPU, GPU, PAGE_ROWS, batches, machines, plans_of, simulated, spans

VIEWS, ROWS = 12, 400
PAGES = -(-ROWS // PAGE_ROWS)
NOBODY = np.zeros(PAGES, bool)


def strip(view: int) -> np.ndarray:
    """Neighbouring views share half of what they see."""
    return np.arange(30 * view, 30 * view + 60, dtype=np.int32)


def paged(held: float, resident: np.ndarray = NOBODY, capacity: int = 200, step: int = 1) -> Paging:
    """step: of the rows that views see, plans are made on every so many."""
    seen, train = SeenPages(ROWS, PAGE_ROWS, step), np.arange(VIEWS)
    assert all(np.array_equal(rows, strip(k)) for k, rows in enumerate(seen.marking(map(strip, range(VIEWS)))))
    views = [batch_views(train, 0, first, 3) for first in (0, 3)]
    some = [(strip(k)[strip(k) % step == 0] // step).astype(np.int32) for k in range(VIEWS)]
    plans = [make_plan(those, [some[k] for k in those], capacity // step, PAGE_ROWS) for those in views]
    before, after = batch_views(train, 1, 0, VIEWS), batch_views(train, 0, 6, VIEWS)
    frames = int(held * seen.pages)
    return page_batches(plans, seen, before, after, frames=frames, row_bytes=10.0, resident=resident)


def test_a_view_is_remembered_by_its_pages() -> None:
    seen = SeenPages(10, 4)
    list(seen.marking([np.array([0, 1, 9], np.int32), np.zeros(0, np.int32)]))
    assert seen.pages == 3 and seen.of(0).tolist() == [0, 2] and seen.of(1).tolist() == []


def test_memory_for_every_page_reads_nothing_and_less_of_it_reads_more() -> None:
    everything = paged(1.0)
    assert everything.bytes_read == everything.bytes_written == 0 and everything.hit_rate == 1.0
    assert [len(turns) for turns in everything.batches] == [3, 3]
    some, few = paged(0.5), paged(0.2)
    assert 0 < some.bytes_read < few.bytes_read and 1 > some.hit_rate > few.hit_rate
    assert some.bytes_read <= 2 * 3 * 60 * 10 and some.of_lru <= 1
    assert some.bytes_read % (PAGE_ROWS * 10) == 0, "whole pages"


def test_pages_that_live_on_the_device_are_not_read() -> None:
    resident = np.arange(PAGES) < PAGES // 2
    part = paged(0.2, resident)
    assert 0 < part.bytes_read < paged(0.2).bytes_read
    assert paged(0.2, np.ones(PAGES, bool)).bytes_read == 0


def test_every_piece_of_a_view_has_its_own_reads() -> None:
    pieces = paged(0.1, capacity=16)
    assert all(len(turns) > 3 for turns in pieces.batches) and pieces.bytes_read > 0
    assert paged(1.0, capacity=16).bytes_read == 0


@pytest.mark.parametrize("held", [0.2, 0.5])
def test_few_of_the_rows_use_the_pages_that_all_of_them_use(held: float) -> None:
    """Every 16th row: plans have none of most pages that a view sees."""
    few, all_of_them = paged(held, step=16), paged(held)
    assert PAGE_ROWS < 16 and few.bytes_read == pytest.approx(all_of_them.bytes_read, rel=0.1)


def test_pages_make_room_when_they_are_used_no_more() -> None:
    waits = [
        (Tick(k, i, updates), moved)
        for k, turns in enumerate(paged(0.3).batches)
        for i, turn in enumerate(turns)
        for updates, moves in enumerate((turn.fetch, turn.update))
        for moved in moves
    ]
    assert any(moved.after is not None for _, moved in waits)
    for tick, moved in waits:
        earlier = moved.after
        assert earlier is None or earlier.batch < tick.batch or earlier.turn <= tick.turn + 1
        assert moved.read > 0 or moved.written > 0


sizes = st.sampled_from([0.0, 1e4, 1e7])


@st.composite
def moves(draw, batch: int, turn: int, updates: bool) -> tuple[Moved, ...]:  # type: ignore[no-untyped-def]
    earlier = [None, *(Tick(batch, i, draw(st.booleans())) for i in range(turn))]
    return tuple(
        Moved(draw(sizes), draw(sizes), draw(st.sampled_from(earlier))) for _ in range(draw(st.integers(0, 2)))
    )


@settings(max_examples=40, deadline=None)
@given(batches, machines(), st.data())
def test_rows_are_gathered_and_updated_after_their_pages_were_read(drawn, machine, data) -> None:  # type: ignore[no-untyped-def]
    rates = data.draw(st.tuples(st.floats(0.01, 10), st.sampled_from([0.0, 0.1, 10.0])))
    machine = replace(machine, disk_read_gb_s=rates[0], disk_write_gb_s=1.0, disk_core_gb_s=rates[1])
    plans = plans_of(drawn)
    each = tuple(
        tuple(
            PagedTurn(*(data.draw(moves(k, i, updates)) for updates in (False, True))) for i in range(len(plan.turns))
        )
        for k, plan in enumerate(plans)
    )
    timeline = simulated(drawn, machine, paging=Paging(each, 0.5, 0.7))
    assert 0 <= timeline.disk_hidden_fraction <= 1
    total = timeline.exposed + timeline.plan_exposed + timeline.lanes["compute"]
    assert timeline.seconds == pytest.approx(total)
    for k, plan in enumerate(plans):
        for i in range(len(plan.turns)):
            turn, first = each[k][i], len([moved for moved in each[k][i].fetch if moved.read])
            kinds = {"read pages": lambda moved: moved.read, "write pages": lambda moved: moved.written}
            for name, size in kinds.items():
                done = [span for span in spans(timeline, k, i, name) if not span.worker.endswith("host")]
                assert len(done) == sum(size(moved) > 0 for moved in (*turn.fetch, *turn.update))
            reads = [span for span in spans(timeline, k, i, "read pages") if not span.worker.endswith("host")]
            for span in spans(timeline, k, i, "gather"):
                assert all(span.start >= before.end - 1e-9 for before in reads[:first])


def test_what_moves_takes_its_share_of_the_cores() -> None:
    """A disk that is hidden all the same makes computing slower by what packing and checking takes."""
    plans = [make_plan(range(3), [strip(k) for k in range(3)], 200, PAGE_ROWS)] * 6
    paging = Paging(((PagedTurn((Moved(1e6, 1e6, None),), ()),) * 3,) * 6, 0.5, 0.7)
    cpu = replace(CPU, disk_read_gb_s=1e3, disk_write_gb_s=1e3)
    free, busy = (
        simulate(plans, replace(cpu, disk_core_gb_s=rate), [1000] * 3, paging=paging).seconds for rate in (0.0, 1.0)
    )
    assert busy == pytest.approx(free + 18 * 2e6 / 1e9 / cpu.cores, rel=0.05)


@pytest.mark.parametrize("machine", [CPU, GPU])
def test_a_slow_disk_is_what_a_run_waits_for_and_a_quick_one_is_hidden(machine) -> None:  # type: ignore[no-untyped-def]
    plans = [make_plan(range(3), [strip(k) for k in range(3)], 200, PAGE_ROWS)] * 6
    one = PagedTurn((Moved(24e3, 24e3, None),), ())
    paging = Paging(((one,) * 3,) * 6, 0.5, 0.7)

    def speed(rate: float, paging: Paging | None = paging):  # type: ignore[no-untyped-def]
        return simulate(plans, replace(machine, disk_read_gb_s=rate, disk_write_gb_s=rate), [20_000] * 3, paging=paging)

    without, quick, slow = speed(1, None), speed(1e6), speed(1e-3)
    assert quick.seconds == pytest.approx(without.seconds, rel=1e-3) and quick.disk_hidden_fraction > 0.9
    assert slow.seconds == pytest.approx(18 * 48e3 / 1e6, rel=0.05) and slow.disk_hidden_fraction < 0.1
    assert without.disk_hidden_fraction == 1.0 and without.lanes["disk"] == 0
    assert slow.lanes["disk"] == pytest.approx(18 * 48e3 / 1e6)
