"""What is known of the uses of pages to come, and known better later."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clm.store.foresight import NEVER, Foresight

PAGES = 12
traces = st.lists(st.sets(st.integers(0, PAGES - 1), max_size=5), max_size=6)


def ticks_of(trace: list[set[int]]) -> list[np.ndarray]:
    return [np.array(sorted(tick), np.int32) for tick in trace]


@given(traces, traces, traces, st.data())
def test_what_is_known_better_later_is_as_if_it_had_been_known_at_first(
    own: list[set[int]], guessed: list[set[int]], known: list[set[int]], data: st.DataObject
) -> None:
    """Whatever has passed meanwhile, in whatever order."""
    over = data.draw(st.lists(st.sampled_from(range(len(own))), unique=True)) if own else []
    late, early = Foresight(), Foresight()
    late.look(ticks_of(own + guessed), PAGES)
    for tick in over:
        late.passed(tick)
    late.look_again(ticks_of(known), after=len(own))
    early.look(ticks_of(own + known), PAGES)
    for tick in over:
        early.passed(tick)
    assert np.array_equal(late.next_use, early.next_use)
    assert np.array_equal(late.ahead_use, early.ahead_use) and late.ahead == early.ahead


def test_uses_beyond_those_that_are_looked_at_stay_unknown() -> None:
    foresight = Foresight()
    foresight.look(ticks_of([{0}, {1}]), PAGES)
    foresight.look_again(ticks_of([{2}]), after=3)
    assert foresight.next_use[:3].tolist() == [0, 1, NEVER]
