"""Held-out quality: PSNR and SSIM per view, as it is and colour-corrected, and LPIPS where its weights are installed; rendered out
of core through training's own arena."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clm.camera import Camera
from clm.errors import ClmError, ResourceError
from clm.files import write_json
from clm.image.colour_fit import colour_corrected
from clm.image.lpips import Measure, installed_lpips
from clm.pictures import file_stems, save_png, to_uint8
from clm.progress import counted
from clm.ranks import ALONE, Ranks
from clm.render import Render, metrics
from clm.run.events import Emit, Evaluated, Message, reporter
from clm.run.figures import FIGURES, LPIPS, split_figures
from clm.run.photos import FirstFew, Photos
from clm.run.residence import Residence
from clm.run.schedule import Schedule
from clm.run.view import Views
from clm.scene import CorruptImage, ImageCache, Scene

Colour = tuple[float, float, float]
_BLACK: Colour = (0.0, 0.0, 0.0)
_TRAIN_SAMPLE = 8  # training views measured for comparison with the held-out ones


class _Measured(NamedTuple):
    """What became of a view: its figures, or why it has none."""

    view: int
    figures: dict[str, float] | None
    why: str = ""


def measure_views(
    render: Callable[[Camera], Render],
    scene: Scene,
    images: ImageCache,
    views: Sequence[int] | np.ndarray,
    emit: Emit,
    folder: Path | None = None,
    skip: tuple[type[ClmError], ...] = (CorruptImage,),
    background: Colour = _BLACK,
) -> dict[str, Any]:
    """`split_figures` of views, each as it is and after `colour_corrected`; renders are saved to `folder` if given. background:
    what `render` draws on, and what is seen through transparent photos.

    A view that raises one of `skip` is left out with a warning; other errors pass. The first few that are left out are
    named, the others counted.
    """
    return measure_groups(
        lambda cameras: render(cameras[0]), scene, images, views, emit, folder, skip, ALONE, background
    )


def measure_groups(
    render: Callable[[Sequence[Camera]], Render | None],
    scene: Scene,
    images: ImageCache,
    views: Sequence[int] | np.ndarray,
    emit: Emit,
    folder: Path | None = None,
    skip: tuple[type[ClmError], ...] = (CorruptImage,),
    ranks: Ranks = ALONE,
    background: Colour = _BLACK,
) -> dict[str, Any]:
    """As `measure_views`, by several ranks: each measures one view of a group at a time. render: of the cameras of a group this
    rank's. All of them get the figures, rank 0 saves the renders."""
    per_view: dict[str, dict[str, float]] = {}
    lpips = _lpips_or_none(emit)
    left_out = FirstFew(lambda text: emit(Message(text, "warning")))
    stems = file_stems([view.name for view in scene.views]) if folder is not None else []
    groups = [views[first : first + ranks.world] for first in range(0, len(views), ranks.world)]
    for group in counted(groups, "evaluating", len(views), "views", reporter(emit), len):
        members = [int(index) for index in group]
        measured, picture = _measure(render, scene, images, members, skip, ranks, lpips, background)
        for index, figures, why in ranks.gather(measured)[: len(group)]:
            if figures is None:
                left_out.add(f"{scene.views[index].name} is not evaluated: {why}")
            else:
                per_view[scene.views[index].name] = figures
        if folder is not None:
            pictures = [] if picture is None else [(np.array(measured.view), picture)]
            for saved, drawn in ranks.to_first(pictures):
                save_png(folder / f"{stems[int(saved)]}.png", drawn)
    if left_out.more:
        emit(Message(f"Not evaluated either: {left_out.more} more of {len(views)} views.", "warning"))
    return split_figures(per_view)


def _measure(
    render: Callable[[Sequence[Camera]], Render | None],
    scene: Scene,
    images: ImageCache,
    group: list[int],
    skip: tuple[type[ClmError], ...],
    ranks: Ranks,
    lpips: Measure | None,
    background: Colour,
) -> tuple[_Measured, np.ndarray | None]:
    """This rank's view of a group, and its picture [H, W, 3] u8."""
    cameras = [scene.views[index].camera for index in group]
    if ranks.rank >= len(group):
        render(cameras)  # its own rows of others' views
        return _Measured(-1, None), None
    index = group[ranks.rank]
    # Others wait for what this rank has of their views, whatever becomes of its own.
    image = None if ranks.alone else render(cameras)
    try:
        photo, mask = images.over(index, background)
        if image is None:
            image = render(cameras)
    except skip as error:
        return _Measured(index, None, str(error)), None
    assert image is not None, "a rank has its view of the group"
    figures: tuple[float, ...] = metrics(image.rgb, photo, mask)
    if any(map(math.isnan, figures)):
        why = "its mask leaves no pixel" if mask is not None and not mask.any() else "its render is not finite"
        return _Measured(index, None, f"{why}."), None
    figures += metrics(colour_corrected(image.rgb, photo, mask), photo, mask)
    named = dict(zip(FIGURES, figures, strict=True))
    if lpips is not None and not math.isnan(distance := lpips(image.rgb, photo, mask)):
        named[LPIPS] = distance
    return _Measured(index, named), to_uint8(image.rgb)


def _lpips_or_none(emit: Emit) -> Measure | None:
    """None, with a warning, where what is installed cannot be used: a run must not end for want of a figure."""
    try:
        return installed_lpips()
    except ClmError as error:
        emit(Message(f"LPIPS is not measured: {error}", "warning"))
        return None


class Evaluation:
    """Measures the test views of a run, and a sample of its training views."""

    def __init__(
        self,
        scene: Scene,
        photos: Photos,
        schedule: Schedule,
        residence: Residence,
        rendering: Views,
        folder: Path,
        emit: Emit,
    ):
        self._scene, self._photos, self._schedule, self._residence = scene, photos, schedule, residence
        self._rendering, self._folder, self._emit = rendering, folder, emit

    @property
    def due(self) -> bool:
        """Whether one is due after the last batch."""
        return self._schedule.crossed(self._schedule.config.eval_every)

    def run(self) -> dict[str, Any]:
        """Write `eval/step_N/` and `metrics.json`, at rank 0; returns what is in it, on every rank."""
        image, views = self._schedule.image, self._scene.train
        folder = self._folder / "eval" / f"step_{image}"
        sample = np.unique(np.linspace(0, len(views) - 1, min(_TRAIN_SAMPLE, len(views))).astype(int))
        # Rows move until the end, so a view may have outgrown the budget: that costs its figure, never the trained model.
        skip = (CorruptImage, ResourceError)
        measure = partial(
            measure_groups, self._rendering.render, self._scene, self._photos.cache,
            emit=self._emit, skip=skip, ranks=self._residence.ranks, background=self._schedule.still_background,
        )  # fmt: skip
        test = measure(self._scene.test, folder=folder) if len(self._scene.test) else None
        train = measure(views[sample])
        result = {"iteration": image, "num_gaussians": self._residence.rows, "test": test, "train": train}
        if self._residence.ranks.first:
            write_json(folder / "metrics.json", result)
            write_json(self._folder / "metrics.json", result)
        shown, split = (test, "test") if test else (train, "train")
        if shown["per_view"]:
            count, corrected = len(shown["per_view"]), shown["psnr_colour_corrected"]
            self._emit(Evaluated(image, split, shown["psnr"], shown["ssim"], count, shown["median"]["psnr"], corrected))
        return result
