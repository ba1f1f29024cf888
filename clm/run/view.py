"""What is done for one training view: rasterise, compare with the photo, and back down to gradients in the arena.

A view may take several turns (`clm.plan.residency`). A turn for which the device has no memory is repeated in a smaller
arena; where that is impossible the batch goes on without the view, and says so at its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from clm.camera import Camera
from clm.errors import ClmError, OutOfDeviceMemory
from clm.plan.residency import Turn
from clm.render import Render, Target, compare_and_differentiate
from clm.run.batches import NextBatch
from clm.run.exposure import Exposures
from clm.run.photos import Photos
from clm.run.residence import Residence
from clm.run.schedule import Schedule
from clm.scene import Scene
from clm.stream.view import render_turn

Draw = Callable[[], Any]


def _nothing(_slots: Any) -> None:
    """Instead of a turn of a view that has no photo, or no memory."""


@dataclass
class Losses:
    """Of the views of one batch that had a photo, by view id; `failed`: why a view could not be computed at all."""

    values: list[tuple[int, Any]] = field(default_factory=list)  # floats, or what becomes one
    failed: OutOfDeviceMemory | None = None

    @property
    def mean(self) -> float:
        """Over the finite ones; NaN where there is none. Waits for the device."""
        finite = [float(loss) for _, loss in self.values if math.isfinite(float(loss))]
        return sum(finite) / len(finite) if finite else math.nan

    @property
    def not_finite(self) -> tuple[int, float] | None:
        """The first view whose loss is not finite."""
        return next(((view, float(loss)) for view, loss in self.values if not math.isfinite(float(loss))), None)


class Views:
    """Renders the training views of a batch through the lanes of a residence."""

    def __init__(
        self,
        scene: Scene,
        photos: Photos,
        schedule: Schedule,
        residence: Residence,
        exposures: Exposures,
        counted: Callable[[int], bool],
    ):
        """counted(image): whether growth will ask how many pixels its rows explain."""
        self._scene, self._photos, self._schedule, self._residence = scene, photos, schedule, residence
        self._exposures, self._counted = exposures, counted
        self._last = Losses()  # of the last batch

    def compute(self, batch: NextBatch) -> Losses:
        """Every view of a batch whose lanes have begun: render, send back, update."""
        losses, plan, i, image = Losses(), batch.plan, 0, batch.first
        draw: Draw | None = None  # of the view under way
        while i < len(plan.turns):
            turn, lanes = plan.turns[i], self._residence.lanes
            if turn.begins:
                draw = self._draw(turn.view, image)
            loss, failure = self._attempt(i, turn, draw)
            if failure is not None:
                rest = self._residence.shrink_arena(plan, i)
                if rest is not None:
                    plan, i = rest, 0
                    continue
                losses.failed, draw = losses.failed or failure, None
                lanes.compute(i, _nothing)
            if loss is not None:
                losses.values.append((turn.view, loss))
            lanes.send_back(i)  # and update
            i, image = i + 1, image + turn.renders
        self._last = losses
        return losses

    def _attempt(self, i: int, turn: Turn, draw: Draw | None) -> tuple[Any, OutOfDeviceMemory | None]:
        """What turn i comes to: the loss where it renders; or why not. Of a failed turn nothing stays, neither its work nor
        the frames of a traceback, because they hold the arena whose memory the next try needs."""
        try:
            return self._residence.lanes.compute(i, self._work(turn, draw)), None
        except OutOfDeviceMemory as error:
            return None, error.with_traceback(None)

    def _work(self, turn: Turn, draw: Draw | None) -> Callable[[Any], Any]:
        """What the device does in a turn, given the slots of its rows."""
        if draw is None:
            return _nothing
        camera, degree = self._scene.views[turn.view].camera, self._schedule.sh_degree
        return partial(render_turn, self._residence.rasterizer, self._residence.arena, turn, camera, degree, draw)

    def _draw(self, view: int, image: int) -> Draw | None:
        """What is done with the splats of a view once they are all there: rasterise, compare, and back down to them; it
        returns the loss. None where the photo cannot be read."""
        background = self._schedule.background(image)
        pair = self._photos.of(view, self._exposures.seen(view, background))
        if pair is None:
            return None
        exposure = self._exposures.of(view)
        counted = self._counted(image)
        target = Target(*pair, background, self._schedule.config.ssim_weight, counted, exposure)
        return partial(compare_and_differentiate, self._residence.rasterizer, target)

    def render(self, cameras: Sequence[Camera]) -> Render | None:
        """Of the next camera, from the rows as they are now: (`SharedViews.render`)."""
        (camera,) = cameras
        return self._residence.renderer()(camera)

    def close(self) -> None:
        """Nothing of it lives longer than a batch."""

    def why_to_stop(self) -> ClmError | None:
        """What a run cannot go on with after its last batch."""
        vanished = self._photos.vanished()
        if self._last.failed is not None or vanished is not None or self._last.not_finite is None:
            return self._last.failed or vanished
        view, value = self._last.not_finite
        return ClmError(
            f"The loss is {value} at step {self._schedule.step}, image {self._scene.views[view].name}.",
            "The state without that image is saved; lower the learning rates or remove the image, then run again with "
            "--resume.",
        )
