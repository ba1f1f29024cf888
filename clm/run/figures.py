"""Figures of views: what `metrics.json` says of a split, and the same in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

FIGURES = ("psnr", "ssim", "psnr_colour_corrected", "ssim_colour_corrected")
LPIPS = "lpips"  # of views that are large enough, where its weights are installed
_WORST = 5  # views that are named


def split_figures(per_view: Mapping[str, dict[str, float]]) -> dict[str, Any]:
    """Of the figures of each view, by its name: their means over the views that have them (None where there is no view), `median`,
    and `worst`, those of the views with the lowest PSNR, which comes first."""
    values = list(per_view.values())
    by_key = {key: [view[key] for view in values] for key in FIGURES}
    if measured := [view[LPIPS] for view in values if LPIPS in view]:
        by_key[LPIPS] = measured
    means = {key: float(np.mean(figures)) if figures else None for key, figures in by_key.items()}
    median = {key: float(np.median(figures)) if figures else None for key, figures in by_key.items()}
    order = sorted(per_view, key=lambda name: (per_view[name]["psnr"], name))
    worst = [{"name": name, **per_view[name]} for name in order[:_WORST]]
    return {**means, "median": median, "worst": worst, "per_view": dict(per_view)}


def in_words(split: str, figures: Mapping[str, Any]) -> list[str]:
    """A split's figures, a sentence or a row of a table each."""
    count, median = len(figures["per_view"]), figures["median"]
    lines = [
        f"{split}: PSNR {_db(figures['psnr'])} (median {_db(median['psnr'])}), SSIM {figures['ssim']:.4f}"
        f"{lpips_in_words(figures)} over {count} views",
        f"{split} after colour correction (affine least squares, each view to its photo): PSNR "
        f"{_db(figures['psnr_colour_corrected'])} (median {_db(median['psnr_colour_corrected'])}), SSIM "
        f"{figures['ssim_colour_corrected']:.4f}",
    ]
    if count > 1:
        width = max(len(view["name"]) for view in figures["worst"])
        lines.append(f"{'worst views':{max(width, 11) + 2}}     PSNR    SSIM   corrected PSNR")
        for view in figures["worst"]:
            cells = f"{_db(view['psnr']):>9}  {view['ssim']:.4f}  {_db(view['psnr_colour_corrected']):>15}"
            lines.append(f"  {view['name']:{max(width, 11)}}{cells}")
    return lines


def lpips_in_words(figures: Mapping[str, Any]) -> str:
    """`, LPIPS 0.1234`; nothing where it was not measured."""
    return f", LPIPS {figures[LPIPS]:.4f}" if LPIPS in figures else ""


def _db(value: float) -> str:
    return f"{value:.2f} dB" if math.isfinite(value) else "inf dB"
