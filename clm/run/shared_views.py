"""The views of a batch where several ranks have the rows: each projects its own rows of all views, and rasterises some views.

A group of views is projected, its splats travel, each rank rasterises one and compares it with its photo, gradients travel back
(`clm.stream.network`); the plan says when (`clm.plan.residency`). What came of each view every rank is told at the end of the
batch, so that all of them decide the same: losses, photos that cannot be read, gradients of exposures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np

from clm.camera import Camera
from clm.plan.residency import Turn
from clm.render import Render
from clm.run.batches import NextBatch
from clm.run.exposure import Exposures
from clm.run.photos import Photos
from clm.run.residence import Residence
from clm.run.schedule import Schedule
from clm.run.view import Losses, Views
from clm.scene import Scene
from clm.stream.network import Group, Network
from clm.stream.view import drawn_on_host, render_turn

_PHOTO, _LOSS, _MATRIX = 0, 1, slice(2, 14)  # of a view, what came of it: [14] f64


def _nothing() -> None:
    """Instead of drawing: somebody else does."""


class SharedViews(Views):
    """As `Views`, with other ranks that have the other rows and do the same at the same time."""

    def __init__(
        self,
        scene: Scene,
        photos: Photos,
        schedule: Schedule,
        residence: Residence,
        exposures: Exposures,
        counted: Callable[[int], bool],
    ):
        super().__init__(scene, photos, schedule, residence, exposures, counted)
        self._ranks = residence.ranks
        self._network = Network(self._ranks, residence.rasterizer, residence.device)
        self._groups: list[Group] = []
        self._drawn: list[tuple[int, Any]] = []  # of this rank's views of a batch that had a photo: group, and loss

    def compute(self, batch: NextBatch) -> Losses:
        """Every view of a batch whose lanes have begun: project, render, send back, update."""
        lanes, views = self._residence.lanes, batch.planned.views
        self._groups = self._network.groups(len(views))
        self._drawn, before = [], self._network.sent.copy()
        for i, turn in enumerate(batch.plan.turns):
            lanes.compute(i, partial(self._take_turn, batch, turn))
            lanes.send_back(i)  # and update
        lanes.spans += self._network.spans
        self._network.spans = []
        self._residence.travelled.to_each += self._network.sent - before
        self._residence.travelled.images += len(views)
        return self._together(views, self._ranks.stacked(self._told()))

    def _take_turn(self, batch: NextBatch, turn: Turn, slots: Any) -> None:
        """What the device does in one turn, given the slots of its rows."""
        number, member = divmod(turn.position, self._ranks.world)
        group = self._groups[number]
        if turn.draws:
            self._draw_mine(batch, number)
        if turn.adds:
            self._network.returned(group)
        camera, degree = self._scene.views[turn.view].camera, self._schedule.sh_degree
        render_turn(
            group.projectors[member], self._residence.arena, turn, camera, degree, _nothing, slots
        )  # fmt: skip
        if turn.sends:
            self._network.send(group)

    def _draw_mine(self, batch: NextBatch, number: int) -> None:
        """Rasterise this rank's view of a group, compare it with its photo, and send the splats' gradients back."""
        group, rasterizer = self._groups[number], self._residence.rasterizer
        position, mine = group.first + self._ranks.rank, self._ranks.rank < group.views
        view = batch.planned.views[position] if mine else -1
        draw = self._draw(view, batch.first + position) if mine else None
        splats, counts = self._network.splats(group)
        if draw is not None:
            rasterizer.begin(self._scene.views[view].camera, self._schedule.sh_degree)
            rasterizer.put_splats(splats)
            self._drawn.append((number, draw()))
        self._network.send_back(group, counts, draw is not None)

    def _told(self) -> np.ndarray:
        """[groups, 14]: what came of this rank's views. Waits for the device, which has done all of them by now."""
        told = np.full((len(self._groups), _MATRIX.stop), np.nan)
        for (number, loss), gradient in zip_longest(self._drawn, self._exposures.gradients()):
            told[number, _PHOTO], told[number, _LOSS] = 1.0, float(loss)
            told[number, _MATRIX] = np.nan if gradient is None else gradient
        return told

    def _together(self, views: Sequence[int], told: np.ndarray) -> Losses:
        """What came of all views, told [world, groups, 14] by those who rasterised them: the same on every rank."""
        losses, gradients = Losses(), []
        for position, view in enumerate(views):
            number, rank = divmod(position, self._ranks.world)
            came = told[rank, number]
            if came[_PHOTO] == 1.0:
                losses.values.append((view, float(came[_LOSS])))
                gradients.append((view, came[_MATRIX].reshape(3, 4)))
            elif rank != self._ranks.rank:
                self._photos.unread(view, f"rank {rank} cannot read it")
        self._exposures.give(gradients)
        self._last = losses
        return losses

    # ---- pictures that are not trained on ----

    def render(self, cameras: Sequence[Camera]) -> Render | None:
        """Of one camera for each rank, or fewer: this rank's own, on the host; None where there is none."""
        residence, rank = self._residence, self._ranks.rank
        (group,) = self._network.groups(len(cameras))
        for camera, projector in zip(cameras, group.projectors, strict=True):
            residence.through_arena(projector, camera)
        self._network.send(group)
        splats, _ = self._network.splats(group)
        if rank >= len(cameras):
            return None
        residence.rasterizer.begin(cameras[rank], self._schedule.sh_degree)
        residence.rasterizer.put_splats(splats)
        return drawn_on_host(residence.rasterizer, residence.device, self._schedule.still_background)

    def close(self) -> None:
        self._network.close()
