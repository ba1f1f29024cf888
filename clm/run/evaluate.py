"""Held-out quality: PSNR and SSIM per view, as it is and colour-corrected, rendered out of core through training's own arena."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clm.camera import Camera
from clm.errors import ClmError, ResourceError
from clm.files import write_json
from clm.image.colour_fit import colour_corrected
from clm.pictures import file_stems, save_png, to_uint8
from clm.progress import counted
from clm.render import Render, metrics
from clm.run.events import Emit, Evaluated, Message, reporter
from clm.run.figures import FIGURES, split_figures
from clm.run.photos import FirstFew, Photos
from clm.run.residence import Residence
from clm.run.schedule import Schedule
from clm.scene import CorruptImage, ImageCache, Scene

_TRAIN_SAMPLE = 8  # training views measured for comparison with the held-out ones


def measure_views(
    render: Callable[[Camera], Render],
    scene: Scene,
    images: ImageCache,
    views: Sequence[int] | np.ndarray,
    emit: Emit,
    folder: Path | None = None,
    skip: tuple[type[ClmError], ...] = (CorruptImage,),
) -> dict[str, Any]:
    """`split_figures` of views, each as it is and after `colour_corrected`; renders are saved to `folder` if given.

    A view that raises one of `skip` is left out with a warning; other errors pass. The first few that are left out are
    named, the others counted.
    """
    per_view: dict[str, dict[str, float]] = {}
    left_out = FirstFew(lambda text: emit(Message(text, "warning")))
    stems = file_stems([view.name for view in scene.views]) if folder is not None else []
    for index in counted(views, "evaluating", len(views), "views", reporter(emit)):
        view = scene.views[index]
        try:
            photo, mask = images.get(index), images.mask(index)
            image = render(view.camera)
        except skip as error:
            left_out.add(f"{view.name} is not evaluated: {error}")
            continue
        figures: tuple[float, ...] = metrics(image.rgb, photo, mask)
        if any(map(math.isnan, figures)):
            why = "its mask leaves no pixel" if mask is not None and not mask.any() else "its render is not finite"
            left_out.add(f"{view.name} is not evaluated: {why}.")
            continue
        figures += metrics(colour_corrected(image.rgb, photo, mask), photo, mask)
        per_view[view.name] = dict(zip(FIGURES, figures, strict=True))
        if folder is not None:
            save_png(folder / f"{stems[index]}.png", to_uint8(image.rgb))
    if left_out.more:
        emit(Message(f"Not evaluated either: {left_out.more} more of {len(views)} views.", "warning"))
    return split_figures(per_view)


class Evaluation:
    """Measures the test views of a run, and a sample of its training views."""

    def __init__(
        self, scene: Scene, photos: Photos, schedule: Schedule, residence: Residence, folder: Path, emit: Emit
    ):
        self._scene, self._photos, self._schedule, self._residence = scene, photos, schedule, residence
        self._folder, self._emit = folder, emit

    @property
    def due(self) -> bool:
        """Whether one is due after the last batch."""
        return self._schedule.crossed(self._schedule.config.eval_every)

    def run(self) -> dict[str, Any]:
        """Write `eval/step_N/` and `metrics.json`; returns what is in it."""
        image, views = self._schedule.image, self._scene.train
        folder = self._folder / "eval" / f"step_{image}"
        sample = np.unique(np.linspace(0, len(views) - 1, min(_TRAIN_SAMPLE, len(views))).astype(int))
        # Rows move until the end, so a view may have outgrown the budget: that costs its figure, never the trained model.
        skip = (CorruptImage, ResourceError)
        measure = partial(
            measure_views, self._residence.renderer(), self._scene, self._photos.cache, emit=self._emit, skip=skip
        )
        test = measure(self._scene.test, folder=folder) if len(self._scene.test) else None
        train = measure(views[sample])
        result = {"iteration": image, "num_gaussians": self._residence.rows, "test": test, "train": train}
        write_json(folder / "metrics.json", result)
        write_json(self._folder / "metrics.json", result)
        shown, split = (test, "test") if test else (train, "train")
        if shown["per_view"]:
            count, corrected = len(shown["per_view"]), shown["psnr_colour_corrected"]
            self._emit(Evaluated(image, split, shown["psnr"], shown["ssim"], count, shown["median"]["psnr"], corrected))
        return result
