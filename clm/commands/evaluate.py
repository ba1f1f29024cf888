"""`clm eval`: metrics of a run from the PLY it wrote and the photos it was trained on, or of any model on any scene."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clm.config import Config, still_background
from clm.errors import ClmError
from clm.files import finite, refuse_unwritable, write_json
from clm.formats.model import ModelFile, image_of_ply
from clm.run.begun import read_run_config, read_split, scene_of_run, with_split
from clm.run.evaluate import measure_views
from clm.run.events import Emit, reporter
from clm.run.figures import in_words
from clm.run.viewing import Budgets, loaded_store, model_renderer
from clm.scene import ImageCache, Scene
from clm.scene.georef import read_georef
from clm.scene.open import open_scene
from clm.settings import load_config
from clm.units import parse_bytes
from clm.values import flag_of


@dataclass(frozen=True)
class _Judged:
    """A model, the photos it is held against, and where figures and renders go (None: nowhere)."""

    model: ModelFile
    scene: Scene
    config: Config
    folder: Path | None
    iteration: int


def evaluate_model(
    path: Path,
    split: str,
    budgets: Budgets,
    emit: Emit = lambda event: None,
    data: Path | None = None,
    flags: dict[str, Any] | None = None,
    config_file: Path | None = None,
) -> dict[str, Any]:
    """The figures of a split with the keys of `metrics.json`; those of a run and its renders are also written to `eval/step_N/`.

    data: the scene, of a run where it was moved. flags, config_file: how the scene is read for a model without a run; one that
    has a run is seen as it was trained."""
    if split not in ("test", "train"):
        raise ClmError(f"--split is `{split}`.", "Use test or train.")
    given = sorted(flag_of(name) for name, value in (flags or {}).items() if value is not None)
    given += ["--config"] * (config_file is not None)
    if path.is_dir():
        if given:
            raise ClmError(f"{given[0]} is for a model without a run: {path} has its own.", f"Leave out {given[0]}.")
        judged = _of_run(path, budgets, emit, data)
    else:
        config = load_config(flags or {}, file=config_file)
        judged = _of_file(path, budgets, emit, data, config)
    return _measured(judged, split, budgets, emit)


def _of_run(run: Path, budgets: Budgets, emit: Emit, data: Path | None) -> _Judged:
    before, config = read_run_config(run)
    model = budgets.open(run, emit)
    data = data or scene_of_run(run, before, f"clm eval {run} --data DIR")
    scene = with_split(open_scene(data, config, test_list=None, report=reporter(emit)), read_split(run, config))
    iteration = image_of_ply(model.ply)
    return _Judged(model, scene, config, run / "eval" / f"step_{iteration}", iteration)


def _of_file(path: Path, budgets: Budgets, emit: Emit, data: Path | None, config: Config) -> _Judged:
    model = budgets.open(path, emit)
    if data is None:
        raise ClmError(f"{path} does not say which scene it is of.", f"Say it: `clm eval {path} --data SCENE`.")
    scene = open_scene(data, config, report=reporter(emit))
    origin = read_georef(path.parent / "georef.json")
    if (origin != scene.offset).any():
        raise ClmError(
            f"The origin of {path} is at {origin.tolist()} of the world, that of {data} at {scene.offset.tolist()}.",
            f"Write georef.json, with the offset that was subtracted from the model, into {path.parent}.",
        )
    return _Judged(model, scene, config, None, image_of_ply(path))


def _measured(judged: _Judged, split: str, budgets: Budgets, emit: Emit) -> dict[str, Any]:
    model, scene, config = judged.model, judged.scene, judged.config
    views = scene.test if split == "test" else scene.train
    if not len(views):
        raise ClmError(f"No views are held out (test_every {config.test_every}).", "Use --split train.")
    if judged.folder is not None:
        refuse_unwritable(judged.folder / f"{split}.json")
    background = still_background(config)
    memory = budgets.host(emit, parse_bytes(config.image_cache), sum(scene.views[k].nbytes for k in views))
    with (
        loaded_store(model, memory, budgets.folder(model.run or model.ply), emit) as store,
        closing(ImageCache(scene, memory.photos)) as images,
    ):
        render = model_renderer(model, store, memory, background, budgets.gpu_memory, emit)
        result = measure_views(render, scene, images, views, emit, judged.folder, background=background)
    if not result["per_view"]:
        raise ClmError(f"None of the {len(views)} {split} images could be read.", "See the warnings.")
    figures = {"iteration": judged.iteration, "num_gaussians": model.rows.count, split: result}
    if judged.folder is not None:
        write_json(judged.folder / f"{split}.json", figures)
    return {**figures, "test": figures.get("test"), "train": figures.get("train")}


def format_figures(figures: dict[str, Any], split: str, as_json: bool) -> str:
    """Figures as JSON, or in words."""
    if as_json:
        return json.dumps(finite(figures), indent=2)
    return "\n".join(in_words(split, figures[split]))
