"""Relocation and addition: as many as the rule says, by opacity, a function of rows' identities; copies look like the row."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from clm.store.layout import LOG_SCALES, LOGIT_OPACITIES
from clm.store.store import Store
from clm.strategy.mcmc import MOST_COPIES, draw, relocation, share
from tests.store.test_store import BOTH, by_key, random_store, reorder

DEAD = 0.005


def faint_store(rows: int, seed: int = 0, page_rows: int | None = None, moments: str = "f32") -> Store:
    """Every tenth row is dead."""
    store = random_store(rows, seed, moments, page_rows)
    store.geometry[store.keys % np.uint64(10) == 3, LOGIT_OPACITIES] = -6.0
    store.geometry[:, LOGIT_OPACITIES] = np.maximum(store.geometry[:, LOGIT_OPACITIES], -6.0)
    store.refresh(None)
    return store


def dead_rows(store: Store) -> np.ndarray:
    return np.flatnonzero(1 / (1 + np.exp(-store.geometry[:, LOGIT_OPACITIES].astype(float))) <= DEAD)


def slow_share(opacity: float, copies: int) -> tuple[float, float]:
    """(opacity, factor of scales) as gsplat's compute_relocation has it: equation 9 of Kheradmand et al. 2024, sum by sum."""
    new = 1.0 - (1.0 - opacity) ** (1.0 / copies)
    below = sum(
        comb(i - 1, k) * (-1) ** k * new ** (k + 1) / (k + 1) ** 0.5 for i in range(1, copies + 1) for k in range(i)
    )
    return new, opacity / below


@pytest.mark.parametrize("copies", [2, 3, 7, MOST_COPIES, 80])
def test_copies_share_opacity_and_scale_as_in_the_paper(copies: int) -> None:
    opacities = np.array([0.01, 0.1, 0.5, 0.9, 0.99])
    geometry = np.zeros((len(opacities), 12), np.float32)
    geometry[:, LOGIT_OPACITIES] = np.log(opacities / (1 - opacities))
    geometry[:, LOG_SCALES] = [-1.0, -2.0, -3.0]
    share(geometry, np.full(len(opacities), copies))
    for row, opacity in zip(geometry.astype(float), opacities, strict=True):
        new, factor = slow_share(opacity, min(copies, MOST_COPIES))
        assert 1 / (1 + np.exp(-row[LOGIT_OPACITIES])) == pytest.approx(max(new, DEAD), rel=1e-5)
        np.testing.assert_allclose(row[LOG_SCALES], np.log(factor) + np.array([-1.0, -2.0, -3.0]), atol=2e-6)


@BOTH
@pytest.mark.parametrize("more", [0, 150])
def test_dead_rows_go_where_others_live_and_as_many_are_added_as_was_said(more: int, moments: str) -> None:
    store = faint_store(3000, moments=moments)
    dead = dead_rows(store)
    drawn = draw(store, None, DEAD, more, 100)
    np.testing.assert_array_equal(drawn.dead, dead)
    assert drawn.copies == len(dead) + more and not np.isin(drawn.rows, dead).any()
    old = set(store.keys.tolist())
    store.apply(relocation(store, None, drawn, 100))
    assert store.rows == 3000 + more
    ids = np.concatenate(list(store.live()))
    new = ids[[key not in old for key in store.keys[ids].tolist()]]
    assert len(new) == drawn.copies + len(drawn.rows)
    assert not store.m_geometry[new].any() and not store.v_colour[new].any() and not store.stamp[new].any()


def test_rows_are_drawn_with_replacement_in_proportion_to_their_opacity() -> None:
    """Over 600 draws of 60 of 40 rows, each count has the mean and the variance of the multinomial distribution."""
    store, rounds, n = faint_store(40), 600, 60
    opacity = 1 / (1 + np.exp(-store.geometry[:, LOGIT_OPACITIES].astype(float)))
    lives = opacity > DEAD
    more, counts = n - int((~lives).sum()), np.zeros((rounds, 40))
    for image in range(rounds):
        drawn = draw(store, None, DEAD, more, image, until=10.0)
        counts[image, drawn.rows] = drawn.times
    p = np.where(lives, opacity, 0) / opacity[lives].sum()
    assert (counts.sum(axis=1) == n).all() and not counts[:, ~lives].any()
    deviation = (counts.mean(axis=0) - n * p)[lives] / np.sqrt(n * p * (1 - p) / rounds)[lives]
    assert np.abs(deviation).max() < 4 and 0.5 < np.square(deviation).mean() < 1.6
    ratio = counts.var(axis=0)[lives] / (n * p * (1 - p))[lives]
    assert abs(ratio.mean() - 1) < 0.1
    assert counts.max() > 5


def test_the_choice_depends_neither_on_pages_nor_on_places_nor_on_where_looking_begins() -> None:
    """Three rebuilds over pages of 16, 100 and 2048 rows, and over rows in another order: bit for bit the same rows."""
    results, rows = [], 400
    for page_rows, order, until in (
        (16, None, 0.0),
        (100, None, 1e-3),
        (2048, np.random.default_rng(1).permutation(rows), 9.0),
    ):
        store = faint_store(rows, page_rows=page_rows)
        if order is not None:
            reorder(store, order)
        for image in (100, 200, 300):
            drawn = draw(store, None, DEAD, 20, image, until)
            store.apply(relocation(store, None, drawn, image))
        results.append(by_key(store))
    assert results[0] == results[1] == results[2]


def test_where_no_row_lives_or_nothing_is_due_nothing_moves() -> None:
    store = faint_store(100)
    store.geometry[:, LOGIT_OPACITIES] = -9.0
    drawn = draw(store, None, DEAD, 5, 1)
    assert drawn.copies == 0 and not len(drawn.dead)
    assert store.apply(relocation(store, None, drawn, 1)).size == 0 and store.rows == 100
    store.geometry[:, LOGIT_OPACITIES] = 1.0
    assert draw(store, None, DEAD, 0, 1).copies == 0
    store.geometry[7, LOGIT_OPACITIES] = np.nan
    drawn = draw(store, None, DEAD, 50, 1)
    assert drawn.copies == 50 and 7 not in drawn.rows and not len(drawn.dead), "a broken row stays alone"
