"""The torch code of the CUDA device on fake tensors at cuda:0: no operation mixes devices, and none asks for a value.

Whole batches through the lanes; the values are nobody's concern here (`test_cuda.py` compares them on CPU tensors). The
mutations show that each kind of mistake is found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from clm.device import cuda  # noqa: E402
from clm.device import cuda_adam as device_adam  # noqa: E402
from clm.image import torch_exposure  # noqa: E402
from clm.image import torch_losses as torch_loss  # noqa: E402
from clm.optim.adam import Adam, Betas  # noqa: E402
from clm.plan.residency import make_plan, rest_of  # noqa: E402
from clm.plan.visibility import visible_sets  # noqa: E402
from clm.stream.lanes import Lanes  # noqa: E402
from clm.stream.tiers import Tiers  # noqa: E402
from tests.device.fake_cuda import FakeTensorDevice, fake_cuda  # noqa: E402
from tests.stream.test_lanes import (  # noqa: E402
    CAMERAS,
    PAGE_ROWS,
    VIEWS,
    Which,
    every_other,
    everything,
    nothing,
    scene,
    tight,
)

COLUMNS = 27
PARCEL = 600  # rows: some turns take several parcels
MISTAKES = r"[Ee]xpected all tensors to be on the same device|expected to be in the same device|_local_scalar_dense"


@pytest.fixture(autouse=True)
def no_window_is_kept() -> Any:
    """The loss keeps its window: a fake one must not be found by later tests, nor a real one here."""
    torch_loss._taps.cache_clear()
    yield
    torch_loss._taps.cache_clear()


def one_view(tiers: Tiers, slots: Any) -> Any:
    """Where a rasteriser would be: an image of the view's rows, the loss, and gradients at the slots."""
    arena, height, width = tiers.arena, 48, 40
    rows = arena.geometry.index_select(0, slots)
    image = (rows[:, :3].sum(0)[:, None, None] + torch.zeros((height, width), device=arena.geometry.device)).exp()
    photo = torch.zeros((height, width, 3), dtype=torch.uint8).pin_memory().to(image.device, non_blocking=True)
    matrix = torch.ones((3, 4)).pin_memory().to(image.device, non_blocking=True)
    seen = torch_exposure.expose(image, matrix)
    loss = torch_loss.l1_ssim(seen, photo, 0.2, (photo[..., 0] == 0).to(torch.uint8))
    v_rgb, v_matrix = torch_exposure.expose_backward(image, matrix, loss.v_rgb)
    assert v_rgb.device == v_matrix.device == image.device
    torch_loss.metrics(image, photo)
    per_row = v_rgb.sum((1, 2)).expand(len(slots), 3)
    arena.grad_geometry.index_add_(0, slots, torch.nn.functional.pad(per_row, (0, 13)))
    arena.grad_colour[:, :COLUMNS].index_add_(0, slots, per_row.repeat(1, COLUMNS // 3))
    assert loss.total.device == arena.geometry.device
    return loss.total


def train(device: FakeTensorDevice, resident: Which, capacity: int, *, interrupted_at: int = -1) -> None:
    """Two batches, colours in f32 and then in bf16, and rows written back."""
    store, adam = scene(), Adam(np.full((6, 5), 1e-2), Betas.for_batch(VIEWS))
    tiers = Tiers(device, store, resident(store), capacity)
    lanes = Lanes(tiers, PARCEL)
    sets = visible_sets(store.entries, store.bounds, CAMERAS, page_rows=store.page_rows)
    try:
        for batch in range(2):
            plan = make_plan(list(range(VIEWS)), sets, tiers.arena.slots)
            lanes.begin(plan, adam.at(batch + 1, VIEWS, bf16_colours=batch == 1), COLUMNS)
            i = done = 0
            while i < len(plan.turns):
                if done == interrupted_at and tiers.arena.slots == capacity:
                    lanes.interrupt(i)
                    tiers.replace_arena(capacity - PAGE_ROWS)
                    plan, i = rest_of(plan, i, capacity - PAGE_ROWS, store.page_rows), 0
                    lanes.go_on(plan)
                lanes.compute(i, lambda slots: one_view(tiers, slots))
                lanes.send_back(i)
                i, done = i + 1, done + 1
            lanes.finish()
            lanes.end()
        with device.mode:
            tiers.write_back()
    finally:
        lanes.close()


@pytest.mark.parametrize(("resident", "room"), [(nothing, 1.0), (every_other, 1.0), (everything, 3.0), (nothing, 0.3)])
def test_no_operation_mixes_devices_or_asks_for_a_value(resident: Which, room: float) -> None:
    with fake_cuda() as device:
        train(device, resident, int(room * tight()))


def test_nor_does_a_batch_that_goes_on_in_a_smaller_arena() -> None:
    with fake_cuda() as device:
        train(device, every_other, 2 * tight(), interrupted_at=3)


def test_rows_with_bf16_moments_are_widened_and_narrowed_on_the_way() -> None:
    with fake_cuda() as device:
        store = scene()
        halves = type(store).from_rows(store.geometry[:600], store.colour[:600], moments="bf16")
        residents = device.residents(halves, np.arange(500, dtype=np.int32), 100)
        assert residents.m_colour.device == device.where and residents.m_colour.dtype == torch.float32
        with device.mode:
            residents.write_back(np.array([0]))


def a_slot_list_on_the_host(patch: pytest.MonkeyPatch) -> None:
    real = FakeTensorDevice.indices
    patch.setattr(FakeTensorDevice, "indices", lambda self, lists: [ids.cpu() for ids in real(self, lists)])


def a_table_of_adam_on_the_host(patch: pytest.MonkeyPatch) -> None:
    real = cuda.DeviceAdam
    patch.setattr(cuda, "DeviceAdam", lambda tables, where: real(tables, "cpu"))


def a_window_of_the_loss_on_the_host(patch: pytest.MonkeyPatch) -> None:
    real = torch_loss._taps
    patch.setattr(torch_loss, "_taps", lambda device, dtype: real(torch.device("cpu"), dtype))


def staging_that_is_placed_without_a_copy(patch: pytest.MonkeyPatch) -> None:
    real = cuda.CudaDevice.place
    patch.setattr(
        cuda.CudaDevice,
        "place",
        lambda self, rows, *more: real(self, type(rows)(*(part.cpu() for part in rows)), *more),
    )


def an_item_in_adam(patch: pytest.MonkeyPatch) -> None:
    real = device_adam._coefficients
    patch.setattr(device_adam, "_coefficients", lambda *of: (of[-1].sum().item(), real(*of))[1])


def a_bool_before_slots_are_cleared(patch: pytest.MonkeyPatch) -> None:
    real = cuda._zero_gradients
    patch.setattr(cuda, "_zero_gradients", lambda arena, *at: real(arena, *at) if arena.geometry.any() else None)


def a_condition_on_the_loss(patch: pytest.MonkeyPatch) -> None:
    real = torch_loss._channel_loss

    def channel_loss(*arguments: Any) -> Any:
        sums = real(*arguments)
        return sums if sums[0] > 0 else (torch.zeros_like(sums[0]), sums[1])

    patch.setattr(torch_loss, "_channel_loss", channel_loss)


MUTATIONS: list[Callable[[pytest.MonkeyPatch], None]] = [
    a_slot_list_on_the_host,
    a_table_of_adam_on_the_host,
    a_window_of_the_loss_on_the_host,
    staging_that_is_placed_without_a_copy,
    an_item_in_adam,
    a_bool_before_slots_are_cleared,
    a_condition_on_the_loss,
]


@pytest.mark.parametrize("mistake", MUTATIONS, ids=lambda mistake: mistake.__name__)
def test_each_kind_of_mistake_is_found(monkeypatch: pytest.MonkeyPatch, mistake: Callable[..., None]) -> None:
    with fake_cuda() as device:
        mistake(monkeypatch)
        with pytest.raises(Exception, match=MISTAKES):
            train(device, every_other, 3 * tight())


def test_what_the_test_changes_of_torch_is_as_it_was_afterwards() -> None:
    before = torch.Tensor.pin_memory
    with fake_cuda():
        assert torch.Tensor.pin_memory is not before
    assert torch.Tensor.pin_memory is before
    if not torch.cuda.is_available():
        with pytest.raises(Exception, match=r"CUDA|cuda"):
            torch.empty(1, device="cuda:0")
