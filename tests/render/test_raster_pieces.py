"""A view in pieces and in bands is bit for bit the view in one: image, gradients, statistics. Ties of depth by identity."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clm.camera import Camera
from scripts.doubles.scenes import all_slots, look_at_origin, random_rows
from tests.render.whole import CpuRasterizer

ROWS = 400
BACKGROUND = (0.1, 0.2, 0.3)
Rows = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Everything:
    """What a view gives, as bytes that two ways of computing it must share."""

    drawn: int
    images: tuple[bytes, ...]
    gradients: Rows

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Everything)
        same = all(np.array_equal(a, b) for a, b in zip(self.gradients, other.gradients, strict=True))
        return same and self.drawn == other.drawn and self.images == other.images


def place(rows: Rows, ids: np.ndarray, rng: np.random.Generator) -> tuple[Rows, np.ndarray]:
    """An arena that holds rows `ids` somewhere, among rows that are not numbers."""
    size = len(ids) + 17
    slots = rng.permutation(size)[: len(ids)].astype(np.int32)
    arena = np.full((size, 12), np.nan, np.float32), np.full((size, 48), np.nan, np.float32)
    for there, here in zip(arena, rows, strict=True):
        there[slots] = here[ids]
    return arena, slots


def in_pieces(
    rasterizer: CpuRasterizer, rows: Rows, camera: Camera, cuts: Sequence[int], depth: bool = False, seed: int = 0
) -> Everything:
    """Forward and backward of all rows, cut at `cuts`; each piece lies elsewhere in the arena in each pass."""
    rng, count = np.random.default_rng(seed), len(rows[0])
    edges = [0, *cuts, count]
    pieces = [np.arange(a, b) for a, b in itertools.pairwise(edges)]
    rasterizer.begin(camera, 3)
    for ids in pieces:
        arena, slots = place(rows, ids, rng)
        rasterizer.project(*arena, slots)
    render = rasterizer.rasterize(BACKGROUND, depth)
    images = tuple(image.tobytes() for image in (render.rgb, render.alpha, render.depth) if image is not None)
    fixed = np.random.default_rng(9)
    cotangents = [fixed.normal(size=s).astype(np.float32) for s in (render.rgb.shape, *[render.alpha.shape] * 2)]
    rasterizer.rasterize_backward(cotangents[0], cotangents[1], cotangents[2] if depth else None)
    total = np.zeros((count, 16), np.float32), np.zeros((count, 48), np.float32)
    for ids, first in reversed(list(zip(pieces, edges, strict=False))):
        arena, slots = place(rows, ids, rng)
        gradients = np.zeros((len(arena[0]), 16), np.float32), np.zeros((len(arena[0]), 48), np.float32)
        rasterizer.project_backward(*arena, slots, first, *gradients)
        for sums, part in zip(total, gradients, strict=True):
            sums[ids] = part[slots]
    return Everything(render.drawn, images, total)


@settings(max_examples=80, deadline=None)
@given(
    count=st.sampled_from([0, 1, 9, 600]),
    cuts=st.lists(st.floats(0, 1), max_size=6),
    hidden=st.booleans(),
    depth=st.booleans(),
    absgrad=st.booleans(),
    antialiased=st.booleans(),
    band_bytes=st.sampled_from([None, 0, 60_000, 200_000, 10**9]),
    seed=st.integers(0, 99),
)
def test_image_and_gradients_do_not_depend_on_pieces_or_bands(
    count: int,
    cuts: list[float],
    hidden: bool,
    depth: bool,
    absgrad: bool,
    antialiased: bool,
    band_bytes: int | None,
    seed: int,
) -> None:
    rows, camera = random_rows(count, seed), look_at_origin(90, 70)
    if hidden:
        rows[0][: count // 2, 2] = 1e6  # pieces of which nothing is drawn
    whole = in_pieces(CpuRasterizer(antialiased, absgrad), rows, camera, [], depth)
    used = CpuRasterizer(antialiased, absgrad)
    in_pieces(used, random_rows(300, 7), look_at_origin(), [100])  # another view's leavings change nothing
    used.band_bytes = band_bytes
    assert in_pieces(used, rows, camera, sorted(int(cut * count) for cut in cuts), depth, seed) == whole
    assert used.bands() == {None: 1, 0: 5, 10**9: 1}.get(band_bytes, used.bands())


@pytest.mark.parametrize("pieces", [1, 2, 7])
@pytest.mark.parametrize("band_bytes", [None, 0, 250_000])
def test_one_two_and_seven_pieces_with_and_without_bands(pieces: int, band_bytes: int | None) -> None:
    rows, camera = random_rows(5000, seed=3), look_at_origin(200, 130, focal=150.0)
    cuts = [5000 * k // pieces for k in range(1, pieces)]
    whole = in_pieces(CpuRasterizer(absgrad=True), rows, camera, [], True)
    assert in_pieces(CpuRasterizer(absgrad=True, band_bytes=band_bytes), rows, camera, cuts, True, 5) == whole
    assert whole.drawn > 2000


def identities(values: np.ndarray) -> np.ndarray:
    """31 bits each as normal floats with the exponents 64 to 191, as the padding of a geometry row carries them."""
    bits = ((values >> 30) << 31) | ((((values >> 23) & 127) + 64) << 23) | (values & 0x7FFFFF)
    return bits.astype(np.uint32).view(np.float32)


def stacked(count: int, seed: int) -> Rows:
    """Rows of three depths only, so that many pairs tie, with identities."""
    rng = np.random.default_rng(seed)
    geometry, colour = random_rows(count, seed, scale=0.3, spread=0.5)
    geometry[:, 2] = rng.integers(0, 3, count)
    geometry[:, 11] = identities(rng.integers(0, 1 << 31, count))
    assert np.isfinite(geometry[:, 11]).all() and (np.abs(geometry[:, 11]) > 1e-20).all()
    return geometry, colour


def test_rows_at_one_depth_are_drawn_in_order_of_their_identities_wherever_they_stand() -> None:
    rows = stacked(ROWS, 1)
    camera = Camera(
        90, 70, 60.0, 60.0, 45.0, 35.0, np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1.0]])
    )
    order = np.random.default_rng(4).permutation(ROWS)
    here = in_pieces(CpuRasterizer(), rows, camera, [], True)
    there = in_pieces(CpuRasterizer(), (rows[0][order], rows[1][order]), camera, [130, 131], True)
    assert here.images == there.images and here.drawn == there.drawn > 300
    for a, b in zip(here.gradients, there.gradients, strict=True):
        assert np.array_equal(a[order], b)
    unnamed = rows[0].copy()
    unnamed[:, 11] = 0
    assert in_pieces(CpuRasterizer(), (unnamed, rows[1]), camera, [], True).images != here.images


def test_identities_of_rows_at_different_depths_change_nothing() -> None:
    plain, camera = random_rows(ROWS, 2), look_at_origin()
    named = plain[0].copy(), plain[1]
    named[0][:, 11] = identities(np.random.default_rng(0).integers(0, 1 << 31, ROWS))
    assert in_pieces(CpuRasterizer(), named, camera, [], True) == in_pieces(CpuRasterizer(), plain, camera, [], True)


def test_rows_of_one_depth_and_one_identity_are_drawn_in_row_order() -> None:
    geometry, colour = stacked(ROWS, 3)
    geometry[:, 11] = identities(np.full(ROWS, 5))
    unnamed = geometry.copy()
    unnamed[:, 11] = 0
    views = [in_pieces(CpuRasterizer(), (g, colour), look_at_origin(), [], True) for g in (geometry, unnamed)]
    assert views[0] == views[1]


def test_a_view_without_a_finite_loss_adds_nothing() -> None:
    rasterizer, rows, slots = CpuRasterizer(), random_rows(50), all_slots(50)
    image = rasterizer.forward(*rows, slots, look_at_origin(), 1, BACKGROUND)
    gradients = np.full((50, 16), 7, np.float32), np.full((50, 48), 7, np.float32)
    rasterizer.backward(np.full_like(image.rgb, np.nan), *gradients, finite=False)
    assert all((values == 7).all() for values in gradients)


def test_pieces_outside_the_view_or_the_arena_are_refused() -> None:
    rasterizer, rows, slots = CpuRasterizer(), random_rows(20), all_slots(20)
    image = rasterizer.forward(*rows, slots, look_at_origin(), 1, BACKGROUND)
    rasterizer.rasterize_backward(np.ones_like(image.rgb))
    gradients = np.zeros((20, 16), np.float32), np.zeros((20, 48), np.float32)
    for first in (-1, 1):
        with pytest.raises(IndexError, match="not all among the view's 20"):
            rasterizer.project_backward(*rows, slots, first, *gradients)
    with pytest.raises(IndexError, match="slots reach outside"):
        rasterizer.project_backward(*rows, slots, 0, gradients[0][:19], gradients[1])
    with pytest.raises(RuntimeError, match=r"project\(\) after rasterize\(\)"):
        rasterizer.project(*rows, slots)
    with pytest.raises(ValueError, match="pixels a side"):
        rasterizer.begin(look_at_origin(16 * 65536, 1), 0)
