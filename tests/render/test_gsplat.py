"""The CUDA backend and gsplat's own Python over a stub of its kernels: what is proven is everything above the kernels."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from typing import Any

import numpy as np
import pytest

from clm.camera import Camera
from clm.errors import OutOfDeviceMemory, ResourceError
from scripts.doubles.scenes import look_at_origin, random_rows

torch = pytest.importorskip("torch")
gsplat = pytest.importorskip("gsplat", reason="gsplat is not installed")

from clm.image import torch_losses as torch_loss  # noqa: E402
from clm.render.gsplat import GsplatRasterizer as Backend  # noqa: E402
from scripts.doubles import gsplat_stub  # noqa: E402
from tests.device_rules import NoWaiting  # noqa: E402
from tests.render.whole import CpuRasterizer, remembering  # noqa: E402

GsplatRasterizer = remembering(Backend)

# The stub's tensors are small: a second thread would only be waited for.
pytestmark = pytest.mark.usefixtures("one_torch_thread")
ROWS, SLOTS = 300, 420
BACKGROUND = np.array([0.2, 0.5, 0.8], np.float32)


@pytest.fixture(autouse=True)
def doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    gsplat_stub.install(monkeypatch)


def arena_of(geometry: np.ndarray, colour: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows scattered over an arena whose other slots hold nothing usable; and their slots [M] i32."""
    slots = np.random.default_rng(seed).permutation(SLOTS)[: len(geometry)].astype(np.int32)
    arena = np.full((SLOTS, 12), np.nan, np.float32), np.full((SLOTS, 48), np.nan, np.float32)
    arena[0][slots], arena[1][slots] = geometry, colour
    return *arena, slots


def gradient_rows(value: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    return np.full((SLOTS, 16), value, np.float32), np.full((SLOTS, 48), value, np.float32)


def tensors(arrays: tuple[np.ndarray, ...]) -> tuple[Any, ...]:
    return tuple(torch.tensor(array) for array in arrays)


def close(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> bool:
    """Equal within the tolerance, but for one value in 200 that a threshold of the rasteriser flipped."""
    return bool(np.mean(np.abs(ours - theirs) > tolerance) < 0.005)


def check_against_cpu(
    camera: Camera, degree: int, *, antialiased: bool = False, absgrad: bool = False, depth: bool = True,
    index_type: Any = torch.int64, radius_clip: float = 0.0,
) -> None:  # fmt: skip
    """Images within 1e-4, gradients within 1e-3 of the largest, statistics, radii and centres as the CPU backend."""
    geometry, colour, slots = arena_of(*random_rows(ROWS, seed=degree))
    options = {"antialiased": antialiased, "absgrad": absgrad, "radius_clip": radius_clip}
    cpu, device = CpuRasterizer(**options), GsplatRasterizer(**options)
    ours = device.forward(
        *tensors((geometry, colour)), torch.tensor(slots, dtype=index_type), camera, degree, BACKGROUND, depth=depth
    )
    theirs = cpu.forward(geometry, colour, slots, camera, degree, BACKGROUND, depth=depth)
    assert ours.rgb.shape == theirs.rgb.shape and ours.rgb.dtype == torch.float32
    assert close(ours.rgb.numpy(), theirs.rgb, 1e-4) and close(ours.alpha.numpy(), theirs.alpha, 1e-4)
    assert (ours.depth is not None) == (theirs.depth is not None) == depth
    assert abs(ours.drawn - theirs.drawn) <= 1 and ROWS // 4 < ours.drawn < ROWS
    assert np.mean(device.radii().numpy() != cpu.radii()) < 0.005
    drawn = (cpu.radii() > 0).all(1) & (device.radii().numpy() > 0).all(1)
    assert np.allclose(device.means2d().numpy()[drawn], cpu.means2d()[drawn], atol=1e-3)

    rng = np.random.default_rng(degree + 1)
    v_rgb = rng.normal(size=theirs.rgb.shape).astype(np.float32)
    v_rgb[:, 3:9] = 0  # the loss does not look there
    v_alpha = rng.normal(size=theirs.alpha.shape).astype(np.float32)
    v_depth = 0.1 * rng.normal(size=theirs.alpha.shape).astype(np.float32)
    if depth:
        assert ours.depth is not None and theirs.depth is not None
        assert close(ours.depth.numpy(), theirs.depth, 1e-3)
    mine, expected = tensors(gradient_rows(1.0)), gradient_rows(1.0)
    cpu.backward(v_rgb, *expected, v_alpha, v_depth if depth else None)
    cotangents = tensors((v_rgb, v_alpha, v_depth))
    device.backward(cotangents[0], *mine, cotangents[1], cotangents[2] if depth else None)
    compare_gradients([m.numpy() for m in mine], expected)


def compare_gradients(ours: list[np.ndarray], theirs: tuple[np.ndarray, np.ndarray]) -> None:
    for columns in (slice(0, 3), slice(3, 7), slice(7, 10), slice(10, 11), *(slice(k, k + 1) for k in (12, 13, 14))):
        scale = np.abs(theirs[0][:, columns] - 1).max()
        assert scale > 0 and close(ours[0][:, columns], theirs[0][:, columns], 1e-3 * scale), columns
    assert np.mean(ours[0][:, 11] != theirs[0][:, 11]) < 0.005
    assert (ours[0][:, 15] == 1).all()
    assert close(ours[1], theirs[1], 1e-3 * np.abs(theirs[1] - 1).max())
    assert np.array_equal(ours[1] == 1, theirs[1] == 1) or np.mean((ours[1] == 1) != (theirs[1] == 1)) < 0.005


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_images_gradients_and_statistics_equal_the_cpu_backend_at_every_sh_degree(degree: int) -> None:
    check_against_cpu(look_at_origin(), degree)


def test_images_and_gradients_equal_the_cpu_backend_without_depth_and_with_int32_slots() -> None:
    check_against_cpu(look_at_origin(), 3, depth=False, index_type=torch.int32)


def test_images_and_gradients_equal_the_cpu_backend_when_antialiased() -> None:
    check_against_cpu(look_at_origin(), 1, antialiased=True)


def test_absolute_screen_gradients_equal_the_cpu_backend() -> None:
    check_against_cpu(look_at_origin(), 1, absgrad=True)


def test_images_and_gradients_equal_the_cpu_backend_off_centre_and_with_small_rows_clipped() -> None:
    check_against_cpu(look_at_origin(off_centre=20.0), 2, radius_clip=4.0)


def test_near_and_far_reach_gsplat() -> None:
    rows, camera = arena_of(*random_rows(ROWS)), look_at_origin()
    slice_of_it = dataclasses.replace(camera, near=3.5, far=4.5)
    drawn = [CpuRasterizer().forward(*rows, where, 0, BACKGROUND).drawn for where in (slice_of_it, camera)]
    device = GsplatRasterizer().forward(*tensors(rows), slice_of_it, 0, BACKGROUND)
    assert device.drawn == drawn[0] < drawn[1]


def test_conventions_that_are_not_defaults_reach_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def record(*args: Any) -> Any:
        calls.append(args)
        return gsplat_stub.FUNCTIONS[gsplat_stub.PROJECTION](*args)

    gsplat_stub.install(monkeypatch, **{gsplat_stub.PROJECTION: record})
    camera = dataclasses.replace(look_at_origin(), near=0.02, far=1e3)
    GsplatRasterizer(antialiased=True, radius_clip=0.5).forward(
        *tensors(arena_of(*random_rows(ROWS))), camera, 2, (0, 0, 0), depth=True
    )
    assert calls[0][7:15] == (72, 50, 0.3, 0.02, 1e3, 0.5, True, gsplat_stub.CameraModelType.PINHOLE)


@pytest.mark.parametrize("depth", [False, True])
def test_a_view_without_rows_is_the_background_and_never_reaches_gsplat(depth: bool) -> None:
    geometry, colour, _ = tensors(arena_of(*random_rows(5)))
    rasterizer, none = GsplatRasterizer(), torch.zeros(0, dtype=torch.int64)
    render = rasterizer.forward(geometry, colour, none, look_at_origin(), 3, BACKGROUND, depth=depth)
    assert render.rgb.shape == (3, 50, 72) and (render.rgb == torch.tensor(BACKGROUND)[:, None, None]).all()
    assert not render.alpha.any() and render.drawn == 0 and (render.depth is not None) == depth
    gradients = tensors(gradient_rows(3.0))
    rasterizer.backward(torch.ones(3, 50, 72), *gradients)
    assert all((g == 3).all() for g in gradients) and rasterizer.radii().shape == (0, 2)


def test_a_view_that_draws_none_of_its_rows_is_the_background_and_adds_nothing() -> None:
    geometry, colour = random_rows(5)
    geometry[:, 10] = -9.0  # opacity 1e-4: below 1/255
    arena = tensors(arena_of(geometry, colour))
    rasterizer, gradients = GsplatRasterizer(), tensors(gradient_rows(3.0))
    render = rasterizer.forward(*arena, look_at_origin(), 3, BACKGROUND)
    assert render.drawn == 0 and torch.allclose(render.rgb, torch.tensor(BACKGROUND)[:, None, None])
    rasterizer.backward(torch.ones(3, 50, 72), *gradients)
    assert all((g == 3).all() for g in gradients) and not rasterizer.radii().any()


def test_rows_that_are_not_finite_are_neither_counted_nor_given_gradients() -> None:
    geometry, colour = random_rows(ROWS)
    geometry[7, 0] = np.nan
    arena, slots, camera = arena_of(geometry, colour), arena_of(geometry, colour)[2], look_at_origin()
    rasterizer, gradients = GsplatRasterizer(), tensors(gradient_rows())
    render = rasterizer.forward(*tensors(arena), camera, 2, BACKGROUND)
    rasterizer.backward(torch.ones_like(render.rgb), *gradients)
    assert torch.isfinite(render.rgb).all() and all(torch.isfinite(g).all() for g in gradients)
    assert not gradients[0][slots[7]].any() and not gradients[1][slots[7]].any()
    cpu, expected = CpuRasterizer(), gradient_rows()
    cpu.backward(np.ones_like(cpu.forward(*arena, camera, 2, BACKGROUND).rgb), *expected)
    assert gradients[0][:, 11].sum() == expected[0][:, 11].sum()


def test_a_view_with_a_loss_that_is_not_finite_adds_neither_gradients_nor_counts() -> None:
    arena, rasterizer = tensors(arena_of(*random_rows(ROWS))), GsplatRasterizer()
    for finite in (False, True):
        gradients = tensors(gradient_rows(2.0))
        render = rasterizer.forward(*arena, look_at_origin(), 1, BACKGROUND)
        v_rgb = torch.full(render.rgb.shape, torch.nan if not finite else 1.0)
        rasterizer.backward(v_rgb, *gradients, finite=torch.tensor(finite))
        assert any((g != 2).any() for g in gradients) == finite
        assert torch.isfinite(gradients[0]).all()


def test_bands_above_the_sh_degree_are_neither_read_nor_given_gradients() -> None:
    geometry, colour, slots = arena_of(*random_rows(ROWS))
    colour[:, 12:] = np.nan
    rasterizer, gradients = GsplatRasterizer(), tensors(gradient_rows(5.0))
    render = rasterizer.forward(*tensors((geometry, colour, slots)), look_at_origin(), 1, BACKGROUND)
    rasterizer.backward(torch.ones_like(render.rgb), *gradients)
    assert torch.isfinite(render.rgb).all() and (gradients[1][:, 12:] == 5).all() and (gradients[1][:, :12] != 5).any()


def test_each_backward_has_a_forward_and_depth_gradients_have_a_depth() -> None:
    arena, rasterizer = tensors(arena_of(*random_rows(20))), GsplatRasterizer()
    gradients = tensors(gradient_rows())
    with pytest.raises(ValueError, match="forward of its own"):
        rasterizer.backward(torch.ones(3, 50, 72), *gradients)
    render = rasterizer.forward(*arena, look_at_origin(), 0, BACKGROUND)
    with pytest.raises(ValueError, match="depth=True"):
        rasterizer.backward(torch.ones_like(render.rgb), *gradients, v_depth=torch.ones_like(render.alpha))
    rasterizer.forward(*arena, look_at_origin(), 0, BACKGROUND)
    rasterizer.backward(torch.ones_like(render.rgb), *gradients)
    with pytest.raises(ValueError, match="forward of its own"):
        rasterizer.backward(torch.ones_like(render.rgb), *gradients)


def test_a_view_whose_backward_never_came_is_freed_before_the_next_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    former: list[Any] = []

    def watch(*args: Any) -> Any:
        gc.collect()
        assert not any(reference() is not None for reference in former)
        former[:] = [weakref.ref(argument) for argument in args[:5] if argument is not None]
        return gsplat_stub.FUNCTIONS[gsplat_stub.PROJECTION](*args)

    gsplat_stub.install(monkeypatch, **{gsplat_stub.PROJECTION: watch})
    arena, rasterizer = tensors(arena_of(*random_rows(20))), GsplatRasterizer()
    renders = [rasterizer.forward(*arena, look_at_origin(), 0, BACKGROUND) for _ in range(2)]
    assert torch.equal(renders[0].rgb, renders[1].rgb)


class FullDevice:
    """The stub on a device that has no memory left: at the next call of one kernel, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception):
        self.error, self.fail, self.inputs = error, "", []
        gsplat_stub.install(monkeypatch, self.wrapped)

    def wrapped(self, function: Any) -> Any:
        def call(*args: Any) -> Any:
            self.inputs += [weakref.ref(argument) for argument in args if isinstance(argument, torch.Tensor)]
            if self.fail == function.__name__:
                self.fail = ""
                raise self.error
            return function(*args)

        return call


@pytest.mark.parametrize("when", [name for name in gsplat_stub.FUNCTIONS if "fused" not in name])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory")]
)
def test_running_out_of_memory_adds_nothing_holds_nothing_and_the_view_can_be_repeated(
    monkeypatch: pytest.MonkeyPatch, when: str, error: Exception
) -> None:
    full = FullDevice(monkeypatch, error)
    arena, camera, rasterizer = tensors(arena_of(*random_rows(ROWS))), look_at_origin(), GsplatRasterizer()
    gradients, v_rgb = tensors(gradient_rows()), torch.ones(3, 50, 72)

    def view() -> None:
        rasterizer.forward(*arena, camera, 1, BACKGROUND)
        rasterizer.backward(v_rgb, *gradients)

    full.fail = when
    with pytest.raises(OutOfDeviceMemory, match="300 Gaussians") as caught:
        view()
    assert isinstance(caught.value, ResourceError) and caught.value.exit_code == 3 and caught.value.fix
    assert not any(g.any() for g in gradients)
    assert caught.value.__context__ is None and caught.value.__cause__ is None
    error.__traceback__ = None  # the test's own hold on the frames of the failure
    gc.collect()
    assert not any(reference() is not None for reference in full.inputs), "memory of the failed view is still held"
    view()
    once = [g.clone() for g in gradients]
    gsplat_stub.install(monkeypatch)
    gradients, rasterizer = tensors(gradient_rows()), GsplatRasterizer()
    view()
    assert all(torch.equal(a, b) for a, b in zip(once, gradients, strict=True)) and once[0][:, 11].any()


def test_other_errors_pass_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    FullDevice(monkeypatch, RuntimeError("device-side assert")).fail = gsplat_stub.PIXELS
    with pytest.raises(RuntimeError, match="device-side assert"):
        GsplatRasterizer().forward(*tensors(arena_of(*random_rows(5))), look_at_origin(), 0, BACKGROUND)


def test_nothing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    gsplat_stub.install(monkeypatch, NoWaiting.exempt)
    arena, camera = tensors(arena_of(*random_rows(ROWS))), look_at_origin()
    photo, mask = torch.zeros(50, 72, 3, dtype=torch.uint8), torch.ones(50, 72, dtype=torch.bool)
    rasterizer, gradients = GsplatRasterizer(absgrad=True), tensors(gradient_rows())
    with NoWaiting():
        render = rasterizer.forward(*arena, camera, 1, BACKGROUND, depth=True)
        loss = torch_loss.l1_ssim(render.rgb, photo, 0.2, mask)
        rasterizer.backward(loss.v_rgb, *gradients, finite=loss.finite)
        torch_loss.metrics(render.rgb, photo, mask)
        with pytest.raises(AssertionError, match="waits"):
            loss.total.item()
    assert gradients[0][:, 11].any()
