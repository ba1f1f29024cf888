"""The two steps of the CPU backend, each with its backward: bitwise what forward and backward give, and only in order."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.doubles.scenes import all_slots, look_at_origin, random_rows
from tests.render.whole import CpuRasterizer

ROWS = 300
BACKGROUND = (0.2, 0.5, 0.8)


def gradients() -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((ROWS, 16), np.float32), np.zeros((ROWS, 48), np.float32)


@pytest.mark.parametrize("depth", [False, True])
@pytest.mark.parametrize("absgrad", [False, True])
def test_the_steps_one_by_one_give_bitwise_what_forward_and_backward_give(depth: bool, absgrad: bool) -> None:
    rows, camera, rng = (*random_rows(ROWS), all_slots(ROWS)), look_at_origin(), np.random.default_rng(1)
    v_rgb, v_alpha, v_depth = (rng.normal(size=s).astype(np.float32) for s in ((3, 50, 72), (50, 72), (50, 72)))
    whole, fused = CpuRasterizer(absgrad=absgrad), gradients()
    image = whole.forward(*rows, camera, 3, BACKGROUND, depth)
    whole.backward(v_rgb, *fused, v_alpha, v_depth if depth else None)
    steps, apart = CpuRasterizer(absgrad=absgrad), gradients()
    for _ in range(2):  # the second time from a workspace that was used before
        steps.begin(camera, 3)
        drawn = steps.project(*rows)
        again = steps.rasterize(BACKGROUND, depth)
        for values in apart:
            values[:] = 0
        steps.rasterize_backward(v_rgb, v_alpha, v_depth if depth else None)
        steps.project_backward(*rows, 0, *apart)
        assert drawn == again.drawn == image.drawn and np.array_equal(again.rgb, image.rgb)
        assert np.array_equal(again.alpha, image.alpha) and (again.depth is not None) == depth
        assert again.depth is None or image.depth is None or np.array_equal(again.depth, image.depth)
        assert all(np.array_equal(a, b) for a, b in zip(apart, fused, strict=True)) and fused[0].any()


@pytest.mark.parametrize("depth", [False, True])
def test_pixels_that_nobody_asks_for_are_not_counted_and_nothing_else_changes(depth: bool) -> None:
    rows, camera, rng = (*random_rows(ROWS), all_slots(ROWS)), look_at_origin(), np.random.default_rng(1)
    v_rgb, v_depth = (rng.normal(size=s).astype(np.float32) for s in ((3, 50, 72), (50, 72)))
    found = []
    for counted in (True, False):
        rasterizer, grads = CpuRasterizer(absgrad=True), gradients()
        rasterizer.begin(camera, 3)
        rasterizer.project(*rows)
        rasterizer.rasterize(BACKGROUND, depth, counted)
        rasterizer.rasterize_backward(v_rgb, None, v_depth if depth else None)
        rasterizer.project_backward(*rows, 0, *grads)
        found.append(grads)
    (asked, colours), (unasked, same_colours) = found
    assert np.array_equal(asked[:, :13], unasked[:, :13]) and np.array_equal(colours, same_colours)
    assert asked[:, 13:15].any() and not unasked[:, 13:].any()


def test_splats_can_be_rasterized_again_over_another_background() -> None:
    rows, camera, rasterizer = (*random_rows(ROWS), all_slots(ROWS)), look_at_origin(), CpuRasterizer()
    rasterizer.begin(camera, 2)
    rasterizer.project(*rows)
    first = rasterizer.rasterize(BACKGROUND).rgb.copy()
    second = rasterizer.rasterize((0, 0, 0), depth=True)
    expected = CpuRasterizer().forward(*rows, camera, 2, (0, 0, 0), depth=True)
    assert np.array_equal(second.rgb, expected.rgb) and not np.array_equal(first, second.rgb)


def test_a_step_without_the_one_before_it_is_refused() -> None:
    rasterizer, rows = CpuRasterizer(), (*random_rows(ROWS), all_slots(ROWS))
    v_rgb = np.ones((3, 50, 72), np.float32)
    with pytest.raises(RuntimeError, match=r"project\(\) needs a begin\(\)"):
        rasterizer.project(*rows)
    with pytest.raises(RuntimeError, match=r"rasterize\(\) needs a begin\(\)"):
        CpuRasterizer().rasterize(BACKGROUND)
    rasterizer.begin(look_at_origin(), 1)
    with pytest.raises(RuntimeError, match=r"rasterize_backward\(\) needs a rasterize\(\)"):
        rasterizer.rasterize_backward(v_rgb)
    rasterizer.project(*rows)
    rasterizer.rasterize(BACKGROUND)
    with pytest.raises(RuntimeError, match=r"project_backward\(\) needs a rasterize_backward\(\)"):
        rasterizer.project_backward(*rows, 0, *gradients())
    rasterizer.rasterize_backward(v_rgb)
    rasterizer.begin(look_at_origin(), 1)
    with pytest.raises(RuntimeError, match="needs a"):
        rasterizer.project_backward(*rows, 0, *gradients())
