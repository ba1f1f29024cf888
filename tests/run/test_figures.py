"""Figures of views in metrics.json and in words."""

from __future__ import annotations

import math

from clm.run.figures import FIGURES, in_words, split_figures


def figures(psnr: float) -> dict[str, float]:
    return dict(zip(FIGURES, (psnr, 0.5, psnr + 2, 0.6), strict=True))


def test_a_split_has_means_medians_and_its_worst_views_first() -> None:
    split = split_figures({f"{k}.jpg": figures(psnr) for k, psnr in enumerate((30.0, 10.0, 20.0, 21.0, 29.0, 10.0))})
    assert split["psnr"] == 20.0 and split["median"]["psnr"] == 20.5 and split["psnr_colour_corrected"] == 22.0
    assert [view["name"] for view in split["worst"]] == ["1.jpg", "5.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert split["per_view"]["0.jpg"] == figures(30.0) and split["worst"][0] == {"name": "1.jpg", **figures(10.0)}


def test_a_split_without_views_has_no_figures() -> None:
    split = split_figures({})
    assert split["psnr"] is None and split["median"]["ssim"] is None and split["worst"] == [] == list(split["per_view"])


def test_figures_in_words_name_the_worst_views_and_survive_a_perfect_one() -> None:
    lines = in_words("test", split_figures({"a.jpg": figures(math.inf), "a_long/name.jpg": figures(12.345)}))
    assert lines[0].startswith("test: PSNR inf dB (median inf dB), SSIM 0.5000 over 2 views")
    assert lines[1].startswith("test after colour correction") and lines[3].split()[0] == "a_long/name.jpg"
    assert "12.35 dB" in lines[3] or "12.34 dB" in lines[3]
    assert len(in_words("test", split_figures({"a.jpg": figures(20.0)}))) == 2


def test_lpips_is_a_mean_over_the_views_that_have_it() -> None:
    split = split_figures(
        {"a.jpg": {**figures(20.0), "lpips": 0.25}, "b.jpg": {**figures(30.0), "lpips": 0.5}, "c": figures(40.0)}
    )
    assert split["lpips"] == split["median"]["lpips"] == 0.375 and split["psnr"] == 30.0
    assert "SSIM 0.5000, LPIPS 0.3750 over 3 views" in in_words("test", split)[0]
    assert "lpips" not in split_figures({"a.jpg": figures(20.0)})
