"""Colours rounded to bf16 on the way to the rasteriser: to nearest, the same bits in every place, and packed without loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clm import kernels
from clm.kernels import rows as row_kernels
from clm.kernels.rows import AdamStep
from clm.optim.adam import Adam, Betas
from clm.store.store import Store
from clm.stream.parking import GradientBuffer
from tests.optim.slow_adam import bf16_values, nearest_bf16
from tests.optim.test_adam import random_store, schedule

STEPS = 30
COLUMNS = pytest.mark.parametrize("columns", [3, 12, 27, 48])
# float32 bits and those of the nearest bf16
CASES = {
    "exact": (0x3F800000, 0x3F80),
    "just below the middle": (0x3F807FFF, 0x3F80),
    "tie to the even one below": (0x3F808000, 0x3F80),
    "just above the middle": (0x3F808001, 0x3F81),
    "tie to the even one above": (0x3F818000, 0x3F82),
    "negative tie": (0xBF818000, 0xBF82),
    "carry into the exponent": (0x3FFFFFFF, 0x4000),
    "zero": (0x00000000, 0x0000),
    "negative zero": (0x80000000, 0x8000),
    "smallest denormal": (0x00000001, 0x0000),
    "half of the smallest bf16 denormal": (0x00008000, 0x0000),
    "more than half of it": (0x00008001, 0x0001),
    "largest denormal": (0x007FFFFF, 0x0080),
    "negative denormal": (0x80345678, 0x8034),
    "largest bf16": (0x7F7F0000, 0x7F7F),
    "largest that stays finite": (0x7F7F7FFF, 0x7F7F),
    "smallest that becomes infinite": (0x7F7F8000, 0x7F80),
    "largest float": (0xFF7FFFFF, 0xFF80),
    "infinity": (0x7F800000, 0x7F80),
    "negative infinity": (0xFF800000, 0xFF80),
}
NANS = (0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF80FFFF)


def floats(bits: Any) -> np.ndarray:
    return np.array(bits, np.uint32).view(np.float32)


def trained_store(moments: str = "f32") -> tuple[Store, Adam]:
    """300 rows with different stamps, so that some are behind, some are not, and some never had a gradient."""
    rng, adam, store = (
        np.random.default_rng(5),
        Adam(schedule(STEPS), Betas.for_batch(2)),
        random_store(300, 4, moments),
    )
    for step in range(1, 12):
        rows = np.flatnonzero(rng.random(250) < 0.3).astype(np.int32)
        buffer = GradientBuffer(len(rows))
        buffer.grad_geometry[:], buffer.grad_colour[:] = 1, rng.normal(size=(len(rows), 48))
        entries = np.empty((len(rows), 4), np.float32)
        row_kernels.adam(store, adam.at(step), rows, buffer, None, 48, None, entries)
    return store, adam


def fetched(
    store: Store, step: AdamStep | None, columns: int, dtype: type = np.float32, stride: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    ids = np.arange(store.rows, dtype=np.int32)
    geometry, colour = np.zeros((store.rows, 12), np.float32), np.full((store.rows, stride or columns), 7, dtype)
    row_kernels.fetch(store, step, ids, geometry, colour, columns)
    return geometry, colour


def with_colours(bits: np.ndarray) -> Store:
    """One row per value, which fills all its 48 columns: whole vectors and the columns that are left over."""
    colour = np.repeat(floats(bits)[:, None], 48, axis=1)
    return Store.from_rows(np.zeros((len(bits), 12), np.float32), colour)


@COLUMNS
@pytest.mark.parametrize("moments", ["f32", "bf16"])
def test_colours_are_caught_up_and_then_rounded_as_the_slow_twin_rounds_them(columns: int, moments: str) -> None:
    store, adam = trained_store(moments)
    assert len(np.unique(store.stamp)) > 8 and (store.stamp == 0).any()
    before = {name: getattr(store, name).copy() for name in store.names}
    geometry, colour = fetched(store, adam.at(15), columns)
    rounded_geometry, in_place = fetched(store, adam.at(15, bf16_colours=True), columns, stride=48)
    packed_geometry, packed = fetched(store, adam.at(15, bf16_colours=True), columns, np.uint16)
    np.testing.assert_array_equal(packed, nearest_bf16(colour))
    np.testing.assert_array_equal(in_place[:, :columns], bf16_values(packed))
    assert (in_place[:, columns:] == 7).all(), "columns that are not active are not touched"
    assert (in_place[:, :columns] != colour).mean() > 0.9
    np.testing.assert_array_equal(rounded_geometry, geometry)
    np.testing.assert_array_equal(packed_geometry, geometry)
    for name, values in before.items():
        np.testing.assert_array_equal(getattr(store, name), values, err_msg=name)


@COLUMNS
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_ties_go_to_even_and_denormals_infinities_and_nan_stay_what_they_are(columns: int, dtype: type) -> None:
    exact, expected = np.array(list(CASES.values()), np.uint32).T
    step = Adam(schedule(STEPS), Betas.for_batch(1)).at(3, bf16_colours=True)

    def bits_of(store: Store) -> np.ndarray:
        colour = fetched(store, step, columns, dtype)[1]
        if dtype is np.float32:
            assert not (colour.view(np.uint32) & 0xFFFF).any(), "nothing is left below a bf16"
        return colour if dtype is np.uint16 else (colour.view(np.uint32) >> 16).astype(np.uint16)

    got = bits_of(with_colours(exact))
    for name, row, want in zip(CASES, got, expected, strict=True):
        assert (row == want).all(), f"{name}: {row[0]:#06x}, not {want:#06x}"
    assert np.isnan(bf16_values(bits_of(with_colours(np.array(NANS, np.uint32))))).all()


def test_the_slow_twin_rounds_as_the_standard_says() -> None:
    for name, (exact, expected) in CASES.items():
        assert nearest_bf16(floats([exact]))[0] == expected, name
    assert np.isnan(bf16_values(nearest_bf16(floats(NANS)))).all()


def test_any_bits_are_rounded_as_by_the_slow_twin() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, (4000, 48), dtype=np.uint32)
    exact = bits.view(np.float32)
    store = Store.from_rows(np.zeros((len(bits), 12), np.float32), exact)
    packed = fetched(store, Adam(schedule(9), Betas.for_batch(1)).at(2, bf16_colours=True), 48, np.uint16)[1]
    twin, number = nearest_bf16(exact), ~np.isnan(exact)
    np.testing.assert_array_equal(packed[number], twin[number])
    assert np.isnan(bf16_values(packed[~number])).all() and number.mean() < 1


@COLUMNS
def test_placing_expands_every_bf16_exactly(columns: int) -> None:
    packed = np.resize(np.arange(1 << 16).astype(np.uint16), ((1 << 16) // columns + 1, columns))
    count = len(packed)
    slots = np.random.default_rng(0).permutation(count + 5)[:count].astype(np.int32)
    staged, arena = np.ones((count, 12), np.float32), GradientBuffer(count + 5)
    geometry, colour = np.zeros((count + 5, 12), np.float32), np.full((count + 5, 48), 7, np.float32)
    row_kernels.place((staged, packed), slots, geometry, colour, arena, columns)
    np.testing.assert_array_equal(colour[slots, :columns].view(np.uint32), packed.astype(np.uint32) << 16)
    assert (colour[:, columns:] == 7).all() and (geometry[slots] == 1).all()


def test_colours_that_a_step_does_not_round_are_never_packed() -> None:
    store, adam = trained_store()
    for step in (adam.at(15), None):
        with pytest.raises(TypeError, match="does not round"):
            fetched(store, step, 48, np.uint16)


@pytest.mark.parametrize("name", kernels.variants()[1:])
@pytest.mark.parametrize("columns", [12, 27])
def test_every_build_rounds_to_the_same_bits(name: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = np.array([case[0] for case in CASES.values()], np.uint32)
    step, store = Adam(schedule(STEPS), Betas.for_batch(2)).at(15, bf16_colours=True), with_colours(exact)
    best = [fetched(store, step, columns, dtype)[1].tobytes() for dtype in (np.uint16, np.float32)]
    monkeypatch.setenv("CLM_KERNELS", name)
    library = kernels.load.__wrapped__()
    monkeypatch.setattr(row_kernels, "load", lambda: library)
    assert [fetched(store, step, columns, dtype)[1].tobytes() for dtype in (np.uint16, np.float32)] == best


def test_resident_rows_in_torch_are_rounded_to_the_same_bits() -> None:
    torch = pytest.importorskip("torch")
    device = pytest.importorskip("clm.device.cuda_adam")
    tables_of = pytest.importorskip("clm.device.cuda_tables").DeviceAdam
    names = ("geometry", "colour", "m_geometry", "v_geometry", "m_colour", "v_colour", "stamp")

    def both(store: Store, adam: Adam, step: int) -> list[np.ndarray]:
        tensors = SimpleNamespace(**{name: torch.tensor(getattr(store, name)) for name in names})
        ids, results = torch.arange(store.rows), []
        for rounded in (False, True):
            out = torch.zeros(store.rows, 12), torch.full((store.rows, 48), 7.0)
            device.fetch_rows(tensors, tables_of(adam, "cpu").at(step, 2, rounded), ids, *out, 27)
            results += [values.numpy() for values in out]
        assert torch.equal(tensors.colour.view(torch.int32), torch.tensor(store.colour).view(torch.int32))
        return results

    store, adam = trained_store()
    geometry, exact, rounded_geometry, rounded = both(store, adam, 15)
    np.testing.assert_array_equal(rounded[:, :27], bf16_values(nearest_bf16(exact[:, :27])))
    np.testing.assert_array_equal(rounded_geometry, geometry)
    assert (rounded[:, 27:] == 7).all() and (rounded[:, :27] != exact[:, :27]).mean() > 0.9
    bits, expected = np.array(list(CASES.values()), np.uint32).T
    rounded = both(with_colours(bits), adam, 15)[3]
    np.testing.assert_array_equal(rounded[:, 0].view(np.uint32), expected << 16)
    assert np.isnan(both(with_colours(np.array(NANS, np.uint32)), adam, 15)[3][:, :27]).all()
