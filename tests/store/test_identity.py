"""Keys are unique, their bits survive arithmetic and bf16, and what is drawn from them is normal and independent."""

from __future__ import annotations

import numpy as np

from clm.kernels.grow import normals
from clm.store.identity import child_keys, first_keys, identity_floats
from tests.store.slow_identity import slow_normals


def test_keys_of_three_generations_are_unique() -> None:
    keys = first_keys(0, 20_000)
    for image in (100, 200, 300):
        keys = np.concatenate([keys, child_keys(keys, image, 0), child_keys(keys, image, 1)])
    assert len(np.unique(keys)) == len(keys) == 20_000 * 27


def test_identities_are_normal_floats_one_for_each_of_31_bits() -> None:
    keys = np.concatenate([np.arange(100_000), 2**31 - 1 - np.arange(100_000)]).astype(np.uint64)
    floats = identity_floats(keys)
    assert len(np.unique(floats.view(np.uint32))) == len(keys)
    size = np.abs(floats)
    assert np.isfinite(size).all() and size.min() >= 2.0**-63 and size.max() < 2.0**65
    np.testing.assert_array_equal(floats, identity_floats(keys + np.uint64(2**40)))


def test_normals_are_normal_and_independent() -> None:
    drawn = np.concatenate(
        [normals(first_keys(0, 100_000), seed, image) for seed, image in ((0, 1), (0, 2), (1, 1))], axis=1
    )
    assert np.abs(drawn.mean(axis=0)).max() < 0.02 and np.abs(drawn.std(axis=0) - 1).max() < 0.01
    assert np.abs(np.corrcoef(drawn.T) - np.eye(9)).max() < 0.015
    share = [(np.abs(drawn) < sigmas).mean() for sigmas in (1, 2, 3)]
    np.testing.assert_allclose(share, [0.6827, 0.9545, 0.9973], atol=0.002)


def test_normals_are_those_of_their_definition() -> None:
    keys = child_keys(first_keys(0, 5000), 7, 1)
    np.testing.assert_allclose(normals(keys, 3, 200), slow_normals(keys, 3, 200), rtol=1e-12, atol=1e-14)
