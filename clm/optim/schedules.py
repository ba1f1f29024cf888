"""Learning rates, betas and SH degree as functions of the training image (gsplat simple_trainer's values, RASTER.md).

A run is a sequence of legs. Within a leg batch size, run length and rates are fixed, so its optimizer steps can be
tabulated; a run that is resumed with others settles every row under the old tables and begins a new leg where it stands.
The moments stay as they are then: their bias corrections follow the decay that each of them really went through, and the
variance of the old batches is forgotten within a thousand images. Invariant: legs cover the images of a run without a gap.
"""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass

import numpy as np

from clm.config import Config
from clm.optim.adam import Adam, Betas
from clm.optim.mcmc import Mcmc
from clm.store.layout import GROUPS


@dataclass(frozen=True)
class Leg:
    """A stretch of a run under one schedule, from image `first_image` to image `iterations`."""

    batch_size: int
    iterations: int
    rates: tuple[float, ...]  # [6] at image 0 and batch size 1, in the order of `layout.GROUPS`
    means_final: float  # fraction of the rate of means that is left at image `iterations`
    first_image: int = 0
    first_step: int = 0  # optimizer steps of the run before this leg
    decayed_images: int = (
        0  # by so many images the moments had decayed before this leg; a smaller last batch counts whole
    )
    noise: float = 0.0  # of `Mcmc`, whose seed follows from this one and where the leg begins; all 0: there is none
    opacity_pull: float = 0.0
    scale_pull: float = 0.0
    noise_seed: int = 0
    anneal: float = 1.0  # the other rates go from so many times to a so-manieth of `rates`

    @staticmethod
    def of(config: Config, scene_scale: float, rows: int = 0, image: int = 0) -> Leg:
        """The first leg of a run of a model with so many rows, with batches as they are at an image. The rate of means scales with
        the scene."""
        rates = [float(getattr(config, f"{group}_lr")) for group in GROUPS]
        rates[0] *= scene_scale
        views = config.batch_size_at(image)
        leg = Leg(views, config.iterations, tuple(rates), config.means_lr_final, anneal=config.anneal or 1.0)
        if config.strategy != "mcmc":
            return leg
        size = max(config.max_gaussians or 1, rows)  # that it grows to
        return dataclasses.replace(
            leg,
            noise=config.noise_lr / scene_scale**2,  # gsplat's is for scenes of scale 1
            opacity_pull=config.opacity_reg / size,
            scale_pull=config.scale_reg / (3 * size),
            noise_seed=config.seed % 2**32,
        )

    def followed_by(self, next_one: Leg, image: int, step: int) -> Leg:
        """The leg that a run at `image`, after `step` steps, goes on with, when `next_one` is what its configuration says:
        this one if the schedule is the same."""
        begun = dataclasses.replace(
            next_one, first_image=self.first_image, first_step=self.first_step, decayed_images=self.decayed_images
        )
        if begun == self:
            return self
        decayed = self.decayed_images + (step - self.first_step) * self.batch_size
        return dataclasses.replace(next_one, first_image=image, first_step=step, decayed_images=decayed)

    @property
    def steps(self) -> int:
        """Optimizer steps of the leg: one per batch, the last one possibly smaller."""
        return max(0, -(-(self.iterations - self.first_image) // self.batch_size))

    @property
    def settled(self) -> int:
        """Index in the leg's tables at which it begins, which is the stamp of rows settled there: 0 in a run's first leg;
        later 1, because a stamp of 0 says that a row never had a gradient."""
        return int(self.first_step > 0)

    def index(self, step: int) -> int:
        """Where the leg's tables hold the state after `step` steps of the run."""
        return self.settled + step - self.first_step

    def learning_rates(self) -> np.ndarray:
        """[6, settled + steps + 2] f64, by index; the last one lies beyond the end of the leg (rows are caught up to the
        end by "the step after").

        All decay exponentially over the images of the run: means from their rate to `means_final` of it, the others from
        `anneal` times their rate to a part `1 / anneal` of it. Everything is multiplied by sqrt(batch size) (Grendel's rule;
        betas and eps follow in `Betas.for_batch`).
        """
        images = self.first_image + (np.arange(self.settled + self.steps + 2) - self.settled) * self.batch_size
        rates = np.repeat(np.array(self.rates)[:, None], len(images), axis=1)
        progress = np.clip(images / self.iterations, 0.0, 1.0)
        rates[0] *= self.means_final**progress
        rates[1:] *= self.anneal ** (1.0 - 2.0 * progress)
        return rates * self.batch_size**0.5

    def adam(self) -> Adam:
        """Tables of the leg's optimizer steps."""
        before = self.decayed_images / self.batch_size - self.settled
        return Adam(self.learning_rates(), Betas.for_batch(self.batch_size), before, self._mcmc)

    @property
    def _mcmc(self) -> Mcmc | None:
        if not (self.noise or self.opacity_pull or self.scale_pull):
            return None
        seed = zlib.crc32(f"{self.noise_seed} {self.first_step}".encode())
        return Mcmc(self.noise, self.opacity_pull, self.scale_pull, seed)


def sh_degree_at(config: Config, iteration: int) -> int:
    """Active spherical-harmonics degree: one more every `sh_interval` training images."""
    return min(config.sh_degree, iteration // max(config.sh_interval, 1))
