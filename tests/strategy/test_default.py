"""Decisions of the default strategy: a function of the rows that were drawn, their identities and the seed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clm.camera import Camera
from clm.optim.adam import Adam, Betas
from clm.settings import load_config
from clm.store.layout import LOG_SCALES, LOGIT_OPACITIES, MEANS
from clm.store.store import Store
from clm.strategy.default import (
    Decision,
    DefaultStrategy,
    Thresholds,
    clear_statistics,
    decide,
    evidence,
    reset_opacity,
)
from clm.strategy.halves import halve
from tests.store.slow_identity import quats_to_rotations
from tests.store.test_store import BOTH, by_key, random_store, reorder

LIMITS = Thresholds(screen_gradient=2e-4, prune_opacity=0.005, prune_scale=None)
MANY = 10**9
CAMERA = Camera(100, 100, 50.0, 50.0, 50.0, 50.0, np.eye(4))


def grow(store: Store, decision: Decision) -> None:
    store.apply(decision.growth)
    clear_statistics(store)


def test_growth_takes_the_strongest_gradients_when_the_limit_is_short() -> None:
    store = random_store(2000)
    store.geometry[:, LOGIT_OPACITIES] = 0
    gradient = store.statistics[:, 1] / np.maximum(store.statistics[:, 0], 1)
    decision = decide(store, None, LIMITS, 2050, 100)
    chosen = np.unique(decision.growth.parents)
    assert len(chosen) == 50 == decision.split
    assert decision.refused == (gradient > LIMITS.screen_gradient).sum() - 50
    assert gradient[chosen].min() >= gradient[np.setdiff1d(np.arange(2000), chosen)].max()
    np.testing.assert_array_equal(decision.growth.leave, chosen)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([20, 60, 10**6]), st.booleans())
def test_rows_by_identity_do_not_depend_on_pages_or_places(seed: int, room: int, equal: bool) -> None:
    """Three growths over pages of 16, 100 and 2048 rows, and over rows in another order: bit for bit the same rows, also where
    all gradients are equal and the limit cuts among them."""
    results, rows = [], 300
    for page_rows, order in ((16, None), (100, None), (2048, np.random.default_rng(seed).permutation(rows))):
        store = random_store(rows, seed, page_rows=page_rows)
        if equal:
            store.statistics[:] = 1
        if order is not None:
            reorder(store, order)
        for image in (100, 200, 300):
            if image > 100:
                ids = np.concatenate(list(store.live()))
                store.statistics[ids, 0] = 1
                store.statistics[ids, 1] = store.keys[ids] % np.uint64(7)
                store.see_again()
            grow(store, decide(store, None, LIMITS, rows + room, image))
        results.append(by_key(store))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("epochs", [1.0, 2.0, 5.0])
def test_evidence_is_the_pixels_that_pairs_of_views_share_over_however_many_epochs(epochs: float) -> None:
    pixels = np.array([[900.0, 0, 0], [30, 30, 0], [20, 20, 20], [60, 0.5, 0.5], [0, 0, 0]])  # of three views
    sums, squares = (np.float32(epochs * (pixels**power).sum(axis=1)) for power in (1, 2))
    found = evidence(sums, squares, epochs)
    np.testing.assert_allclose(found[[0, 1, 2, 4]], [0, 2 * 30, 3 * 2 * 20, 0], atol=1e-3)
    assert 0 < found[3] < 3, "a second view that sees next to nothing of it is no second view"


def test_evidence_of_a_part_of_an_epoch_is_on_average_that_of_all() -> None:
    rng, views, drawn = np.random.default_rng(0), 40, 10  # of forty views, ten are drawn; twelve of them see the row
    pixels = np.where(np.arange(views) < 12, 50.0, 0.0)
    some = np.array([rng.permutation(pixels)[:drawn] for _ in range(4000)])
    found = evidence(np.float32(some.sum(axis=1)), np.float32((some**2).sum(axis=1)), drawn / views)
    assert found.mean() == pytest.approx(12 * 11 * 50, rel=0.1)


@pytest.mark.parametrize(("begins", "first"), [(50, 100), (500, 600)])
def test_the_first_densification_looks_at_all_images_since_the_beginning(begins: int, first: int) -> None:
    config = load_config({})
    config = dataclasses.replace(config, densify_from=begins, densify_every=100, densify_until=5000)
    strategy = DefaultStrategy(config, 1.0, [CAMERA] * 50)
    assert not any(strategy.due(now - 4, now) for now in range(4, first, 4)) and strategy.due(first - 4, first)
    assert strategy._thresholds(first).epochs == first / 50
    assert strategy._thresholds(first + 100).epochs == strategy._thresholds(first + 102).epochs == 100 / 50


def test_rows_grow_where_enough_of_them_is_seen_from_more_than_one_place_and_the_others_are_counted() -> None:
    store = random_store(2000)
    store.geometry[:, LOGIT_OPACITIES] = 0
    store.statistics[:, 2:] = 50, 2500  # one view with 50 pixels
    proven = np.arange(2000) % 3 == 0
    store.statistics[proven, 2:] = 100, 5000  # two views with 50 pixels each
    everything = decide(store, None, LIMITS, MANY, 1)
    decision = decide(store, None, dataclasses.replace(LIMITS, evidence=90.0), MANY, 1)
    np.testing.assert_array_equal(
        np.unique(decision.growth.parents), np.intersect1d(everything.growth.parents, np.flatnonzero(proven))
    )
    assert decision.split + decision.unproven == everything.split and everything.unproven == 0
    assert decision.pruned == everything.pruned, "what is transparent goes whoever sees it"


@BOTH
def test_counts_add_up_and_new_rows_have_zero_moments(moments: str) -> None:
    store = random_store(3000, moments=moments)
    before, keys = store.rows, store.keys.copy()
    decision = decide(store, None, LIMITS, MANY, 1)
    assert decision.split > 0 and decision.pruned > 0
    grow(store, decision)
    assert store.rows == before + decision.split - decision.pruned
    assert not any(store.statistics[ids].any() for ids in store.live()) and not store.seen.any()
    ids = np.concatenate(list(store.live()))
    new = ids[~np.isin(store.keys[ids], keys)]
    assert len(new) == 2 * decision.split
    assert not store.m_geometry[new].any() and not store.stamp[new].any()


def test_only_drawn_rows_are_looked_at() -> None:
    store = random_store(3000)
    store.geometry[:, LOGIT_OPACITIES] = -50  # all would go
    idle = store.statistics[:, 0] == 0
    decision = decide(store, None, LIMITS, MANY, 1)
    np.testing.assert_array_equal(decision.growth.leave, np.flatnonzero(~idle))
    assert decision.split == 0, "children of what goes would go, too"


@pytest.mark.parametrize("cap", [2000, 3000, 3010, 3400])
def test_growth_never_exceeds_the_row_limit(cap: int) -> None:
    store = random_store(3000)
    store.geometry[:, LOGIT_OPACITIES] = 0  # nothing is pruned
    decision = decide(store, None, LIMITS, cap, 1)
    grow(store, decision)
    assert store.rows == max(cap, 3000) and decision.refused > 0


def test_a_row_that_is_too_large_is_split_only_where_its_children_are_not() -> None:
    store = random_store(3)
    store.geometry[:, LOGIT_OPACITIES] = 0
    store.statistics[:] = 1
    store.geometry[:, LOG_SCALES] = np.log(np.array([0.9, 1.7, 1.9], np.float32))[:, None]
    store.see_again()
    decision = decide(store, None, dataclasses.replace(LIMITS, prune_scale=1.0), MANY, 1)
    assert (decision.split, decision.pruned) == (2, 1)
    np.testing.assert_array_equal(decision.growth.leave, [0, 1, 2])
    np.testing.assert_array_equal(decision.growth.parents, [0, 0, 1, 1])


@BOTH
def test_decisions_see_rows_as_they_are_now_and_settle_nothing(moments: str) -> None:
    adam, store = Adam(np.full((6, 40), 1e-2), Betas.for_batch(1)), random_store(500, moments=moments)
    store.stamp[:] = np.random.default_rng(0).integers(0, 20, 500)
    if moments == "bf16":
        for name in ("m_geometry", "v_geometry", "m_colour", "v_colour"):
            getattr(store, name)[:] = 0x3C00 + getattr(store, name) % 50
    before = {name: getattr(store, name).copy() for name in store.names}
    exact, _ = next(iter(store.exact_chunks(adam.at(30))))
    decision = decide(store, adam.at(30), LIMITS, MANY, 1)
    drawn = store.statistics[:, 0] > 0
    logit = np.log(LIMITS.prune_opacity / (1 - LIMITS.prune_opacity))
    assert decision.pruned == (drawn & (exact[:, LOGIT_OPACITIES] < logit)).sum()
    geometry, _ = decision.growth.make(slice(0, len(decision.growth.parents)))
    parents = decision.growth.parents
    np.testing.assert_allclose(geometry[:, :11], slow_halves(exact[parents])[:, :11], atol=1e-5)
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(store, name), array)


def slow_halves(geometry: np.ndarray) -> np.ndarray:
    """Rows [2n, 12], parents two by two, as the halves that they become."""
    halves, rotations = geometry.astype(np.float64), quats_to_rotations(geometry[:, 3:7])
    for i, row in enumerate(halves):
        axis = int(row[LOG_SCALES].argmax())
        row[MEANS] += (1.35, -1.35)[i % 2] * np.exp(row[LOG_SCALES][axis]) * rotations[i, :, axis]
        row[LOG_SCALES] += [np.log(0.55 if k == axis else 0.893) for k in range(3)]
        opacity = 0.6 / (1 + np.exp(-row[LOGIT_OPACITIES]))
        row[LOGIT_OPACITIES] = np.log(opacity / (1 - opacity))
    return halves


def test_halves_lie_to_either_side_along_the_longest_axis_and_depend_on_their_row_alone() -> None:
    """Not on their place, on who is beside them, or on the pieces in which rows are split."""
    store = random_store(1000)
    halves, second = np.repeat(store.geometry, 2, axis=0), np.arange(2000) % 2 == 1
    halve(halves, second)
    np.testing.assert_allclose(halves[:, :11], slow_halves(np.repeat(store.geometry, 2, axis=0))[:, :11], atol=1e-5)
    order, first = np.random.default_rng(3).permutation(2000), 0
    for count in (1, 2, 3, 1000, 993, 1):
        rows = order[first : first + count]
        some = store.geometry[rows // 2]
        halve(some, second[rows])
        np.testing.assert_array_equal(some, halves[rows])
        first += count


@BOTH
def test_opacity_reset_lowers_opacities_and_clears_their_moments_only(moments: str) -> None:
    store = random_store(100, moments=moments)
    kept = store.m_geometry[:, :10].copy()
    reset_opacity(store, Adam(np.full((6, 4), 1e-2), Betas.for_batch(1)).at(1), 0.01)
    assert store.geometry[:, LOGIT_OPACITIES].max() <= np.log(0.01 / 0.99) + 1e-6
    assert (store.m_geometry[:, LOGIT_OPACITIES] == 0).all() and (store.v_geometry[:, LOGIT_OPACITIES] == 0).all()
    np.testing.assert_array_equal(store.m_geometry[:, :10], kept)


def test_pixels_are_counted_as_long_as_a_rebuild_may_read_them() -> None:
    config = dataclasses.replace(
        load_config({"iterations": 2000}), densify_from=50, densify_every=100, densify_until=1000
    )
    strategy, asked = DefaultStrategy(config, 1.0, [CAMERA] * 10), []
    for now in range(4, 2000, 4):  # batches of four images: now - 4 to now - 1
        asked.append(any(strategy.counts(image) for image in range(now - 4, now)))
        assert asked[-1] or not strategy.due(now - 4, now)
    assert asked[0] and asked.index(False) == 1 + 1040 // 4, "until four epochs of ten views after growth"
    assert not DefaultStrategy(dataclasses.replace(config, grow_evidence=0.0), 1.0, [CAMERA] * 10).counts(1)
