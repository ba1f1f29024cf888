"""The two steps of the CUDA backend, each with its backward, over gsplat's own Python and a stub of its kernels."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clm.camera import Camera
from clm.errors import OutOfDeviceMemory, ResourceError
from scripts.doubles.scenes import all_slots, look_at_origin, random_rows

torch = pytest.importorskip("torch")
gsplat = pytest.importorskip("gsplat", reason="gsplat is not installed")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from clm.render import pixels, twin  # noqa: E402
from clm.render import splats as seam  # noqa: E402
from clm.render.gsplat import GsplatRasterizer as Backend  # noqa: E402
from clm.render.gsplat_ops import alpha_limit  # noqa: E402
from scripts.doubles import gsplat_stub  # noqa: E402
from tests.device_rules import NoWaiting  # noqa: E402
from tests.render.whole import CpuRasterizer, remembering  # noqa: E402

GsplatRasterizer = remembering(Backend)

# The stub's tensors are small: a second thread would only be waited for.
pytestmark = pytest.mark.usefixtures("one_torch_thread")
ROWS = 200
BACKGROUND = np.array([0.2, 0.5, 0.8], np.float32)


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    gsplat_stub.install(monkeypatch)


def arena(count: int = ROWS, seed: int = 0) -> tuple[Any, ...]:
    """(geometry, colour, slots) with every row at its own slot."""
    return *(torch.tensor(values) for values in random_rows(count, seed)), torch.arange(count)


def gradients(count: int = ROWS) -> tuple[Any, Any]:
    return torch.zeros(count, 16), torch.zeros(count, 48)


def cotangents(camera: Camera) -> tuple[Any, Any, Any]:
    generator = torch.Generator().manual_seed(3)
    shape = camera.height, camera.width
    v_rgb, v_alpha, v_depth = (torch.randn(s, generator=generator) for s in ((3, *shape), shape, shape))
    return v_rgb, v_alpha, 0.1 * v_depth


def of_the_twin(camera: Camera, degree: int, antialiased: bool, absgrad: bool, depth: bool) -> dict[str, Any]:
    """Images, gradients and screen norms in float64."""
    rows = [values.double().requires_grad_() for values in arena()[:2]]
    p = twin.project(*rows, camera, degree, antialiased)
    p.means2d.retain_grad()
    images = twin.composite(p, camera, torch.tensor(BACKGROUND), alpha_max=alpha_limit(gsplat_stub.VERSION))
    weights = cotangents(camera)
    sum((image * v).sum() for image, v in zip(images[: 2 + depth], weights, strict=False)).backward()
    screen = (p.absgrad if absgrad else p.means2d.grad) * torch.tensor([camera.width / 2, camera.height / 2])
    values = {"rgb": images[0], "alpha": images[1], "depth": images[2], "geometry": rows[0].grad[:, :11]}
    return values | {"colour": rows[1].grad, "screen": screen.norm(dim=1), "drawn": (p.radii > 0).all(-1).double()}


@pytest.mark.parametrize(("antialiased", "absgrad", "depth"), list(itertools.product((False, True), repeat=3)))
def test_images_and_gradients_are_those_of_the_twin_within_1e_5(antialiased: bool, absgrad: bool, depth: bool) -> None:
    camera, degree = look_at_origin(48, 40), 2
    rasterizer, grads = GsplatRasterizer(antialiased, absgrad), gradients()
    render = rasterizer.forward(*arena(), camera, degree, BACKGROUND, depth=depth)
    v_rgb, v_alpha, v_depth = cotangents(camera)
    rasterizer.backward(v_rgb, *grads, v_alpha, v_depth if depth else None)
    expected = of_the_twin(camera, degree, antialiased, absgrad, depth)
    ours = {"rgb": render.rgb, "alpha": render.alpha, "geometry": grads[0][:, :11], "colour": grads[1]}
    ours |= {"drawn": grads[0][:, 11], "screen": grads[0][:, 12]} | ({"depth": render.depth} if depth else {})
    assert (render.depth is not None) == depth
    for name, values in ours.items():
        error = (values.double() - expected[name]).abs().max()
        assert error < 1e-5 * expected[name].abs().max(), (name, error)


@pytest.mark.parametrize("depth", [False, True])
def test_the_steps_one_by_one_give_bitwise_what_forward_and_backward_give(depth: bool) -> None:
    camera, whole, steps = look_at_origin(), gradients(), gradients()
    v_rgb, v_alpha, v_depth = cotangents(camera)
    chosen = v_depth if depth else None
    rasterizer = GsplatRasterizer(antialiased=True, absgrad=True)
    first = rasterizer.forward(*arena(), camera, 3, BACKGROUND, depth=depth)
    rasterizer.backward(v_rgb, *whole, v_alpha, chosen)
    rasterizer.begin(camera, 3)
    drawn = rasterizer.project(*arena())
    second = rasterizer.rasterize(BACKGROUND, depth)
    rasterizer.rasterize_backward(v_rgb, v_alpha, chosen)
    rasterizer.project_backward(*arena(), 0, *steps)
    assert torch.equal(first.rgb, second.rgb) and torch.equal(first.alpha, second.alpha)
    assert first.drawn == second.drawn == drawn and whole[0].any()
    assert all(torch.equal(a, b) for a, b in zip(whole, steps, strict=True))
    assert first.depth is None or (second.depth is not None and torch.equal(first.depth, second.depth))


@pytest.mark.parametrize("depth", [False, True])
def test_pixels_that_nobody_asks_for_are_not_counted_and_nothing_else_changes(depth: bool) -> None:
    camera, found = look_at_origin(), []
    v_rgb, v_alpha, v_depth = cotangents(camera)
    for counted in (True, False):
        rasterizer, grads = GsplatRasterizer(), gradients()
        rasterizer.begin(camera, 3)
        rasterizer.project(*arena())
        image = rasterizer.rasterize(BACKGROUND, depth, counted)
        rasterizer.rasterize_backward(v_rgb, v_alpha, v_depth if depth else None)
        rasterizer.project_backward(*arena(), 0, *grads)
        found.append((image, *grads))
    (image, asked, colours), (same_image, unasked, same_colours) = found
    assert is_close(same_image.rgb, image.rgb) and (image.depth is not None) == (same_image.depth is not None) == depth
    assert image.depth is None or is_close(same_image.depth, image.depth)
    assert is_close(unasked[:, :13], asked[:, :13]) and is_close(same_colours, colours)
    assert asked[:, 13:15].any() and not unasked[:, 13:].any()


def in_pieces(
    rasterizer: Any, camera: Camera, cuts: list[int], depth: bool, where: Callable[[Any], Any] = lambda ids: ids
) -> tuple[Any, tuple[Any, Any]]:
    """Image and gradients of the arena's rows, cut at `cuts`; in the second pass the rows lie at `where` of their numbers."""
    (geometry, colour, _), grads = arena(), gradients()
    v_rgb, v_alpha, v_depth = cotangents(camera)
    pieces = [torch.arange(a, b) for a, b in itertools.pairwise([0, *cuts, ROWS])]
    rasterizer.begin(camera, 2)
    for ids in pieces:
        rasterizer.project(geometry, colour, ids)
    render = rasterizer.rasterize(BACKGROUND, depth)
    rasterizer.rasterize_backward(v_rgb, v_alpha, v_depth if depth else None)
    moved, there = where(torch.arange(ROWS)), [torch.full_like(values, torch.nan) for values in (geometry, colour)]
    for values, rows in zip(there, (geometry, colour), strict=True):
        values[moved] = rows
    for ids in reversed(pieces):
        rasterizer.project_backward(*there, where(ids), int(ids[0]) if len(ids) else 0, *grads)
    return render, tuple(values[moved] for values in grads)


def is_close(ours: Any, expected: Any) -> bool:
    return bool((ours - expected).abs().max() <= 1e-5 * expected.abs().max())


@pytest.mark.parametrize(
    ("cuts", "band_bytes"),
    [([90], None), ([], 0), ([10, 10, 50, 100, 101, 160], None), ([60, 120], 5000), ([], 10**9)],
    ids=["two pieces", "bands of one tile row", "seven pieces, one empty", "pieces and bands", "one band"],
)
@pytest.mark.parametrize(("antialiased", "absgrad", "depth"), [(False, False, False), (True, True, True)])
def test_a_view_in_pieces_and_in_bands_is_the_whole_view(
    cuts: list[int], band_bytes: int | None, antialiased: bool, absgrad: bool, depth: bool
) -> None:
    """But for the rounding of gsplat's float32 and of the stub, whose products depend on how many rows there are."""
    camera = look_at_origin(48, 40)
    whole = in_pieces(GsplatRasterizer(antialiased, absgrad), camera, [], depth)
    parts = GsplatRasterizer(antialiased, absgrad, band_bytes=band_bytes)
    ours = in_pieces(parts, camera, cuts, depth, lambda ids: (ids * 7 + 3) % ROWS)
    assert is_close(ours[0].rgb, whole[0].rgb) and is_close(ours[0].alpha, whole[0].alpha)
    assert not depth or is_close(ours[0].depth, whole[0].depth)
    assert ours[0].drawn == whole[0].drawn > 50
    for mine, expected in zip(ours[1], whole[1], strict=True):
        for columns in (slice(0, 3), slice(3, 7), slice(7, 10), slice(10, 11), slice(11, 12), slice(12, 13)):
            if mine.shape[1] == 16:
                assert is_close(mine[:, columns], expected[:, columns]), columns
        assert mine.shape[1] == 16 or is_close(mine, expected)


def test_one_piece_is_projected_once_and_of_several_all_but_the_last_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(*args: Any) -> Any:
        calls.append(len(args[0]))
        return gsplat_stub.FUNCTIONS[gsplat_stub.PROJECTION](*args)

    gsplat_stub.install(monkeypatch, **{gsplat_stub.PROJECTION: counted})
    in_pieces(GsplatRasterizer(), look_at_origin(), [], False)
    assert calls == [ROWS]
    in_pieces(GsplatRasterizer(), look_at_origin(), [50, 120], False)
    assert calls[1:] == [50, 70, 80, 70, 50]


def test_bands_are_as_few_as_the_limit_allows_and_end_where_gsplats_counts_do() -> None:
    pairs, most = np.array([5, 3, 0, 9, 1, 1], np.int64), pixels.MOST_PAIRS
    assert pixels.cut_bands(pairs, 8 * pixels.PAIR_BYTES) == ((0, 3), (3, 4), (4, 6))
    assert pixels.cut_bands(pairs, 0) == tuple((y, y + 1) for y in range(6))
    assert pixels.cut_bands(pairs, None) == ((0, 6),)
    assert pixels.cut_bands(np.array([most - 1, 1, 1, most], np.int64), None) == ((0, 2), (2, 3), (3, 4))
    with pytest.raises(ResourceError, match="2,147,483,648 pairs"):
        pixels.cut_bands(np.array([1, most + 1], np.int64), None)


def test_more_pairs_than_gsplat_can_count_are_drawn_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = look_at_origin(48, 40)
    whole = in_pieces(rasterizer := GsplatRasterizer(), camera, [], False)
    monkeypatch.setattr(pixels, "MOST_PAIRS", rasterizer._pairs - 1)
    ours = in_pieces(rasterizer, camera, [], False)
    assert is_close(ours[0].rgb, whole[0].rgb) and all(map(is_close, ours[1], whole[1]))


def test_pairs_of_tile_rows_are_those_that_gsplat_lists() -> None:
    camera, rasterizer = look_at_origin(72, 50), GsplatRasterizer()
    rasterizer.begin(camera, 0)
    rasterizer.project(*arena())
    splats = rasterizer._view.parts[0]
    listed = gsplat.isect_tiles(splats.means2d[None], splats.radii[None], splats.depths[None], 16, 5, 4, packed=False)[
        1
    ]
    rows = ((listed >> 32) // 5).numpy()
    assert np.array_equal(pixels._pairs_of_tile_rows(splats, 72, 50), np.bincount(rows, minlength=4))


def test_a_piece_without_memory_is_repeated_where_others_were_added_and_else_the_view_begins_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (geometry, colour, slots), camera, rasterizer = arena(), look_at_origin(), GsplatRasterizer()
    whole, grads, failing = gradients(), gradients(), [False]

    def kernel(*args: Any) -> Any:
        if failing[0]:
            failing[0] = False
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gsplat_stub.FUNCTIONS[gsplat_stub.PROJECTION](*args)

    gsplat_stub.install(monkeypatch, **{gsplat_stub.PROJECTION: kernel})

    def begun() -> None:
        rasterizer.begin(camera, 2)
        rasterizer.project(geometry, colour, slots[:90])
        rasterizer.project(geometry, colour, slots[90:])
        rasterizer.rasterize_backward(torch.ones_like(rasterizer.rasterize(BACKGROUND).rgb))

    begun()
    for first, part in ((90, slots[90:]), (0, slots[:90])):
        rasterizer.project_backward(geometry, colour, part, first, *whole)
    begun()
    rasterizer.project_backward(geometry, colour, slots[90:], 90, *grads)
    failing[0] = True
    with pytest.raises(OutOfDeviceMemory):
        rasterizer.project_backward(geometry, colour, slots[:90], 0, *grads)
    rasterizer.project_backward(geometry, colour, slots[:90], 0, *grads)
    assert all(torch.equal(a, b) for a, b in zip(grads, whole, strict=True))
    begun()
    failing[0] = True
    with pytest.raises(OutOfDeviceMemory):
        rasterizer.project_backward(geometry, colour, slots[:90], 0, *grads)
    with pytest.raises(ValueError, match="rasterize_backward of its own"):
        rasterizer.project_backward(geometry, colour, slots[:90], 0, *grads)
    assert all(torch.equal(a, b) for a, b in zip(grads, whole, strict=True)), "nothing was added"


def test_each_step_backward_needs_its_own_step() -> None:
    rasterizer, camera = GsplatRasterizer(), look_at_origin()
    with pytest.raises(ValueError, match="forward of its own"):
        rasterizer.rasterize_backward(torch.ones(3, 50, 72))
    with pytest.raises(ValueError, match="begin of its own"):
        rasterizer.project(*arena())
    rasterizer.begin(camera, 0)
    rasterizer.project(*arena())
    rasterizer.rasterize(BACKGROUND)
    with pytest.raises(ValueError, match="begin of its own"):
        rasterizer.project(*arena())
    rasterizer.rasterize_backward(torch.ones(3, 50, 72))
    rasterizer.project_backward(*arena(), 0, *gradients())
    with pytest.raises(ValueError, match="rasterize_backward of its own"):
        rasterizer.project_backward(*arena(), 0, *gradients())
    with pytest.raises(ValueError, match="begin of its own"):
        rasterizer.rasterize(BACKGROUND)


def test_gradients_have_one_row_per_drawn_row_and_nothing_is_added_by_a_sort_or_filled_for_all_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, Any]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            seen.append((func._schema.name.removeprefix("aten::"), result))
            return result

    gsplat_stub.install(monkeypatch, NoWaiting.exempt)
    geometry, colour, slots = arena()
    geometry[: ROWS // 2, 2] -= 100.0  # behind the camera, or far beside it
    rasterizer, grads = GsplatRasterizer(), gradients()
    render = rasterizer.forward(geometry, colour, slots, look_at_origin(), 3, BACKGROUND)
    assert 0 < render.drawn < ROWS // 2
    rasterizer.rasterize_backward(torch.ones_like(render.rgb))
    with Watch():
        rasterizer.project_backward(geometry, colour, slots, 0, *grads)
    names = [name for name, _ in seen]
    assert "_sparse_coo_tensor_with_dims_and_tensors" in names and not any("put" in n or "sort" in n for n in names)
    dense = [(name, r) for name, r in seen if isinstance(r, torch.Tensor) and r.layout == torch.strided and r.dim()]
    assert [name for name, r in dense if len(r) == ROWS and name not in ("detach", "slice", "alias")] == [
        "index_add_"
    ] * 2
    assert {len(r) for _, r in dense} == {1, render.drawn, ROWS}  # 1: the camera


def spoil(kind: str) -> tuple[Any, ...]:
    geometry, colour, slots = arena()
    column, value = {"mean": (0, np.nan), "opacity": (10, np.nan), "scale": (7, 200.0), "quaternion": (3, np.nan)}[kind]
    geometry[7, column] = value
    return geometry, colour, slots


@pytest.mark.parametrize("kind", ["mean", "opacity", "scale", "quaternion"])
def test_rows_that_are_not_finite_draw_nothing_and_get_nothing_as_on_the_cpu(kind: str) -> None:
    camera = look_at_origin()
    rasterizer, grads = GsplatRasterizer(), gradients()
    render = rasterizer.forward(*spoil(kind), camera, 2, BACKGROUND)
    rasterizer.backward(torch.ones_like(render.rgb), *grads)
    assert torch.isfinite(render.rgb).all() and all(torch.isfinite(g).all() for g in grads)
    assert not grads[0][7].any() and not grads[1][7].any()
    cpu, expected = CpuRasterizer(), (np.zeros((ROWS, 16), np.float32), np.zeros((ROWS, 48), np.float32))
    geometry, colour, _ = (values.numpy() for values in spoil(kind))
    image = cpu.forward(geometry, colour, all_slots(ROWS), camera, 2, BACKGROUND)
    assert np.abs(image.rgb - render.rgb.numpy()).max() < 1e-4
    cpu.backward(np.ones_like(image.rgb), *expected)
    assert np.array_equal(grads[0][:, 11].numpy(), expected[0][:, 11])


def test_a_view_whose_rows_are_all_not_finite_is_the_background_and_adds_nothing() -> None:
    geometry, colour, slots = arena(6)
    geometry[:, 1] = torch.nan
    rasterizer, grads = GsplatRasterizer(), gradients(6)
    render = rasterizer.forward(geometry, colour, slots, look_at_origin(), 1, BACKGROUND, depth=True)
    assert torch.allclose(render.rgb, torch.tensor(BACKGROUND)[:, None, None]) and not render.depth.any()
    rasterizer.backward(torch.ones_like(render.rgb), *grads, v_depth=torch.ones_like(render.alpha))
    assert not grads[0].any() and not grads[1].any()


def test_the_host_waits_without_the_gil_right_before_each_call_that_reads_a_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is given to the device between the wait and the call, so that nothing is left for the call to wait for."""
    log: list[str] = []

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func._schema.name.removeprefix("aten::")
            if name not in ("detach", "unsqueeze", "alias"):  # views: no work for the device
                log.append("work")
            return func(*args, **(kwargs or {}))

    def logged(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            log.append(function.__name__)
            return function(*args)

        return call

    gsplat_stub.install(monkeypatch, logged)
    monkeypatch.setattr(seam, "settle", lambda device: log.append("settle"))
    with Log():
        GsplatRasterizer().forward(*arena(), look_at_origin(), 1, BACKGROUND)
    for name in (gsplat_stub.PROJECTION, "intersect_tile"):
        at = log.index(name)
        assert log[at - 1] == "settle" and "work" in log[:at], log[:at]
    assert log.count("settle") == 2


def test_settling_records_an_event_on_the_current_stream_and_sleeps_until_it_has_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[Any] = []

    class Event:
        def __init__(self, blocking: bool):
            log.append(("made", blocking))

        def record(self, stream: str) -> None:
            log.append(("recorded", stream))

        def synchronize(self) -> None:
            log.append("waited")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    seam.settle(torch.device("cpu"))
    assert log == []
    seam.settle(torch.device("cuda:1"))
    assert log == [("made", True), ("recorded", "stream of cuda:1"), "waited"]


def rasterization(packed: bool) -> Any:
    geometry, colour, _ = arena()
    camera = look_at_origin()
    k, viewmat = (torch.tensor(m, dtype=torch.float32)[None] for m in (camera.K, camera.world_to_camera))
    return gsplat.rasterization(
        geometry[:, :3], geometry[:, 3:7], geometry[:, 7:10].exp(), geometry[:, 10].sigmoid(),
        colour.view(-1, 16, 3), viewmat, k, camera.width, camera.height, sh_degree=3, packed=packed,
        backgrounds=torch.tensor(BACKGROUND)[None], render_mode="RGB+ED",
    )  # fmt: skip


def test_gsplats_own_rasterization_of_unpacked_rows_gives_our_image() -> None:
    image, alpha, _ = rasterization(packed=False)
    render = GsplatRasterizer().forward(*arena(), look_at_origin(), 3, BACKGROUND, depth=True)
    # The depth's background is 0 in ours, and gsplat puts none beside three channels: it is told to blend three.
    assert torch.allclose(image[0, ..., :3].permute(2, 0, 1), render.rgb, atol=1e-6)
    assert torch.allclose(alpha[0, ..., 0], render.alpha, atol=1e-6)


@pytest.mark.skipif(gsplat.__version__ != "1.5.3", reason="another release may have mended it")
def test_gsplats_own_rasterization_of_packed_rows_cannot_take_a_background() -> None:
    """Why `rasterize_to_pixels` is called here as for one image of a batch."""
    with pytest.raises((AssertionError, RuntimeError)):
        rasterization(packed=True)
