"""Rows that several rasterisers project and one rasterises give, bit for bit, what one rasteriser with all rows gives."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from clm.kernels.raster import SPLAT_FLOATS
from scripts.doubles.scenes import look_at_origin, random_rows
from tests.render.whole import CpuRasterizer

ROWS = 700
BACKGROUND = (0.1, 0.2, 0.3)


@pytest.mark.parametrize("absgrad", [False, True])
@pytest.mark.parametrize("band_bytes", [None, 0], ids=["whole", "in bands"])
@pytest.mark.parametrize("cuts", [[], [300], [0, 8, 699]], ids=["alone", "two", "four"])
def test_splats_of_several_rasterisers_are_those_of_one(absgrad: bool, band_bytes: int | None, cuts: list[int]) -> None:
    geometry, colour = random_rows(ROWS, seed=3)
    geometry[::5, :3] = geometry[0, :3]  # rows at one depth
    camera, slots = look_at_origin(), np.arange(ROWS, dtype=np.int32)
    v_rgb = np.random.default_rng(1).normal(size=(3, camera.height, camera.width)).astype(np.float32)
    one = CpuRasterizer(absgrad=absgrad)
    expected = one.forward(geometry, colour, slots, camera, 3, BACKGROUND).rgb.copy()
    one.rasterize_backward(v_rgb)
    want = np.zeros((ROWS, 16), np.float32), np.zeros((ROWS, 48), np.float32)
    one.project_backward(geometry, colour, slots, 0, *want)

    draws = CpuRasterizer(absgrad=absgrad, band_bytes=band_bytes)
    ranks = [draws.another() for _ in range(len(cuts) + 1)]
    pieces = [slots[a:b] for a, b in pairwise([0, *cuts, ROWS])]
    for rank, piece in zip(ranks, pieces, strict=True):
        rank.begin(camera, 3)
        rank.project(geometry, colour, piece)
    splats, counts = draws.splats_of(ranks)
    assert splats.shape == (one.drawn, SPLAT_FLOATS) and counts.sum() == one.drawn < ROWS
    draws.begin(camera, 3)
    draws.put_splats(splats)
    np.testing.assert_array_equal(draws.rasterize(BACKGROUND).rgb, expected)
    draws.rasterize_backward(v_rgb)
    gradients, got = draws.gradients_to(counts, True), tuple(np.zeros_like(array) for array in want)
    ends = np.cumsum(counts + 1)
    for rank, piece, first, last in zip(ranks, pieces, ends - counts - 1, ends, strict=True):
        rank.put_gradients(gradients[first:last])
        rank.project_backward(geometry, colour, piece, 0, *got)
    for array, other in zip(want, got, strict=True):
        np.testing.assert_array_equal(other, array)


def test_a_view_without_gradients_gives_none_to_those_whose_rows_it_has() -> None:
    geometry, colour = random_rows(ROWS, seed=3)
    camera, slots = look_at_origin(), np.arange(ROWS, dtype=np.int32)
    draws = CpuRasterizer()
    rank = draws.another()
    rank.begin(camera, 3)
    rank.project(geometry, colour, slots)
    splats, counts = draws.splats_of([rank])
    draws.begin(camera, 3)
    draws.put_splats(splats)
    rank.put_gradients(draws.gradients_to(counts, False))
    grad = np.zeros((ROWS, 16), np.float32), np.zeros((ROWS, 48), np.float32)
    rank.project_backward(geometry, colour, slots, 0, *grad)
    assert not grad[0].any() and not grad[1].any()
