"""Codebooks and palettes: how near what is read is to what was written, and that it is the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from clm.formats import palette
from clm.formats.codebook import nearest, scalar_codebook
from clm.formats.palette import fit_palette, palette_size


def test_a_codebook_reaches_both_ends_and_is_finer_than_even_steps() -> None:
    rng = np.random.default_rng(0)
    values = np.append(rng.normal(size=50_000), [40.0, -9.0]).astype(np.float32)
    book = scalar_codebook(values, -9.0, 40.0)
    assert len(book) == 256 and book[0] == -9 and book[-1] == 40 and (np.diff(book) >= 0).all()
    error = book[nearest(book, values)] - values
    even = np.linspace(-9, 40, 256, dtype=np.float32)
    assert np.abs(error[-2:]).max() == 0
    assert np.sqrt((error**2).mean()) < 0.2 * np.sqrt(((even[nearest(even, values)] - values) ** 2).mean())


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0], [1e-30, 1e30], [-1.0, 1.0]])
def test_a_codebook_of_few_numbers_gives_them_back(values: list[float]) -> None:
    numbers = np.array(values, np.float32)
    book = scalar_codebook(numbers, float(numbers.min()), float(numbers.max()))
    np.testing.assert_array_equal(book[nearest(book, numbers)], numbers)


def rows(count: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    return (rng.normal(size=(count, 45)) * rng.random((count, 1)) ** 3).astype(np.float32)


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(((found - wanted) ** 2).mean()))


def test_rows_get_an_entry_about_as_near_as_the_nearest() -> None:
    sample = rows(6000)
    fitted = fit_palette(sample, 1024)
    labels = fitted.assign(sample)
    distances = ((fitted.entries**2).sum(axis=1) - 2 * sample @ fitted.entries.T).argmin(axis=1)
    slow = error(fitted.entries[distances], sample)
    assert error(fitted.entries[labels], sample) < 1.02 * slow
    drawn = sample[np.random.default_rng(0).choice(6000, 1024, replace=False)]
    best = ((drawn**2).sum(axis=1) - 2 * sample @ drawn.T).argmin(axis=1)
    assert slow < 0.9 * error(drawn[best], sample)  # and better than entries that are drawn


def test_the_same_rows_give_the_same_palette_with_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = rows(3000)
    first = fit_palette(sample, 256)
    monkeypatch.setattr(palette, "_MOST_THREADS", 1)
    second = fit_palette(sample, 256)
    np.testing.assert_array_equal(first.entries, second.entries)
    np.testing.assert_array_equal(first.assign(sample), second.assign(sample))


@pytest.mark.parametrize("count", [1, 2, 63, 500])
@pytest.mark.parametrize("kind", ["different", "alike", "two kinds"])
def test_odd_samples_have_a_palette(count: int, kind: str) -> None:
    sample = rows(count)
    if kind != "different":
        sample[:] = np.arange(count)[:, None] % 2 if kind == "two kinds" else 1.0
    fitted = fit_palette(sample, palette_size(count))
    assert 1 <= len(fitted.entries) <= max(1, count // 4) and fitted.first[-1] == len(fitted.entries)
    if kind == "alike" or (kind == "two kinds" and count > 8):
        np.testing.assert_array_equal(fitted.entries[fitted.assign(sample)], sample)


def test_sizes_are_a_quarter_of_the_rows_in_powers_of_two() -> None:
    assert [palette_size(n) for n in (1, 5, 1000, 22_402, 10**7)] == [1, 1, 128, 4096, 65_536]
