"""What every part of the check works with: which device, how large, and where its findings go."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clm.config import Config
from clm.device.interface import Device
from clm.plan.residency import Plan
from clm.render import Rasterizer
from clm.run.events import BatchDone
from clm.run.loop import train_batch
from clm.run.open import Run, open_run
from clm.scene import Scene, load_scene
from clm.settings import load_config
from clm.store import paged


@dataclass(frozen=True)
class Check:
    """The circumstances of one run of the check."""

    double: bool  # doubles in place of CUDA and gsplat: proves the script, measures nothing
    quick: bool
    scene_path: Path
    folder: Path  # scratch, gone afterwards
    budget: str  # --gpu-memory of the timed runs
    machine: str  # machine file that predictions are made for
    deadline: float  # time.monotonic of the end of this part's time

    @property
    def where(self) -> str:
        return "cpu" if self.double else "cuda"

    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def size(self, full: int, quick: int, double: int) -> int:
        return double if self.double else quick if self.quick else full

    def scene(self) -> Scene:
        return load_scene(self.scene_path, downscale=8 if self.double else "auto")

    def config(self, **options: Any) -> Config:
        """A fixed number of Gaussians, every SH band from the start, no checkpoints between; `options` override."""
        common: dict[str, Any] = {"device": "cuda", "densify_until": 0, "iterations": 20_000, "sh_interval": 1}
        if self.double:
            common["max_gaussians"] = 250
        return load_config({**common, "gpu_memory": self.budget, **options})

    def open(
        self,
        scene: Scene,
        config: Config,
        events: list[Any] | None = None,
        folder: str = "run",
        resume: Path | None = None,
        **parts: Any,
    ) -> AbstractContextManager[Run]:
        """A run on the device. folder: within the scratch folder; parts: the run's own `store` and `cache`."""
        emit, machine = (events if events is not None else []).append, self._doubles(config)
        return open_run(scene, config, self.folder / folder, emit, resume, machine=machine, **parts)

    def _doubles(self, config: Config) -> tuple[Device, Rasterizer] | None:
        """What stands in for CUDA and gsplat, where that is asked for."""
        if not self.double or config.device == "cpu":
            return None
        from clm.device.cuda import CudaDevice
        from clm.render.gsplat import GsplatRasterizer
        from scripts.doubles.cuda import Cuda

        return CudaDevice(Cuda(), "cpu"), GsplatRasterizer(config.antialias, config.absgrad)

    def synchronize(self) -> None:
        """Times on the host are read after the device has done what they time."""
        if not self.double:
            import torch

            torch.cuda.synchronize()

    def timed(self, work: Callable[[], object], repeats: int) -> float:
        """Median seconds of a call that was made once before."""
        seconds = []
        for _ in range(repeats + 1):
            self.synchronize()
            began = time.perf_counter()
            work()
            self.synchronize()
            seconds.append(time.perf_counter() - began)
        return float(np.median(seconds[1:]))

    def device_memory(self) -> tuple[int, int]:
        """(most bytes in use since the last view began, bytes that torch keeps from others, cached ones included).

        The rasteriser restarts the peak counter with every view; what is resident does not change from view to view."""
        if self.double:
            return 0, 0
        import torch

        return torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved()


@dataclass
class Findings:
    """What a part found so far; sent whenever it grows, so that a part that is stopped loses only what was under way."""

    send: Callable[[dict[str, Any]], None]
    figures: dict[str, Any] = field(default_factory=dict)
    expectations: list[dict[str, Any]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)  # markdown

    def expect(self, what: str, met: bool, seen: str) -> None:
        self.expectations.append({"what": what, "met": bool(met), "seen": seen})
        self._publish()

    def figure(self, name: str, value: Any, line: str = "") -> None:
        self.figures[name] = value
        if line:
            self.lines.append(line)
        self._publish()

    def _publish(self) -> None:
        self.send({"figures": self.figures, "expectations": self.expectations, "lines": self.lines})


@dataclass
class Spans:
    """Keeps the spans of a run: takes the place of its trace."""

    spans: list[Any] = field(default_factory=list)

    def add(self, spans: Any) -> None:
        self.spans.extend(spans)


def use_doubles() -> None:
    """From now on gsplat is the tests' double in this process, and few rows are several blocks."""
    import pytest
    import torch

    from scripts.doubles import gsplat_stub

    torch.set_num_threads(1)
    paged.PAGE_ROWS = 32  # so that few rows have blocks to choose from
    gsplat_stub.install(pytest.MonkeyPatch())


class Trained(NamedTuple):
    """A batch that is over."""

    seconds: float
    plan: Plan
    done: BatchDone


def advance(run: Run, batches: int) -> list[Trained]:
    """Train so many batches; raises what a run cannot go on with. A batch ends when its gradients are on the host: nothing is
    left to wait for."""
    trained = []
    for _ in range(batches):
        began = time.perf_counter()
        batch = run.batches.next()
        done = train_batch(run, batch)
        trained.append(Trained(time.perf_counter() - began, batch.plan, done))
        error = run.views.why_to_stop()
        if error is not None:
            raise error
    return trained


def outliers(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> float:
    """Fraction of values that differ by more than `tolerance`."""
    return float(np.mean(~(np.abs(ours - theirs) <= tolerance)))


def unlike(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> float:
    """Fraction of values that differ by more than `tolerance` times the largest of their column."""
    return float(np.mean(~(np.abs(ours - theirs) <= tolerance * (np.abs(theirs).max(axis=0) + 1e-12))))
