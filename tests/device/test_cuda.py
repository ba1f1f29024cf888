"""The CUDA device without CUDA: its operations on CPU tensors, between streams that do everything at once.

Order is the lanes' affair and proven with the fake device; here the torch operations are, against the CPU's kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from clm.device.cuda import CudaDevice, CudaResidents  # noqa: E402
from clm.store.store import Store  # noqa: E402
from scripts.doubles.cuda import Cuda  # noqa: E402
from tests.stream.test_lanes import (  # noqa: E402
    Tape,
    assert_same,
    every_other,
    everything,
    interruptions,
    largest_view,
    model,
    nothing,
    run_batches,
    scene,
    tight,
)


def device() -> CudaDevice:
    return CudaDevice(Cuda(), "cpu")


@pytest.fixture(scope="module")
def everything_resident() -> dict[str, np.ndarray]:
    return model(run_batches(4000, everything)[0])


@pytest.fixture(scope="module")
def rounded_resident() -> dict[str, np.ndarray]:
    return model(run_batches(4000, everything, bf16_colours=True)[0])


@pytest.mark.parametrize("room", [1.25, 10.0])
def test_rows_and_gradients_travel_bit_for_bit(everything_resident, room: float) -> None:
    store, _, _ = run_batches(min(int(room * largest_view()), 4000), nothing, device())
    assert_same(store, everything_resident)


def test_an_interrupted_batch_travels_bit_for_bit(everything_resident) -> None:
    store, _, _ = run_batches(2 * largest_view(), nothing, device(), interrupted=interruptions())
    assert_same(store, everything_resident)


@pytest.mark.parametrize("room", [1.25, 10.0])
def test_packed_colours_travel_bit_for_bit(rounded_resident, room: float) -> None:
    store, _, _ = run_batches(min(int(room * largest_view()), 4000), nothing, device(), bf16_colours=True)
    assert_same(store, rounded_resident)


@pytest.fixture(scope="module", params=[False, True], ids=["f32", "bf16"])
def on_the_host(request: pytest.FixtureRequest) -> tuple[dict[str, np.ndarray], Tape, bool]:
    """The model of a run on the host, its gradients, and whether colours were rounded to bf16 for every view."""
    tape = Tape()
    return model(run_batches(4000, everything, bf16_colours=request.param, tape=tape)[0]), tape, request.param


@pytest.mark.parametrize("resident", [every_other, everything])
def test_resident_rows_are_updated_by_the_same_gradients_as_on_the_host_up_to_rounding(on_the_host, resident) -> None:
    expected, tape, bf16_colours = on_the_host
    store, _, traffic = run_batches(tight(), resident, device(), bf16_colours=bf16_colours, tape=tape.rewound())
    got = model(store)
    np.testing.assert_array_equal(got["stamp"], expected["stamp"])
    moved = np.abs(expected["geometry"] - scene().geometry)
    for name in ("geometry", "colour", "m_geometry", "v_geometry", "m_colour", "v_colour", "statistics", "entries"):
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=2e-6, err_msg=name)
    assert moved.max() > 1e-2, "training moves rows far beyond the tolerance"
    assert (traffic.loaded == 0) == (resident is everything)


def test_resident_colours_are_exact_for_evaluation_and_rounded_for_the_batch_of_the_same_step() -> None:
    store, adam, _ = run_batches(4000, nothing, batches=2)
    there = device()
    residents, arena, ids = (
        there.residents(store, np.arange(100, dtype=np.int32), 40),
        there.arena(100),
        torch.arange(100),
    )
    colours = []
    for bf16_colours in (False, True, False):
        residents.fetch(adam.at(3, 1, bf16_colours), ids, ids, arena, 27)
        colours.append(arena.colour[:, :27].clone())
    assert torch.equal(colours[1], colours[0].bfloat16().float())
    assert torch.equal(colours[2], colours[0]) and not torch.equal(colours[1], colours[0])


@pytest.mark.parametrize("moments", ["f32", "bf16"])
def test_a_write_back_copies_the_rows_of_pages_that_changed_and_no_others(moments: str) -> None:
    geometry = np.random.default_rng(0).normal(size=(40, 12)).astype(np.float32)
    store = Store(40, moments=moments, page_rows=8)
    store.append(geometry, np.ones((40, 48), np.float32))
    pages = np.array([0, 2, 3])
    residents = device().residents(store, store.rows_of(pages), 24)
    for name in ("geometry", "m_colour", "stamp"):
        getattr(residents, name).fill_(7)
    residents.write_back(np.array([2]))
    there = np.arange(16, 24)
    for name in ("geometry", "m_colour", "stamp"):
        values = getattr(store, name)
        seven = 7.0 if values.dtype != np.uint16 else 0x40E0  # 7 in bf16
        assert (values[there] == seven).all() and not (np.delete(values, there, axis=0) == seven).any()
    assert not store.v_colour.any()


class NoMemoryLeft(TorchDispatchMode):
    """Whatever allocates fails as on a device whose memory is full."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        there = {
            each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor) and made.untyped_storage()._cdata not in there:
                raise torch.OutOfMemoryError(f"CUDA out of memory, in {func}.")
        return result


@pytest.mark.parametrize("resident", [every_other, everything])
def test_adam_of_resident_rows_goes_on_where_the_device_has_no_memory_left(
    monkeypatch: pytest.MonkeyPatch, resident
) -> None:
    """It could not be repeated: some rows would have moved already."""
    undisturbed, _, _ = run_batches(tight(), resident, device())
    for operation in ("adam", "fetch"):
        real, at_work = getattr(CudaResidents, operation), []

        def without_memory(self: CudaResidents, *arguments: Any, real: Any = real, at_work: Any = at_work) -> None:
            self._at(arguments[0])  # the tables of the run are there since the first fetch
            with NoMemoryLeft():
                real(self, *arguments)
            at_work.append(self)

        monkeypatch.setattr(CudaResidents, operation, without_memory)
        store, _, _ = run_batches(tight(), resident, device())
        assert_same(store, model(undisturbed))
        assert len(at_work) > 10


def test_staging_is_registered_exactly_and_unregistered_when_it_goes() -> None:
    there = device()
    staging = there.staging(1000)
    assert there.cuda.runtime.registered == {staging.host.ctypes.data: 4000}
    del staging
    assert not there.cuda.runtime.registered


def test_staging_shares_no_page_because_a_page_cannot_be_locked_twice() -> None:
    there = device()
    addresses = {there.staging(10).host.ctypes.data % 4096 for _ in range(5)}
    assert addresses == {0}


def test_there_is_one_stream_per_name_because_the_allocator_keeps_memory_per_stream() -> None:
    there = device()
    assert there.stream("load") is there.stream("load")
    assert there.stream("load") is not there.stream("compute")


def test_an_image_arrives_contiguous_whatever_its_strides() -> None:
    image = torch.arange(24.0).reshape(2, 4, 3).permute(2, 0, 1)
    got = device().numpy(image)
    assert got.flags.c_contiguous and np.array_equal(got, image.numpy())


def refusing_device(monkeypatch: pytest.MonkeyPatch, also_pinned: bool) -> tuple[CudaDevice, list[str]]:
    """A device that may not register memory, and what it says; pinned memory is memory here."""
    said: list[str] = []
    there = CudaDevice(Cuda(), "cpu", said.append)
    there.cuda.runtime.code = 801  # cudaErrorNotSupported, as under WSL2
    real = torch.empty

    def empty(*shape: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        if pin_memory and also_pinned:
            raise RuntimeError("CUDA error: operation not permitted")
        return real(*shape, **options)

    monkeypatch.setattr(torch, "empty", empty)
    return there, said


@pytest.mark.parametrize("also_pinned", [False, True])
def test_memory_that_may_not_be_page_locked_ends_no_run_and_is_said_once_where_copies_wait(
    everything_resident, monkeypatch: pytest.MonkeyPatch, also_pinned: bool
) -> None:
    there, said = refusing_device(monkeypatch, also_pinned)
    store, _, _ = run_batches(2 * largest_view(), nothing, there)
    assert_same(store, everything_resident)
    assert len(said) == (1 if also_pinned else 0) and all("ulimit -l" in text for text in said)
    assert there.cuda.runtime.asked == 1, "what was refused once is not tried for every buffer"


def test_no_refused_call_is_left_for_the_next_kernel_to_report(monkeypatch: pytest.MonkeyPatch) -> None:
    there, _ = refusing_device(monkeypatch, False)
    launched = []
    monkeypatch.setattr(torch, "ones", lambda *shape, device: launched.append(device))
    there.staging(1000)
    assert launched == [there.where]
