"""`clm eval`: metrics of a finished run, from the PLY it wrote and the photos it was trained on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from clm.commands.render import loaded_store, model_renderer
from clm.commands.train import open_scene
from clm.config import Config, from_dict, parse_background
from clm.errors import ClmError
from clm.files import write_json
from clm.gaussians.model import open_model
from clm.plan.budget import parse_bytes
from clm.scene import ImageCache
from clm.train.evaluate import measure_views
from clm.train.events import Emit, reporter


def read_run_config(run: Path) -> tuple[Path, Config]:
    """The data folder and the configuration that a run directory was trained with."""
    path = run / "config.yaml"
    if not path.exists():
        raise ClmError(f"{run} is not a run directory: {path} is missing.", "Pass the folder given to `clm train -o`.")
    try:
        values = yaml.safe_load(path.read_text())
        data = Path(values.pop("data"))
    except (yaml.YAMLError, AttributeError, KeyError, TypeError):
        raise ClmError(f"{path} is damaged.", "Restore it, or pass the PLY of the run instead.") from None
    return data, from_dict(values, str(path))


def evaluate_run(run: Path, split: str, gpu_memory: str, emit: Emit = lambda event: None) -> dict[str, Any]:
    """The figures of a split with the keys of `metrics.json`; they and renders are also written to `eval/step_N/`."""
    if split not in ("test", "train"):
        raise ClmError(f"--split is `{split}`.", "Use test or train.")
    data, config = read_run_config(run)
    model = open_model(run)
    scene = open_scene(data, config, report=reporter(emit))
    views = scene.test if split == "test" else scene.train
    if not len(views):
        raise ClmError(f"The run held out no views (test_every {config.test_every}).", "Use --split train.")
    iteration = re.sub(r"\D", "", model.ply.parent.name)
    folder = run / "eval" / f"step_{iteration}"
    background = parse_background(config.background) or (0.0, 0.0, 0.0)
    render = model_renderer(model, loaded_store(model, emit), background, parse_bytes(gpu_memory), emit)
    images = ImageCache(scene, parse_bytes(config.image_cache))
    try:
        result = measure_views(render, scene, images, views, emit, folder)
    finally:
        images.close()
    if not result["per_view"]:
        raise ClmError(
            f"None of the {len(views)} {split} images could be read.", "See the warnings of the training run."
        )
    figures = {"iteration": int(iteration), "num_gaussians": model.rows.count, split: result}
    write_json(folder / f"{split}.json", figures)
    return {**figures, "test": figures.get("test"), "train": figures.get("train")}


def format_figures(figures: dict[str, Any], split: str, as_json: bool) -> str:
    """Figures as JSON, or their means in a line."""
    if as_json:
        return json.dumps(figures, indent=2)
    means = figures[split]
    return f"{split}: PSNR {means['psnr']:.2f} dB, SSIM {means['ssim']:.4f} over {len(means['per_view'])} views"
