"""The store, its pages, and growth: rows survive whatever happens to pages, with their moments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clm import kernels
from clm.camera import Camera
from clm.kernels.grow import cut_order
from clm.kernels.memory import RowPages
from clm.kernels.move import move_rows
from clm.plan.budget import store_bytes, store_row_bytes
from clm.plan.visibility import block_bounds, visible_rows
from clm.store.gifts import QUITE_EMPTY, part_sizes
from clm.store.growth import Growth
from clm.store.identity import child_keys, identity_floats
from clm.store.layout import IDENTITY, LOG_SCALES, LOGIT_OPACITIES, MEANS
from clm.store.order import block_order
from clm.store.store import Store
from tests.plan.slow_visibility import visible_rows_slow
from tests.store.slow_order import slow_block_order

BOTH = pytest.mark.parametrize("moments", ["f32", "bf16"])


def random_store(rows: int, seed: int = 0, moments: str = "f32", page_rows: int | None = None) -> Store:
    rng = np.random.default_rng(seed)
    geometry = rng.normal(size=(rows, 12)).astype(np.float32)
    geometry[:, LOG_SCALES] = rng.normal(-3, 1, size=(rows, 3))
    geometry[:, LOGIT_OPACITIES] = rng.normal(0, 2, size=rows)
    store = Store(rows, moments=moments, page_rows=page_rows)
    store.append(geometry, rng.normal(size=(rows, 48)).astype(np.float32))
    store.m_geometry[:] = rng.integers(1, 1000, size=(rows, 12))  # any bits: here moments only travel with their rows
    store.v_geometry[:] = rng.integers(1, 1000, size=(rows, 12))
    store.m_colour[:], store.v_colour[:] = np.arange(rows)[:, None] % 999, 7
    store.statistics[:, 0] = rng.integers(0, 5, rows)
    store.statistics[:, 1] = store.statistics[:, 0] * rng.uniform(0, 4e-4, rows)
    store.refresh(None)
    store.see_again()
    return store


def reorder(store: Store, order: np.ndarray) -> None:
    """Row i of a store of full pages becomes what row order[i] was."""
    for name in (*store.names, "entries"):
        array = getattr(store, name)
        array[:] = array[order]


def by_key(store: Store) -> dict[int, bytes]:
    """Every live row, by its identity: the bytes of all its arrays."""
    ids = np.concatenate([*store.live(), np.zeros(0, np.int32)])
    rows = [getattr(store, name)[ids] for name in (*store.names, "entries")]
    return {int(key): b"".join(array[i].tobytes() for array in rows) for i, key in enumerate(store.keys[ids])}


def check_pages(store: Store) -> None:
    """Bounds are those of the live rows, and what is visible is what testing every live row gives."""
    ids = np.concatenate([*store.live(), np.zeros(0, np.int32)])
    assert len(ids) == store.rows == store.fill.sum() and store.fill.max(initial=0) <= store.page_rows
    fresh = block_bounds(store.entries, page_rows=store.page_rows, fill=store.fill)
    used = store.fill > 0
    np.testing.assert_array_equal(store.bounds[used], fresh[used])
    camera = Camera(640, 480, 500.0, 500.0, 320.0, 240.0, np.eye(4))
    seen = visible_rows(store.entries, store.bounds, camera, page_rows=store.page_rows, fill=store.fill)
    np.testing.assert_array_equal(seen, ids[visible_rows_slow(store.entries[ids], camera)])
    np.testing.assert_array_equal(store.geometry[ids, IDENTITY], identity_floats(store.keys[ids]))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([0, 1, 7, 200, 900]),
    st.sampled_from([1, 4, 32, 512]),
    st.sampled_from(["f32", "bf16"]),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=6),
)
def test_any_sequence_of_growths_is_that_of_a_dictionary(
    seed: int, rows: int, page_rows: int, moments: str, growths: list[tuple[float, float]]
) -> None:
    """Rows that stay keep every byte, rows that leave are gone, children have zero moments: pages of any size, compacted, split
    and merged as they like."""
    rng, store = np.random.default_rng(seed), random_store(rows, seed % 97, moments, page_rows)
    for image, (leaving, growing) in enumerate(growths):
        expected = by_key(store)
        ids = np.concatenate([*store.live(), np.zeros(0, np.int32)])
        leave = ids[rng.random(len(ids)) < leaving]
        parents = np.repeat(ids, rng.binomial(2, growing / 2, len(ids))).astype(np.int32)
        twin = np.arange(len(parents)) - np.searchsorted(parents, parents)
        keys = np.where(twin == 0, *(child_keys(store.keys[parents], image, child) for child in (0, 1)))
        geometry, colour = store.geometry[parents].copy(), store.colour[parents] + np.float32(1)
        geometry[:, MEANS] += rng.normal(size=(len(parents), 3)) * 0.1
        for key in store.keys[leave].tolist():
            del expected[key]
        untouched = np.ones(store.pages, bool)
        untouched[leave // page_rows] = untouched[parents // page_rows] = False
        few = store.fill <= QUITE_EMPTY * page_rows
        before = {name: getattr(store, name).copy() for name in store.names}
        changed = store.apply(Growth.of(leave, parents, keys, geometry, colour))
        old = changed[changed < len(few)]
        assert not (untouched[old] & ~few[old]).any(), "others change only to be merged, or to be used again"
        for page in np.setdiff1d(np.arange(len(untouched)), changed)[:5]:
            live = slice(page * page_rows, page * page_rows + store.fill[page])
            for name, array in before.items():
                np.testing.assert_array_equal(getattr(store, name)[live], array[live])
        after = by_key(store)
        assert len(after) == store.rows == len(expected) + len(keys)
        assert all(after[key] == row for key, row in expected.items())
        ids = np.concatenate([*store.live(), np.zeros(0, np.int32)])
        children = ids[np.isin(store.keys[ids], keys)]
        order = np.argsort(store.keys[children])
        np.testing.assert_array_equal(store.colour[children[order]], colour[np.argsort(keys)])
        for name in set(store.names) - {"geometry", "colour", "keys"}:
            assert not getattr(store, name)[children].any()
        check_pages(store)


def test_children_stay_near_their_parents_and_pages_near_full() -> None:
    """A hundred growths of 2%: pages stay four fifths full and not much larger than those of rows that are sorted anew."""
    store, rng = random_store(20_000, page_rows=256), np.random.default_rng(0)
    store.geometry[:, MEANS] = rng.uniform(size=(20_000, 3))
    store.geometry[:, LOG_SCALES] = -6
    store.refresh(None)
    reorder(store, block_order(store.entries))
    store.refresh(None)
    for image in range(100):
        ids = np.concatenate(list(store.live()))
        leave = ids[rng.random(len(ids)) < 0.02]
        parents = ids[rng.random(len(ids)) < 0.025]
        geometry = store.geometry[parents].copy()
        geometry[:, MEANS] += rng.normal(size=(len(parents), 3)) * 0.003
        store.apply(
            Growth.of(leave, parents, child_keys(store.keys[parents], image, 0), geometry, store.colour[parents])
        )
    ids = np.concatenate(list(store.live()))
    entries = store.entries[ids]
    fresh = block_bounds(entries[block_order(entries)], page_rows=256)
    used = store.bounds[store.fill > 0]
    assert store.rows / (256 * len(used)) > 0.8

    def side(bounds: np.ndarray) -> float:
        return float(np.median(np.prod(bounds[:, 4:7] - bounds[:, :3], axis=1) ** (1 / 3)))

    assert side(used) < 1.1 * side(fresh)


def test_rows_that_are_much_larger_than_others_stay_together_when_a_page_is_cut() -> None:
    entries = np.random.default_rng(0).uniform(size=(3000, 4)).astype(np.float32)
    entries[::300, 3] = 50
    sizes = part_sizes(3000, 2)
    parts = np.split(cut_order(entries, 2), np.cumsum(sizes)[:-1])
    assert sizes == [1500, 1500] and all((np.diff(part) > 0).all() for part in parts)
    assert sorted(np.concatenate(parts)) == list(range(3000)) and max(map(len, parts)) <= 2048
    assert sorted((entries[part, 3] > 40).sum() for part in parts) == [0, 10]


def test_pages_that_become_free_are_used_again() -> None:
    store = random_store(2048, page_rows=64)
    ids = np.concatenate(list(store.live()))
    none = np.zeros(0, np.int32)
    empty = np.zeros((0, 12), np.float32), np.zeros((0, 48), np.float32)
    store.apply(Growth.of(ids[:1024], none, np.zeros(0, np.uint64), *empty))
    assert store.rows == 1024 and (store.fill[:16] == 0).all()
    parents = np.repeat(ids[1024:], 2)
    keys = np.concatenate([child_keys(store.keys[ids[1024:]], 1, child)[:, None] for child in (0, 1)], axis=1).reshape(
        -1
    )
    store.apply(Growth.of(none, parents, keys, store.geometry[parents], store.colour[parents]))
    assert store.rows == 3072 and (store.fill[:16] > 0).all() and store.pages <= 64
    check_pages(store)


def test_ids_of_more_places_than_31_bits_are_refused_with_a_way_out() -> None:
    from clm.errors import ResourceError

    store = Store(0, page_rows=2**20)
    with pytest.raises(ResourceError, match="2,147,483,647"):
        store._set_fill(np.array([2047]), np.array([1], np.int32))
    assert store.pages == 0


def test_rows_move_in_the_order_of_their_list_and_only_to_places_that_exist() -> None:
    array = np.arange(12, dtype=np.float32).reshape(6, 2)
    move_rows([array], np.array([1, 2, 5], np.int32), np.array([0, 1, 2], np.int32), np.array([0, 2, 3]))
    np.testing.assert_array_equal(array[:, 0], [2, 4, 10, 6, 8, 10])
    with pytest.raises(IndexError, match="not exist"):
        move_rows([array], np.array([6], np.int32), np.array([0], np.int32), np.array([0, 1]))
    with pytest.raises(ValueError, match="runs"):
        move_rows([array], np.array([1], np.int32), np.array([0], np.int32), np.array([0, 2]))


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


def test_a_flat_scene_is_cut_along_its_surface_and_not_into_layers() -> None:
    entries = (
        np.random.default_rng(0).uniform((0, 0, 0, 1e-3), (100, 100, 0.4, 1e-3), (64 * 2048, 4)).astype(np.float32)
    )
    pages = entries[block_order(entries), :2].reshape(64, 2048, 2)
    area = np.prod(pages.max(axis=1) - pages.min(axis=1), axis=1)
    assert np.median(area) < 3 * 100 * 100 / 64  # of layers it would be 8 times a page of one


@pytest.mark.parametrize("held", [False, True])
def test_row_pages_grow_with_their_rows_also_while_an_array_of_them_is_held(held: bool) -> None:
    pages = RowPages(1000, 48)
    pages.array[:] = rows = np.arange(48_000).reshape(1000, 48)
    kept = pages.array if held else None
    for size in (1500, 40_000):
        pages.grow(size)
        np.testing.assert_array_equal(pages.array[:1000], rows)
        assert pages.array.shape == (size, 48) and not pages.array[1000:].any() and pages.array.ctypes.data % 64 == 0
    pages.release(1000, len(pages.array))
    np.testing.assert_array_equal(pages.array[:1000], rows)
    assert kept is None or (kept == rows).all()
