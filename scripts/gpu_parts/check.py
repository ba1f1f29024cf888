"""What every part of the check works with: which device, how large, and where its findings go."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clm.config import Config, load_config
from clm.run import session as session_module
from clm.run.loop import train_batch
from clm.run.session import Session
from clm.scene import Scene, load_scene
from clm.store.store import Store


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
    """Keeps the spans of a session: takes the place of its trace."""

    spans: list[Any] = field(default_factory=list)

    def add(self, spans: Any) -> None:
        self.spans.extend(spans)


def use_doubles() -> None:
    """From now on this process trains "on CUDA" with doubles."""
    import pytest
    import torch

    from clm.device.cuda import CudaDevice
    from clm.render.gsplat import GsplatRasterizer
    from scripts.doubles import gsplat_stub
    from scripts.doubles.cuda import Cuda

    torch.set_num_threads(1)
    Store.__init__.__kwdefaults__["block_rows"] = 32  # so that few rows have blocks to choose from
    gsplat_stub.install(pytest.MonkeyPatch())
    real = session_module.open_device

    def open_device(choice: str, *, antialiased: bool = False, absgrad: bool = False, say: Any = None) -> Any:
        if choice == "cpu":
            return real(choice, antialiased=antialiased, absgrad=absgrad)
        return CudaDevice(Cuda(), "cpu"), GsplatRasterizer(antialiased, absgrad)

    session_module.open_device = open_device


def open_session(check: Check, scene: Scene, config: Config, events: list[Any] | None = None) -> Session:
    return Session(scene, config, check.folder / "run", (events if events is not None else []).append)


def advance(session: Session, batches: int) -> list[float]:
    """Seconds of each of so many batches. A batch ends when its gradients are on the host: nothing is left to wait for."""
    seconds = []
    for _ in range(batches):
        began = time.perf_counter()
        train_batch(session)
        seconds.append(time.perf_counter() - began)
    return seconds


def outliers(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> float:
    """Fraction of values that differ by more than `tolerance`."""
    return float(np.mean(~(np.abs(ours - theirs) <= tolerance)))


def unlike(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> float:
    """Fraction of values that differ by more than `tolerance` times the largest of their column."""
    return float(np.mean(~(np.abs(ours - theirs) <= tolerance * (np.abs(theirs).max(axis=0) + 1e-12))))
