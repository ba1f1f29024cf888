"""The store, its blocks, and densification: rows survive every rebuild, in order, with their moments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clm import kernels
from clm.kernels.memory import RowPages
from clm.kernels.permute import permute_rows
from clm.plan.budget import store_bytes, store_row_bytes
from clm.store.layout import LOG_SCALES, LOGIT_OPACITIES, MEANS
from clm.store.order import block_order
from clm.store.store import Store
from clm.strategy.default import (
    SPLIT_SHRINK,
    Thresholds,
    choose_growth,
    densify,
    quats_to_rotations,
    reset_opacity,
    resort,
    split_rows,
)
from tests.store.slow_order import slow_block_order

LIMITS = Thresholds(screen_gradient=2e-4, split_scale=0.05, prune_opacity=0.005, prune_scale=None)


BOTH = pytest.mark.parametrize("moments", ["f32", "bf16"])


def random_store(rows: int, seed: int = 0, moments: str = "f32") -> Store:
    rng = np.random.default_rng(seed)
    geometry = rng.normal(size=(rows, 12)).astype(np.float32)
    geometry[:, LOG_SCALES] = rng.normal(-3, 1, size=(rows, 3))
    geometry[:, LOGIT_OPACITIES] = rng.normal(0, 2, size=rows)
    geometry[:, 11] = 0
    store = Store.from_rows(geometry, rng.normal(size=(rows, 48)).astype(np.float32), moments=moments)
    store.m_geometry[:] = rng.integers(1, 1000, size=(rows, 12))  # any bits: here moments only travel with their rows
    store.v_geometry[:] = rng.integers(1, 1000, size=(rows, 12))
    store.statistics[:, 0] = rng.integers(0, 5, rows)
    store.statistics[:, 1] = store.statistics[:, 0] * rng.uniform(0, 4e-4, rows)
    store.refresh(None)
    return store


def always(_store: Store, _drop: np.ndarray) -> bool:
    return True


@BOTH
def test_bytes_per_row_are_those_that_the_budget_counts(moments: str) -> None:
    store = random_store(3000, moments=moments)
    assert store.bytes == store_bytes(3000, store_row_bytes(moments))


@BOTH
def test_rows_keep_their_moments_while_the_store_grows_and_new_ones_start_at_zero(moments: str) -> None:
    store = random_store(1000, moments=moments)
    names = ("m_geometry", "v_geometry", "m_colour", "v_colour")
    before = {name: getattr(store, name).copy() for name in names}
    store.append(store.geometry[:700], store.colour[:700])
    assert store.capacity > 1000
    for name in names:
        array = getattr(store, name)
        assert array.dtype == before[name].dtype and array.ctypes.data % 64 == 0
        np.testing.assert_array_equal(array[:1000], before[name])
        assert not array[1000:].any()


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 500), st.integers(0, 100))
def test_block_order_is_a_permutation_and_stable(rows: int, seed: int) -> None:
    entries = np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32)
    entries[:, 3] = np.abs(entries[:, 3])
    order = block_order(entries)
    assert sorted(order) == list(range(rows))
    again = block_order(entries[order])
    np.testing.assert_array_equal(again, np.arange(rows))


def test_large_rows_get_their_own_blocks_at_the_end() -> None:
    entries = np.random.default_rng(0).uniform(size=(10_000, 4)).astype(np.float32)
    entries[::100, 3] = 1e4
    order = block_order(entries)
    assert (entries[order[-100:], 3] == 1e4).all()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 2, 100, 5000, 70_000]), st.integers(0, 100), st.sampled_from([0, 1, 3]))
def test_block_order_is_that_of_the_slow_twin(rows: int, seed: int, digits: int) -> None:
    """Rounded centres: equal keys, which keep their order. Spread radii: every class."""
    rng = np.random.default_rng(seed)
    entries = np.column_stack([rng.normal(size=(rows, 3)), np.exp(rng.normal(0, 3, rows))]).astype(np.float32)
    if digits:
        entries = entries.round(digits)
    before = kernels.get_threads()
    try:
        for threads in (1, 3):
            kernels.set_threads(threads)
            np.testing.assert_array_equal(block_order(entries), slow_block_order(entries))
    finally:
        kernels.set_threads(before)


def test_rows_that_are_not_finite_are_ordered_too() -> None:
    entries = np.random.default_rng(0).uniform(size=(3000, 4)).astype(np.float32)
    entries[::7, 1], entries[::11, 3] = np.nan, np.inf
    assert sorted(block_order(entries)) == list(range(3000))


def test_store_order_keeps_neighbours_together() -> None:
    entries = np.random.default_rng(0).uniform(size=(50_000, 4)).astype(np.float32)
    entries[:, 3] = 0.01
    blocks = entries[block_order(entries), :3][: 2048 * 24].reshape(24, 2048, 3)
    volume = np.prod(blocks.max(axis=1) - blocks.min(axis=1), axis=1)
    assert np.median(volume) < 3 * 2048 / 50_000


@BOTH
def test_resorting_moves_moments_and_stamps_with_their_rows(moments: str) -> None:
    store = random_store(5000, moments=moments)
    tag = np.arange(5000)
    store.m_colour[:, 5], store.v_colour[:, 40], store.stamp[:] = tag, tag + 7, tag
    before = store.geometry.copy()
    resort(store)
    assert (store.stamp != tag).any() and sorted(store.stamp) == tag.tolist()
    np.testing.assert_array_equal(store.m_colour[:, 5], store.stamp)
    np.testing.assert_array_equal(store.v_colour[:, 40], store.stamp + 7)
    np.testing.assert_array_equal(store.geometry, before[store.stamp])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 300), st.integers(0, 100))
def test_rows_permuted_in_place_are_those_of_a_copy(rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    widths = (np.float32, 48), (np.float32, 12), (np.uint16, 48), (np.uint16, 12), (np.float32, 2), (np.uint8, 7)
    arrays = [rng.integers(0, 250, (rows, width)).astype(dtype) for dtype, width in widths]
    arrays.append(rng.integers(0, 9**9, rows).astype(np.int32))
    order = rng.permutation(rows)
    if rows > 2:
        order[: rows // 2] = np.arange(rows)[
            np.isin(np.arange(rows), order[: rows // 2])
        ]  # stretches, and rows that stay
    expected = [array[order] for array in arrays]
    permute_rows(arrays, order)
    for array, wanted in zip(arrays, expected, strict=True):
        np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize("order", [[0, 0, 1], [1, 2, 1], [0, 1, 3], [0, 1, -1], [2, 1, 1]])
def test_an_order_that_loses_a_row_is_refused_and_nothing_moves(order: list[int]) -> None:
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    with pytest.raises(ValueError, match="twice"):
        permute_rows([array], np.array(order))
    np.testing.assert_array_equal(array, np.arange(6).reshape(3, 2))


@pytest.mark.parametrize("order", [[1, 0], [0, 3000], [-1, 5], [4, 4]])
def test_rows_to_keep_must_ascend_within_the_store(order: list[int]) -> None:
    with pytest.raises(ValueError, match="ascend"):
        random_store(3000).take(np.array(order))


@BOTH
@pytest.mark.parametrize("share", [0.0, 0.02, 0.9, 0.9999])
def test_rows_that_are_kept_stay_what_they_are(moments: str, share: float) -> None:
    store = random_store(20_000, moments=moments)
    keep = np.flatnonzero(np.random.default_rng(1).random(20_000) < share)
    expected = {name: getattr(store, name)[keep] for name in (*store.names, "entries")}
    store.take(keep)
    for name, array in expected.items():
        np.testing.assert_array_equal(getattr(store, name), array)
    store.append(np.ones((900, 12), np.float32), np.ones((900, 48), np.float32))
    assert not any(getattr(store, name)[-900:].any() for name in ("v_colour", "m_geometry", "stamp", "statistics"))


@pytest.mark.parametrize("held", [False, True])
def test_row_pages_grow_with_their_rows_also_while_an_array_of_them_is_held(held: bool) -> None:
    pages = RowPages(1000, 48)
    pages.array[:] = rows = np.arange(48_000).reshape(1000, 48)
    kept = pages.array if held else None
    for size in (1500, 40_000):
        pages.grow(size)
        np.testing.assert_array_equal(pages.array[:1000], rows)
        assert pages.array.shape == (size, 48) and not pages.array[1000:].any() and pages.array.ctypes.data % 64 == 0
    pages.release(1000)
    np.testing.assert_array_equal(pages.array[:1000], rows)
    assert kept is None or (kept == rows).all()


def test_growth_takes_the_strongest_gradients_when_the_budget_is_short() -> None:
    store = random_store(2000)
    gradient = store.statistics[:, 1] / np.maximum(store.statistics[:, 0], 1)
    clones, splits, refused = choose_growth(store, LIMITS, 50)
    chosen = np.concatenate([clones, splits])
    assert len(chosen) == 50 and refused == (gradient > LIMITS.screen_gradient).sum() - 50
    rest = np.setdiff1d(np.arange(2000), chosen)
    assert gradient[chosen].min() >= gradient[rest].max()
    assert store.geometry[clones, LOG_SCALES].max() <= np.log(LIMITS.split_scale)
    assert store.geometry[splits, LOG_SCALES].max(axis=1).min() > np.log(LIMITS.split_scale)


@BOTH
def test_densify_counts_add_up_and_new_rows_have_zero_moments(moments: str) -> None:
    store = random_store(3000, moments=moments)
    result = densify(store, LIMITS, 10**9, 0, 1, always)
    assert result.cloned > 0 and result.split > 0 and result.pruned > 0
    assert store.rows == result.rows
    limit = np.log(LIMITS.prune_opacity / (1 - LIMITS.prune_opacity))
    assert (store.geometry[:, LOGIT_OPACITIES] >= limit).all()
    tail = store.m_geometry[-(result.cloned // 2) :]
    assert (tail == 0).all() and (store.statistics == 0).all()


@pytest.mark.parametrize("cap", [3000, 3010, 3400])
def test_densify_never_exceeds_the_row_limit(cap: int) -> None:
    store = random_store(3000)
    store.geometry[:, LOGIT_OPACITIES] = 0  # nothing is pruned
    result = densify(store, LIMITS, cap, 0, 1, always)
    assert store.rows == cap and result.refused > 0


def test_densify_grows_less_when_the_arena_refuses_and_never_loses_rows() -> None:
    store = random_store(3000)
    store.geometry[:, LOGIT_OPACITIES] = 0
    asked = []

    def admits(grown: Store, drop: np.ndarray) -> bool:
        asked.append(grown.rows - int(drop.sum()))
        return asked[-1] <= 3100

    densify(store, LIMITS, 10**9, 0, 1, admits)
    assert len(asked) > 1 and 3000 <= store.rows <= 3100


def test_children_of_a_split_lie_in_their_parent_and_are_smaller() -> None:
    store = random_store(4000)
    children, colours, _keys = split_rows(store.geometry, store.colour, store.keys, 0, 100)
    parents = np.repeat(store.geometry, 2, axis=0)
    np.testing.assert_allclose(
        children[:, LOG_SCALES], parents[:, LOG_SCALES] - np.log(SPLIT_SHRINK), rtol=1e-5, atol=1e-6
    )
    rotations = quats_to_rotations(parents[:, 3:7])
    local = np.einsum("nji,nj->ni", rotations, children[:, MEANS] - parents[:, MEANS]) / np.exp(parents[:, LOG_SCALES])
    assert abs(local.mean()) < 0.02 and abs(local.std() - 1) < 0.02
    np.testing.assert_array_equal(colours[::2], store.colour)


def test_children_depend_on_the_identity_of_their_parent_alone() -> None:
    """Not on its place, on who is beside it, or on the pieces in which rows are split."""
    store = random_store(1000)
    whole = split_rows(store.geometry, store.colour, store.keys, 3, 200)
    order, first = np.random.default_rng(3).permutation(1000), 0
    for count in (1, 2, 3, 500, 493, 1):
        rows = order[first : first + count]
        some = split_rows(store.geometry[rows], store.colour[rows], store.keys[rows], 3, 200)
        theirs = (2 * rows[:, None] + np.arange(2)).reshape(-1)
        for array, wanted in zip(some, whole, strict=True):
            np.testing.assert_array_equal(array, wanted[theirs])
        first += count
    for seed, image in ((4, 200), (3, 300)):
        other = split_rows(store.geometry, store.colour, store.keys, seed, image)
        assert (other[0][:, MEANS] != whole[0][:, MEANS]).any(axis=1).all()


@BOTH
def test_opacity_reset_lowers_opacities_and_clears_their_moments_only(moments: str) -> None:
    store = random_store(100, moments=moments)
    kept = store.m_geometry[:, :10].copy()
    reset_opacity(store, 0.01)
    assert store.geometry[:, LOGIT_OPACITIES].max() <= np.log(0.01 / 0.99) + 1e-6
    assert (store.m_geometry[:, LOGIT_OPACITIES] == 0).all() and (store.v_geometry[:, LOGIT_OPACITIES] == 0).all()
    np.testing.assert_array_equal(store.m_geometry[:, :10], kept)
