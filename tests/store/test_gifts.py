"""What pages give to others: as the slow twin says, nothing overflows, and boxes stay as large as they were."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clm.kernels.grow import CUT, find_gifts
from clm.store.gifts import FreePages, along_a_curve, gifts_of_full_pages
from tests.store.slow_gifts import slow_gifts


def pages_in_space(count: int, rng: np.random.Generator) -> np.ndarray:
    """Bounds [count, 8] of pages beside each other; a few are much larger, have large rows, or are not finite."""
    side = int(np.ceil(count ** (1 / 3)))
    corner = np.stack(np.unravel_index(np.arange(count), (side,) * 3), axis=1) + rng.uniform(-0.1, 0.1, (count, 3))
    bounds = np.zeros((count, 8), np.float32)
    bounds[:, :3], bounds[:, 4:7] = corner, corner + rng.uniform(0.6, 1.2, (count, 3))
    bounds[:, 3] = np.exp(rng.normal(0, 0.7, count))
    bounds[rng.random(count) < 0.05, 4:7] += 5
    bounds[rng.random(count) < 0.02] = np.inf
    bounds[rng.random(count) < 0.02, 1] = np.nan
    return bounds


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0, 1, 2, 9, 64]), st.sampled_from([1, 3, 64, 2048]))
def test_gifts_are_those_of_the_slow_twin_and_no_page_overflows(seed: int, count: int, page_rows: int) -> None:
    """Nobody gives and takes, and who takes from two takes from no more."""
    rng = np.random.default_rng(seed)
    bounds = pages_in_space(count, rng)
    fill = np.maximum(1, rng.choice([0.05, 0.4, 0.5, 0.7, 0.9, 1], count) * rng.uniform(0.9, 1, count) * page_rows)
    fill = fill.astype(np.int32)
    order = along_a_curve(bounds) if count and np.isfinite(bounds).all() else np.arange(count)
    fill, bounds = fill[order], bounds[order]
    found = find_gifts(fill, bounds, page_rows)
    assert found.tolist() == slow_gifts(fill, bounds, page_rows)
    giver, taker, given, how = found.T
    assert not np.intersect1d(giver, taker).size and (given > 0).all() and ((how >= 0) & (how < 6)).all()
    after = fill - np.bincount(giver, given, count).astype(int) + np.bincount(taker, given, count).astype(int)
    assert after.sum() == fill.sum() and after.min(initial=0) >= 0 and after.max(initial=0) <= page_rows
    assert np.bincount(giver, minlength=1).max() <= 2 and np.bincount(taker, minlength=1).max() <= 2


@pytest.mark.parametrize(
    ("fill", "gifts"),
    [
        ([40, 45], [[0, 1, 40, 0]]),  # into one near page
        ([70, 50, 55], [[1, 2, 32, 1], [1, 0, 18, 0]]),  # into two
        ([61, 61, 20], [[1, 2, 20, 1]]),  # its box would be too large for 81 rows: two share
        ([100, 90, 10], []),
        ([70, 65], []),
    ],
)
def test_a_page_that_is_rather_empty_gives_all_it_has_or_takes(fill: list[int], gifts: list[list[int]]) -> None:
    """Pages in a row, each a cube."""
    bounds = np.zeros((len(fill), 8), np.float32)
    bounds[:, 0], bounds[:, 4], bounds[:, 5:7], bounds[:, 3] = np.arange(len(fill)), np.arange(len(fill)) + 1, 1, 0.1
    assert find_gifts(np.array(fill, np.int32), bounds, 100).tolist() == gifts


def test_a_new_page_between_two_full_ones_takes_a_third() -> None:
    bounds = np.zeros((3, 8), np.float32)
    bounds[:, 0], bounds[:, 4], bounds[:, 5:7], bounds[:, 3] = [0, 0.9, 1], [0.9, 1, 2], 1, 0.1
    assert find_gifts(np.array([90, 12, 100], np.int32), bounds, 100).tolist() == [[2, 1, 32, 0], [0, 1, 22, 1]]


def test_a_page_that_overflows_gives_what_is_too_much_along_its_longest_axis() -> None:
    bounds = np.zeros((4, 8), np.float32)
    bounds[:, 4:7] = [1, 3, 2]
    total = np.array([100, 101, 185, 350])
    gifts = gifts_of_full_pages(np.array([2, 4, 5, 9], np.int32), total, bounds, 100, FreePages([3], 20))
    assert gifts.giver.tolist() == [1, 2, 3, 3, 3]
    assert gifts.taker.tolist() == [3, 20, 21, 22, 23] and gifts.rows.tolist() == [11, 92, 87, 88, 87]
    assert gifts.how.tolist() == [3, CUT, CUT, CUT, CUT]
