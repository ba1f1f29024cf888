"""When things are due in a run, counted in training images: the reference schedule, and work that comes every so many of them.
Batches may jump over the exact image."""

from __future__ import annotations

from typing import Any

MCMC_SIZE = 1_000_000  # of a model with a fixed size for which none is given (gsplat)
REFERENCE_ITERATIONS = 30_000  # the run length that the reference schedule (3DGS, gsplat) was tuned for
MOST_ANNEAL = 4.0  # larger steps than that overshoot, however short a run is


def crossed(every: int, before: int, now: int) -> bool:
    """Whether a multiple of `every` images lies in (before, now]; every 0: never."""
    return every > 0 and now // every > before // every


def schedule_of(iterations: int, strategy: str) -> dict[str, Any]:
    """The reference schedule of a strategy, shrunk in proportion for shorter runs."""
    ratio, mcmc = min(1.0, iterations / REFERENCE_ITERATIONS), strategy == "mcmc"
    return {
        "max_gaussians": MCMC_SIZE if mcmc else None,
        "sh_interval": max(1, round(1000 * ratio)),
        "densify_from": max(50, round(500 * ratio)),
        "densify_until": round((25_000 if mcmc else 15_000) * ratio),
        "densify_every": 100 if mcmc else max(50, round(100 * ratio**0.5)),
        "anneal": 1.0 if mcmc else min(MOST_ANNEAL, ratio**-0.5),
    }
