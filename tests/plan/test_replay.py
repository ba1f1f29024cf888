"""Next use reads no more pages than any other choice, and what is read and written is what a slow twin says."""

from __future__ import annotations

import time
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clm.plan.replay import replay

small = st.lists(st.sets(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=8)
traces = st.lists(st.sets(st.integers(0, 30), max_size=12), max_size=25)


def arrays(ticks: list[set[int]]) -> list[np.ndarray]:
    return [np.array(sorted(tick), np.int32) for tick in ticks]


def fewest_reads(ticks: list[set[int]], frames: int) -> int:
    """Over all choices of what leaves."""

    @cache
    def from_here(k: int, held: frozenset[int]) -> int:
        if k == len(ticks):
            return 0
        missing, others = ticks[k] - held, sorted(held - ticks[k])
        room = max(0, len(held | ticks[k]) - frames)
        kept = (held - set(gone) | ticks[k] for gone in combinations(others, room))
        return len(missing) + min(from_here(k + 1, frozenset(after)) for after in kept)

    return from_here(0, frozenset())


@settings(max_examples=100, deadline=None)
@given(small, st.integers(3, 5))
def test_next_use_reads_as_few_pages_as_any_choice(ticks: list[set[int]], frames: int) -> None:
    assert replay(arrays(ticks), frames).misses == fewest_reads(ticks, frames)


@settings(max_examples=100, deadline=None)
@given(traces, st.integers(1, 40))
def test_next_use_never_reads_more_than_last_use(ticks: list[set[int]], frames: int) -> None:
    best, lru = (replay(arrays(ticks), frames, by_next_use=choice) for choice in (True, False))
    assert best.misses <= lru.misses and best.uses == lru.uses == sum(map(len, ticks))
    distinct = len(set().union(*ticks))
    assert best.misses >= distinct
    if frames >= distinct:
        assert best.misses == lru.misses == distinct and not any(map(len, best.writes))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sets(st.integers(0, 30), max_size=12), st.booleans()), max_size=25),
    st.integers(12, 16),
    st.booleans(),
)
def test_what_changed_is_written_before_it_is_read_again_and_a_page_in_use_never_leaves(
    trace: list[tuple[set[int], bool]], frames: int, by_next_use: bool
) -> None:
    ticks, changing = [tick for tick, _ in trace], [change for _, change in trace]
    done = replay(arrays(ticks), frames, changing=changing, by_next_use=by_next_use)
    read_once: set[int] = set()
    changed: set[int] = set()
    for tick, change, read, written in zip(ticks, changing, done.reads, done.writes, strict=True):
        assert len(read) == len(set(read)) and tick - read_once <= set(read) <= tick
        assert len(written) == len(set(written)) and set(written) <= changed - tick
        assert not set(read) & changed, "it would be read as it was before its change"
        changed -= set(written)
        assert len(changed | tick) <= frames
        changed |= tick if change else set()
        read_once |= tick


def test_last_use_lets_the_page_go_that_was_used_longest_ago() -> None:
    ticks = arrays([{0}, {1}, {2}, {0}, {3}, {1}])
    lru = replay(ticks, 3, by_next_use=False)
    assert [read.tolist() for read in lru.reads] == [[0], [1], [2], [], [3], [1]]
    assert [written.tolist() for written in lru.writes] == [[], [], [], [], [1], [2]]
    assert [read.tolist() for read in replay(ticks, 3).reads] == [[0], [1], [2], [], [3], []]


def test_a_page_that_need_not_be_written_goes_before_one_that_must() -> None:
    ticks = arrays([{0}, {1}, {2}])
    done = replay(ticks, 2, changing=[True, False, False])
    assert not any(map(len, done.writes))


def test_no_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="frame"):
        replay([], 0)
    assert replay([], 1).hit_rate == 1.0


def test_a_hundred_thousand_uses_take_about_a_second() -> None:
    rng = np.random.default_rng(0)
    ticks = [rng.choice(15_000, 250, replace=False).astype(np.int32) for _ in range(400)]
    began = time.process_time()
    best = replay(ticks, 3_750)
    assert time.process_time() - began < 1.0
    assert best.misses < 0.75 * replay(ticks, 3_750, by_next_use=False).misses
