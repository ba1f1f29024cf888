"""What pages give to others: as the slow twin says, nothing overflows, and boxes stay as large as they were."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clm.kernels.grow import find_gifts_of_empty_pages, find_gifts_of_full_pages
from clm.store.gifts import along_a_curve
from tests.store.slow_gifts import slow_gifts_of_empty_pages, slow_gifts_of_full_pages


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


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0, 1, 2, 9, 64]), st.sampled_from([1, 3, 64, 2048]))
def test_gifts_are_those_of_the_slow_twin_and_no_page_overflows(seed: int, count: int, page_rows: int) -> None:
    rng = np.random.default_rng(seed)
    bounds = pages_in_space(count, rng)
    total = rng.choice([0, rng.integers(0, page_rows + 1), page_rows, 3 * page_rows], count) + rng.integers(0, 9, count)
    found = find_gifts_of_full_pages(total, bounds, page_rows)
    assert found.tolist() == [list(gift) for gift in slow_gifts_of_full_pages(total, bounds, page_rows)]
    check(found, np.append(total, np.zeros(int(total.sum()) + count, np.int64)), page_rows, count)

    fill = np.clip(total, 1, page_rows).astype(np.int32)
    order = along_a_curve(bounds) if count and np.isfinite(bounds).all() else np.arange(count)
    found = find_gifts_of_empty_pages(fill[order], bounds[order], page_rows)
    assert found.tolist() == [list(gift) for gift in slow_gifts_of_empty_pages(fill[order], bounds[order], page_rows)]
    check(found, fill[order].astype(np.int64), page_rows, count)
    assert (fill[order] - np.bincount(found[:, 0], found[:, 2], count))[found[:, 0]].sum() == 0, "they become free"


def check(found: np.ndarray, rows: np.ndarray, page_rows: int, count: int) -> None:
    """Afterwards no page has too many rows, or fewer than none; nobody gives and takes."""
    giver, taker, given, how = found.T
    assert not np.intersect1d(giver, taker).size and (given > 0).all() and ((how >= 0) & (how <= 6)).all()
    after = rows - np.bincount(giver, given, len(rows)).astype(int) + np.bincount(taker, given, len(rows)).astype(int)
    assert after.sum() == rows.sum() and after.min(initial=0) >= 0 and after.max(initial=0) <= page_rows
    new = np.unique(taker[taker >= count])
    assert (new == count + np.arange(len(new))).all()


def in_a_row(fill: list[int]) -> tuple[np.ndarray, np.ndarray]:
    bounds = np.zeros((len(fill), 8), np.float32)
    bounds[:, 0], bounds[:, 4], bounds[:, 5:7], bounds[:, 3] = np.arange(len(fill)), np.arange(len(fill)) + 1, 1, 0.1
    return np.array(fill), bounds


@pytest.mark.parametrize(
    ("total", "gifts"),
    [
        ([110, 50], [[0, 1, 30, 1]]),  # the higher half of what it has more goes up
        ([110, 90], [[0, 2, 43, 1], [1, 2, 23, 0]]),  # two become three
        ([90, 110, 30], [[1, 2, 40, 1]]),
        ([110], [[0, 1, 55, 6]]),
        ([210], [[0, 1, 70, 6], [0, 2, 70, 6]]),
    ],
)
def test_a_page_that_overflows_gives_to_a_near_one_then_two_become_three(
    total: list[int], gifts: list[list[int]]
) -> None:
    assert find_gifts_of_full_pages(*in_a_row(total), 100).tolist() == gifts


@pytest.mark.parametrize(
    ("fill", "gifts"),
    [
        ([40, 45], [[0, 1, 40, 1]]),
        ([70, 50, 55], [[1, 2, 32, 1], [1, 0, 18, 0]]),
        ([61, 61, 20], []),
        ([70, 65], []),
    ],
)
def test_a_page_that_is_rather_empty_goes_into_one_near_page_or_two(fill: list[int], gifts: list[list[int]]) -> None:
    rows, bounds = in_a_row(fill)
    assert find_gifts_of_empty_pages(rows.astype(np.int32), bounds, 100).tolist() == gifts
