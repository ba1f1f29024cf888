"""Where a run is, and what follows from that: the optimizer's constants, the SH degree, the background, what is due."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clm.calendar import crossed
from clm.config import Config, parse_background, still_background
from clm.errors import ClmError
from clm.kernels.rows import AdamStep
from clm.optim.schedules import Leg, sh_degree_at
from clm.store.store import Store


@dataclass
class Progress:
    """What a checkpoint says about where the run is. `next_order`: views of the next batch in their decided order, when it
    was planned ahead."""

    leg: Leg  # of the schedule
    iteration: int = 0  # images
    step: int = 0  # optimizer steps done
    next_order: list[int] | None = None


class Schedule:
    """`progress`, and everything that is a function of it and of the configuration."""

    def __init__(self, config: Config, progress: Progress):
        self.config, self.progress = config, progress
        self.adam = progress.leg.adam()
        self._before = progress.iteration  # where the last batch began
        self._background = parse_background(config.background)
        self._rebuilt: Callable[[int, int], bool] = lambda before, now: False
        self._next_rebuild = self.image, self.step

    @staticmethod
    def first(config: Config, scene_scale: float, rows: int) -> Schedule:
        """Of a run that begins."""
        return Schedule(config, Progress(Leg.of(config, scene_scale, rows)))

    @staticmethod
    def resumed(
        config: Config, scene_scale: float, progress: Progress, store: Store, rows: int, source: Path
    ) -> Schedule:
        """Of a run that goes on from a checkpoint, `source`. Where the present schedule is not that of the checkpoint, every
        row of `store` is settled under the old one and a new leg begins. rows: of the model, all ranks together."""
        done, old = progress.iteration, progress.leg
        if done > config.iterations:
            raise ClmError(
                f"{source} is already at image {done}, beyond --iterations {config.iterations}.",
                f"Pass `--iterations {done}` to end there, or more.",
            )
        progress.leg = old.followed_by(Leg.of(config, scene_scale, rows, done), done, progress.step)
        if progress.leg is not old:
            store.settle(old.adam().at(old.index(progress.step) + 1), stamp=progress.leg.settled)
        return Schedule(config, progress)

    @property
    def image(self) -> int:
        """Training images done; the index of the next one."""
        return self.progress.iteration

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.progress.step

    @property
    def over(self) -> bool:
        return self.image >= self.config.iterations

    @property
    def sh_degree(self) -> int:
        return sh_degree_at(self.config, self.image)

    def foresee(self, rebuilt: Callable[[int, int], bool]) -> None:
        """rebuilt(before, now): whether a strategy rebuilds after the batch (before, now]; cull entries hold until then."""
        self._rebuilt, self._next_rebuild = rebuilt, (self.image, self.step)

    def views_of_batch(self, first: int) -> int:
        """How many views the batch has that begins at image `first`."""
        return min(self.config.batch_size_at(first), self.config.iterations - first)

    def rebuilds(self, before: int, now: int) -> bool:
        """Whether the store is rebuilt after the batch (before, now]: as was foreseen, or because a leg ends."""
        return self._rebuilt(before, now) or self.leg_ends(before, now)

    def leg_ends(self, before: int, now: int) -> bool:
        """Whether batches have another size after the batch (before, now]."""
        return self.config.batch_size_at(before) != self.config.batch_size_at(now)

    def begin_leg(self, store: Store) -> None:
        """Batches have another size from here on: every row is settled as of now."""
        old, size = self.progress.leg, self.config.batch_size_at(self.image)
        leg = old.followed_by(replace(old, batch_size=size), self.image, self.step)
        store.settle(self.next_step(), stamp=leg.settled)
        self.progress.leg, self.adam = leg, leg.adam()
        store.refresh(self.next_step())

    def advance(self, images: int, next_order: list[int] | None) -> None:
        """A batch over so many images is done; next_order: that of the next one, if it is decided."""
        self._before = self.image
        self.progress.iteration, self.progress.step = self.image + images, self.step + 1
        self.progress.next_order = next_order

    @property
    def last_batch(self) -> tuple[int, int]:
        """Its first image, and the one after its last."""
        return self._before, self.image

    def crossed(self, every: int | None) -> bool:
        """Whether the last batch crossed a multiple of `every` images."""
        return crossed(every or 0, self._before, self.image)

    def next_step(self) -> AdamStep:
        """Constants of the next optimizer step, for what needs rows as they are now: caught up to the step before it."""
        return self.adam.at(self._next_index, entries_until=self._entries_until())

    def training_step(self) -> AdamStep:
        """The next optimizer step. Everything else fetches exact colours, whatever `colour_bus` is."""
        views = self.views_of_batch(self.image)
        rounded = self.config.colour_bus == "bf16"
        return self.adam.at(self._next_index, views, rounded, self._entries_until())

    def next_reach(self) -> tuple[float, float]:
        """How far the next optimizer step can move a mean and a log-scale (`Adam.reach`)."""
        return self.adam.reach(self._next_index)

    def _entries_until(self) -> int:
        """Index of the step after which the store is next rebuilt, or of the last one: later rebuilds are looked for only then."""
        image, step = self._next_rebuild
        if image <= self.image:
            image, step, before = self.image, self.step, -1
            while image < self.config.iterations and not (image > self.image and self.rebuilds(before, image)):
                before, image, step = image, image + self.views_of_batch(image), step + 1
            self._next_rebuild = image, step
        return self.progress.leg.index(step)

    @property
    def _next_index(self) -> int:
        return self.progress.leg.index(self.step) + 1

    def background(self, image: int) -> tuple[float, float, float]:
        """Background of the `image`-th training image."""
        if self._background is not None:
            return self._background
        r, g, b = np.random.default_rng([self.config.seed, 1, image]).random(3)
        return float(r), float(g), float(b)

    @property
    def still_background(self) -> tuple[float, float, float]:
        """Of pictures that are not trained on."""
        return still_background(self.config)
