"""Random ways of resuming a tiny run: the property behind `test_legs.py`.

A run is stopped anywhere or trained to its end, then resumed with any number of images and any batch size, up to three
times. It always ends with a PLY of finite numbers; where neither changed, with the bits of the uninterrupted run.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clm.formats.ply_read import open_ply
from tests.demo_run import assert_same_model, run_demo, write_survey_scene

LONGEST, WIDEST = 60, 9  # images of a run, views of a batch
OPTIONS: dict[str, Any] = {"downscale": "1", "max_size": 32, "means_lr": 1e-3, "test_every": 4}
OPTIONS |= {"anneal": 3.0, "densify_from": 4, "densify_every": 12, "densify_until": 40, "grow_screen_gradient": 1e-5}


@dataclass(frozen=True)
class Part:
    """One start of a run: what is asked for, and after how many images it is asked to stop (None: never)."""

    iterations: int
    batch_size: int
    stop_at: int | None
    offload: str


@dataclass(frozen=True)
class Case:
    parts: tuple[Part, ...]

    @property
    def unchanged(self) -> bool:
        return len({(part.iterations, part.batch_size) for part in self.parts}) == 1


def tiny_scene(folder: Path) -> Path:
    """Nine views of 32x24 pixels, a dozen points: a run of 60 images takes some hundredths of a second."""
    return write_survey_scene(folder, side=3, points=12)


def random_case(seed: int) -> Case:
    """Two or three parts; in one case of three nothing but the placement changes."""
    rng, parts, reached = random.Random(seed), list[Part](), 0
    unchanged, count = rng.random() < 1 / 3, rng.randint(2, 3)
    iterations, batch_size = rng.randint(1, LONGEST), rng.randint(1, WIDEST)
    for k in range(count):
        if k and not unchanged:
            iterations = rng.choice([iterations, rng.randint(reached, LONGEST), LONGEST])
            batch_size = rng.choice([batch_size, rng.randint(1, WIDEST)])
        stops = k < count - 1 and rng.random() < 0.7
        stop_at = rng.randint(min(reached, iterations), iterations) if stops else None
        parts.append(Part(iterations, batch_size, stop_at, rng.choice(["none", "host"])))
        reached = iterations if stop_at is None else min(iterations, stop_at + batch_size)
        iterations = max(iterations, reached)
    return Case(tuple(parts))


def check_case(case: Case, data: Path, folder: Path) -> None:
    """Train the parts of `case` in `folder`; AssertionError where the property fails."""
    for k, part in enumerate(case.parts):
        given = {"iterations": part.iterations, "batch_size": part.batch_size, "offload": part.offload}
        run_demo(folder / "run", data=data, stop_at=part.stop_at, resume=k > 0, **{**OPTIONS, **given})
    last = case.parts[-1]
    ply = folder / "run" / "point_cloud" / f"iteration_{last.iterations}" / "point_cloud.ply"
    for geometry, colour in open_ply(ply).chunks(1 << 16):
        assert np.isfinite(geometry).all() and np.isfinite(colour).all()
    if case.unchanged:
        given = {"iterations": last.iterations, "batch_size": last.batch_size, "offload": "none"}
        run_demo(folder / "whole", data=data, **{**OPTIONS, **given})
        assert_same_model(folder / "run", folder / "whole")
