"""A row's identity: a 64-bit key that stays with it wherever it lies, and what is drawn from it.

First rows have their number as key; a child has a hash of its parent's key, the image after which it was made, and which
child it is. Random numbers and the ties of any ranking are functions of (seed, image, key), so that neither the order of
rows, nor the size of pages, nor placement changes a model. 31 bits of the key ride in the spare float of a row's geometry,
where kernels find them without another access to memory.
"""

from __future__ import annotations

import numpy as np

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014) of x [..] u64."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def _hashed(keys: np.ndarray, *numbers: int) -> np.ndarray:
    """A hash of (key, numbers ...) for each of keys [K] u64."""
    state = _mixed(keys + np.uint64(_GOLDEN))
    for number in numbers:
        state = _mixed(state + np.uint64((number + 1) * _GOLDEN & _WORD))
    return state


def first_keys(first: int, last: int) -> np.ndarray:
    """Keys [last - first] u64 of the rows that a model begins with, by their numbers in the input."""
    return np.arange(first, last, dtype=np.uint64)


def child_keys(parents: np.ndarray, image: int, child: int | np.ndarray) -> np.ndarray:
    """Keys of the `child`-th children (a number, or one [K] u64 for each) that rows with keys `parents` [K] u64 have after
    training image `image`."""
    last = (np.atleast_1d(np.asarray(child, np.uint64)) + np.uint64(1)) * np.uint64(_GOLDEN)
    return _mixed(_hashed(parents, 1, image) + last)


def uniforms(keys: np.ndarray, image: int, number: int) -> np.ndarray:
    """Numbers [K] f64 in [0, 1), the `number`-th that rows with keys [K] u64 draw after training image `image`."""
    return (_hashed(keys, 3, image, number) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def identity_floats(keys: np.ndarray) -> np.ndarray:
    """The lower 31 bits of keys [K] u64 as normal floats [K] f32: 23 bits of mantissa, 7 of exponent (2^-63 to 2^64), sign.

    A normal float is left as it is by arithmetic that adds zero, by copies and by any flush of denormals."""
    bits = keys.astype(np.uint32)
    exponent = (bits >> np.uint32(23) & np.uint32(0x7F)) + np.uint32(64)
    sign = (bits >> np.uint32(30) & np.uint32(1)) << np.uint32(31)
    return (sign | exponent << np.uint32(23) | bits & np.uint32(0x7FFFFF)).view(np.float32)
