"""What happens during training, as frozen values. The trainer emits them; bar, `events.jsonl` and tests consume them.

Those of a rebuild are the strategies' own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from clm.event import Event as Event
from clm.progress import Report
from clm.strategy.strategy import Cleared as Cleared
from clm.strategy.strategy import Densified as Densified
from clm.strategy.strategy import OpacityReset as OpacityReset
from clm.strategy.strategy import Relocated as Relocated


@dataclass(frozen=True)
class Message(Event):
    """A sentence for the user; level is `info` or `warning`."""

    text: str
    level: str = "info"


@dataclass(frozen=True)
class Started(Event):
    """Training begins (or goes on, when iteration > 0)."""

    iteration: int
    iterations: int
    num_gaussians: int
    train_views: int
    test_views: int
    device: str
    offload: str


@dataclass(frozen=True)
class BatchDone(Event):
    """One optimizer step. Seconds are of this batch; rows count Gaussians crossing to the device. disk_hit_rate: share of the
    pages asked for since the step before that were in host memory; None: no row is on disk."""

    step: int
    iteration: int
    loss: float
    num_gaussians: int
    seconds: float
    rows_loaded: int
    device_bytes: int
    hidden_fraction: float
    disk_hit_rate: float | None = None


@dataclass(frozen=True)
class LanesSampled(Event):
    """What the lanes did in one batch, ten times in a run. spans: [lane, name, turn, start, end], seconds from its begin."""

    iteration: int
    seconds: float
    spans: list[list[Any]]


@dataclass(frozen=True)
class Evaluated(Event):
    """Mean metrics over the held-out views (PSNR in dB); the median of their PSNR, and the mean of it after `colour_corrected`."""

    iteration: int
    split: str
    psnr: float
    ssim: float
    views: int
    median_psnr: float
    psnr_colour_corrected: float


@dataclass(frozen=True)
class CheckpointSaved(Event):
    iteration: int
    path: str


@dataclass(frozen=True)
class Working(Event):
    """Work beside training steps that may take seconds: `done` of `total`, in `unit`, as `clm.progress` says. These come by
    the thousand and are not kept in `events.jsonl`."""

    what: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True)
class Finished(Event):
    """The run ended; `interrupted` says it was stopped before its last image."""

    iteration: int
    interrupted: bool
    seconds: float
    num_gaussians: int


Emit = Callable[[Event], None]


def reporter(emit: Emit) -> Report:
    """Reports of work under way as events."""
    return lambda what, done, total, unit: emit(Working(what, done, total, unit))
