"""`clm eval`: metrics of a finished run, from the PLY it wrote and the photos it was trained on."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

from clm.config import parse_background
from clm.errors import ClmError
from clm.files import finite, write_json
from clm.formats.model import image_of_ply
from clm.run.begun import read_run_config, read_split, scene_of_run, with_split
from clm.run.evaluate import measure_views
from clm.run.events import Emit, reporter
from clm.run.figures import in_words
from clm.run.viewing import Budgets, loaded_store, model_renderer
from clm.scene import ImageCache
from clm.scene.open import open_scene
from clm.units import parse_bytes


def evaluate_run(
    run: Path, split: str, budgets: Budgets, emit: Emit = lambda event: None, data: Path | None = None
) -> dict[str, Any]:
    """The figures of a split with the keys of `metrics.json`; they and renders are also written to `eval/step_N/`.

    data: where the run's scene is now, if it was moved."""
    if split not in ("test", "train"):
        raise ClmError(f"--split is `{split}`.", "Use test or train.")
    before, config = read_run_config(run)
    model = budgets.open(run, emit)
    data = data or scene_of_run(run, before, f"clm eval {run} --data DIR")
    scene = with_split(open_scene(data, config, test_list=None, report=reporter(emit)), read_split(run, config))
    views = scene.test if split == "test" else scene.train
    if not len(views):
        raise ClmError(f"The run held out no views (test_every {config.test_every}).", "Use --split train.")
    iteration = image_of_ply(model.ply)
    folder = run / "eval" / f"step_{iteration}"
    background = parse_background(config.background) or (0.0, 0.0, 0.0)
    memory = budgets.host(emit, parse_bytes(config.image_cache), sum(scene.views[k].nbytes for k in views))
    with (
        loaded_store(model, memory, budgets.folder(run), emit) as store,
        closing(ImageCache(scene, memory.photos)) as images,
    ):
        render = model_renderer(model, store, memory, background, budgets.gpu_memory, emit)
        result = measure_views(render, scene, images, views, emit, folder)
    if not result["per_view"]:
        raise ClmError(
            f"None of the {len(views)} {split} images could be read.", "See the warnings of the training run."
        )
    figures = {"iteration": iteration, "num_gaussians": model.rows.count, split: result}
    write_json(folder / f"{split}.json", figures)
    return {**figures, "test": figures.get("test"), "train": figures.get("train")}


def format_figures(figures: dict[str, Any], split: str, as_json: bool) -> str:
    """Figures as JSON, or in words."""
    if as_json:
        return json.dumps(finite(figures), indent=2)
    return "\n".join(in_words(split, figures[split]))
