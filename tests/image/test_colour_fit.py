"""Colour correction before measuring: it undoes an exposure exactly, and never makes a picture worse."""

from __future__ import annotations

import numpy as np
import pytest

from clm.image.colour_fit import colour_corrected
from clm.image.losses import metrics


def photo(seed: int = 0, shape: tuple[int, int] = (40, 60)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_an_affine_change_of_colours_is_undone() -> None:
    target = photo()
    matrix = np.array([[0.5, 0.1, 0.0], [0.05, 0.6, 0.1], [0.0, 0.1, 0.4]])
    changed = np.einsum("cd,hwd->chw", matrix, target / 255) + 0.1
    assert metrics(changed.astype(np.float32), target)[0] < 20
    assert metrics(colour_corrected(changed.astype(np.float32), target), target)[0] > 90


@pytest.mark.parametrize("seed", range(5))
def test_a_picture_is_never_worse_after_correction(seed: int) -> None:
    rng, target = np.random.default_rng(seed), photo(seed)
    picture = (target.transpose(2, 0, 1) / 255 + rng.normal(0, rng.uniform(0, 1), (3, 40, 60))).astype(np.float32)
    mask = rng.random((40, 60)) > 0.5
    for keep in (None, mask):
        before, after = metrics(picture, target, keep), metrics(colour_corrected(picture, target, keep), target, keep)
        assert after[0] >= before[0] - 1e-4


def test_pixels_that_do_not_count_are_not_fitted() -> None:
    target, mask = photo(), np.zeros((40, 60), bool)
    mask[:, 30:] = True
    picture = np.ascontiguousarray(target.transpose(2, 0, 1) / 255 * 0.5, np.float32)
    other = picture.copy()
    other[:, :, :30] = np.nan
    first, second = (colour_corrected(rgb, target, mask)[:, mask] for rgb in (picture, other))
    assert np.array_equal(first, second)


def test_a_picture_of_one_colour_becomes_the_mean_of_its_photo() -> None:
    target = photo()
    flat = colour_corrected(np.full((3, 40, 60), 0.25, np.float32), target)
    np.testing.assert_allclose(flat.mean(axis=(1, 2)), target.mean(axis=(0, 1)) / 255, atol=1e-5)
