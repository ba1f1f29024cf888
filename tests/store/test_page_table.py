"""What the disk tier decides: with the uses known it reads no more than must be read, however far it reads ahead."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clm.plan.replay import replay
from clm.store.page_table import PageTable

PAGES = 60


def table_of(frames: int, ticks: list[np.ndarray]) -> PageTable:
    table = PageTable(frames)
    table.grow(PAGES)
    table.fill[:] = 1
    table.expect(ticks)
    return table


def reads_of(ticks: list[np.ndarray], frames: int, every: int = 1, quick: int = 10**6) -> int:
    """Pages that are read over all ticks, a look `every` so many of them (as batches look); quick: swaps between two ticks."""
    table, stored = table_of(frames, ticks), np.ones(PAGES, np.int32)

    def move(swaps: int) -> None:
        for _ in range(swaps):
            done = table.next_swaps(4, stored)
            if not done:
                return
            for swap in done:
                table.arrived(swap)

    for at, pages in enumerate(ticks):
        if at % every == 0:
            table.expect(ticks[at:])
        move(quick)
        table.pins[pages] += 1
        table.urgent.extend(pages[table.frame_of[pages] < 0].tolist())
        move(10**6)
        assert table.there(pages).all() and not table.urgent
        there = table.page_of[table.page_of >= 0]
        assert len(np.unique(there)) == len(there) and np.array_equal(table.page_of[table.frame_of[there]], there)
        table.pins[pages] -= 1
        table.passed(at % every)
    return table.reads


traces = st.lists(st.sets(st.integers(0, PAGES - 1), max_size=12), max_size=25)


@settings(max_examples=100, deadline=None)
@given(traces, st.integers(12, 40), st.sampled_from([1, 3, 7]), st.sampled_from([0, 1, 3, 10**6]))
def test_reading_ahead_reads_nothing_that_would_not_be_read_anyway(
    trace: list[set[int]], frames: int, every: int, quick: int
) -> None:
    ticks = [np.array(sorted(tick), np.int32) for tick in trace]
    assert reads_of(ticks, frames, every, quick) == replay(ticks, frames).misses


def test_pages_are_read_for_ticks_to_come_until_one_that_is_still_needed_would_have_to_leave() -> None:
    ticks = [np.array(pages, np.int32) for pages in ([0, 1], [2, 3], [4], [0, 5], [1, 2])]
    table, stored = table_of(4, ticks), np.ones(PAGES, np.int32)
    ahead = [swap.comes for swap in table.next_swaps(9, stored)]
    assert ahead == [0, 1, 2, 3], "for page 4 page 3 has to leave, which is used before"
    for frame in range(4):
        table.busy[frame] = False
    assert table.next_swaps(9, stored) == []
    assert table.passed(0) and table.next_swaps(9, stored) == []
    assert table.passed(1)
    assert [(swap.leaves, swap.comes) for swap in table.next_swaps(1, stored)] == [(3, 4)]
