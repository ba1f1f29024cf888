"""Staging is bounded by a parcel, and as large as the byte function says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clm.device.cpu import CpuDevice
from clm.device.interface import Device
from clm.optim.adam import Adam, Betas
from clm.plan.budget import staging_bytes
from clm.plan.residency import make_plan
from clm.store.layout import CHUNK_ROWS
from clm.stream.lanes import Lanes
from clm.stream.staging import Ring
from clm.stream.tiers import Tiers
from tests.device.fake_device import FakeDevice
from tests.stream.test_lanes import every_other, nothing, scene


def four(rows: int) -> int:
    return 4 * rows


@given(st.integers(0, 1000), st.integers(1, 300))
def test_parcels_cover_all_rows_once_and_in_order(count: int, parcel_rows: int) -> None:
    parts = list(Ring(CpuDevice(), parcel_rows).parcels(count))
    assert [k for part in parts for k in range(part.start, part.stop)] == list(range(count))
    assert all(0 < part.stop - part.start <= parcel_rows for part in parts)


def test_buffers_never_exceed_a_parcel_and_are_deeper_where_a_turn_takes_several() -> None:
    ring = Ring(FakeDevice(), 100)
    ring.reserve(40, four)
    assert ring.bytes == 2 * 4 * four(50), "two of them, with a quarter more"
    ring.reserve(90, four)
    assert ring.bytes == 2 * 4 * four(100), "or a whole parcel"
    ring.reserve(100_000, four)
    assert ring.bytes == 3 * 4 * four(100)
    ring.reserve(10, four)
    assert ring.bytes == 3 * 4 * four(100), "what is there is kept"


def test_within_one_memory_one_buffer_is_enough_and_none_where_nothing_moves() -> None:
    ring = Ring(CpuDevice(), 100)
    ring.reserve(0, four)
    assert ring.bytes == 0
    ring.reserve(1000, four)
    assert ring.bytes == 4 * four(100) and ring.take() is ring.take()


def test_buffers_are_taken_in_turn() -> None:
    ring = Ring(FakeDevice(), 10)
    ring.reserve(100, four)
    first, second, third, again = (ring.take() for _ in range(4))
    assert len({id(first), id(second), id(third)}) == 3 and again is first


@pytest.mark.parametrize("device", [CpuDevice(), FakeDevice("eager")])
@pytest.mark.parametrize("resident", [nothing, every_other])
def test_staging_of_a_batch_is_within_what_the_budget_sets_aside(device: Device, resident) -> None:
    store = scene()
    sets = [np.arange(first, first + 3000, dtype=np.int32) for first in (0, 500, 1000)]
    tiers = Tiers(device, store, resident(store), 3200)
    lanes = Lanes(tiers)
    steps = Adam(np.full((6, 3), 1e-3), Betas.for_batch(1))
    lanes.begin(make_plan([0, 1, 2], sets, 3200), steps.at(1), 48)
    try:
        assert 0 < lanes.staging_bytes <= staging_bytes(3000, device.shares_host_memory)
    finally:
        lanes.close()


def test_what_is_set_aside_stops_growing_at_a_parcel() -> None:
    assert staging_bytes(CHUNK_ROWS + 1) == staging_bytes(100_000_000) < 128 * 2**20
    assert staging_bytes(1000) < staging_bytes(10_000) < staging_bytes(CHUNK_ROWS + 1)
