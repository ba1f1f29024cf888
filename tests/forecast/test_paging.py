"""The disk lane of the simulator: what is read and written follows from who sees which pages, and nobody gathers too early."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clm.forecast.paging import PagedTurn, Paging, SeenPages, page_batches
from clm.forecast.simulate import simulate
from clm.plan.batch import batch_views
from clm.plan.residency import make_plan
from tests.forecast.test_simulate import CPU, GPU, PAGE_ROWS, batches, machines, plans_of, simulated, spans

VIEWS, ROWS = 12, 400
NOBODY = np.zeros(ROWS, bool)


def strip(view: int) -> np.ndarray:
    """Neighbouring views share half of what they see."""
    return np.arange(30 * view, 30 * view + 60, dtype=np.int32)


def paged(held: float, resident: np.ndarray = NOBODY, capacity: int = 200) -> Paging:
    seen, train = SeenPages(ROWS, PAGE_ROWS), np.arange(VIEWS)
    assert all(np.array_equal(rows, strip(k)) for k, rows in enumerate(seen.marking(map(strip, range(VIEWS)))))
    views = [batch_views(train, 0, first, 3) for first in (0, 3)]
    plans = [make_plan(those, [strip(k) for k in those], capacity, PAGE_ROWS) for those in views]
    return page_batches(plans, seen, train, 0, held=held, row_bytes=10.0, resident=resident)


def test_a_view_is_remembered_by_its_pages() -> None:
    seen = SeenPages(10, 4)
    list(seen.marking([np.array([0, 1, 9], np.int32), np.zeros(0, np.int32)]))
    assert seen.pages == 3 and seen.of(0).tolist() == [0, 2] and seen.of(1).tolist() == []


def test_memory_for_every_page_reads_nothing_and_less_of_it_reads_more() -> None:
    everything = paged(1.0)
    assert everything.bytes_read == everything.bytes_written == 0 and everything.hit_rate == 1.0
    assert [len(turns) for turns in everything.batches] == [3, 3]
    some, few = paged(0.5), paged(0.2)
    assert everything.ahead >= some.ahead >= few.ahead == 1
    assert 0 < some.bytes_read < few.bytes_read and 1 > some.hit_rate > few.hit_rate
    assert some.bytes_read <= 2 * 3 * 60 * 10 and some.of_lru <= 1
    assert some.bytes_read % (PAGE_ROWS * 10) == 0, "whole pages"


def test_pages_that_live_on_the_device_are_not_read() -> None:
    resident = np.arange(ROWS) < 200
    part = paged(0.2, resident)
    assert 0 < part.bytes_read < paged(0.2).bytes_read
    assert paged(0.2, np.ones(ROWS, bool)).bytes_read == 0


def test_every_piece_of_a_view_has_its_own_reads() -> None:
    pieces = paged(0.1, capacity=16)
    assert all(len(turns) > 3 for turns in pieces.batches) and pieces.bytes_read > 0
    assert paged(1.0, capacity=16).bytes_read == 0


turns_of_disk = st.tuples(*[st.sampled_from([0.0, 1e4, 1e7])] * 4).map(lambda sizes: PagedTurn(*sizes))


@settings(max_examples=40, deadline=None)
@given(batches, machines(), st.data())
def test_rows_are_gathered_and_updated_after_their_pages_were_read(drawn, machine, data) -> None:  # type: ignore[no-untyped-def]
    machine = replace(machine, disk_read_gb_s=data.draw(st.floats(0.01, 10)), disk_write_gb_s=1.0)
    plans = plans_of(drawn)
    each = tuple(tuple(data.draw(turns_of_disk) for _ in plan.turns) for plan in plans)
    timeline = simulated(drawn, machine, paging=Paging(each, 0.5, 0.7, data.draw(st.integers(1, 5))))
    assert 0 <= timeline.disk_hidden_fraction <= 1
    total = timeline.exposed + timeline.plan_exposed + timeline.lanes["compute"]
    assert timeline.seconds == pytest.approx(total)
    for k, plan in enumerate(plans):
        for i in range(len(plan.turns)):
            read, written = (spans(timeline, k, i, name) for name in ("read pages", "write pages"))
            fetch = [span for span in read if each[k][i].fetch_read][:1]
            for span in spans(timeline, k, i, "gather"):
                assert all(span.start >= before.end - 1e-9 for before in fetch)
            assert len(read) == sum(size > 0 for size in (each[k][i].fetch_read, each[k][i].update_read))
            assert len(written) == sum(size > 0 for size in (each[k][i].fetch_written, each[k][i].update_written))


@pytest.mark.parametrize("machine", [CPU, GPU])
def test_a_slow_disk_is_what_a_run_waits_for_and_a_quick_one_is_hidden(machine) -> None:  # type: ignore[no-untyped-def]
    plans = [make_plan(range(3), [strip(k) for k in range(3)], 200, PAGE_ROWS)] * 6
    one = PagedTurn(24e3, 24e3, 0.0, 0.0)
    paging = Paging(((one,) * 3,) * 6, 0.5, 0.7, 4)

    def speed(rate: float, paging: Paging | None = paging):  # type: ignore[no-untyped-def]
        return simulate(plans, replace(machine, disk_read_gb_s=rate, disk_write_gb_s=rate), [1000] * 3, paging=paging)

    without, quick, slow = speed(1, None), speed(1e6), speed(1e-3)
    assert quick.seconds == pytest.approx(without.seconds, rel=1e-3) and quick.disk_hidden_fraction > 0.9
    assert slow.seconds == pytest.approx(18 * 48e3 / 1e6, rel=0.05) and slow.disk_hidden_fraction < 0.1
    assert without.disk_hidden_fraction == 1.0 and without.lanes["disk"] == 0
    assert slow.lanes["disk"] == pytest.approx(18 * 48e3 / 1e6)
