"""What `events.jsonl` says, in bounded memory: a file of any length becomes a few hundred buckets of images.

Lines that are damaged are passed over. Where a run went on from a checkpoint, what it did again counts, and what it had done
beyond that does not.
"""

from __future__ import annotations

import json
import math
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MOST = 480  # buckets
_LARGE = 16 << 20  # bytes of events; of longer files only some batches are read
_WARNINGS = 30
_BATCH = b'{"type": "batch_done"'


@dataclass
class Bucket:
    """Sums over the batches that ended within a range of images."""

    batches: int = 0
    losses: int = 0  # batches whose loss is finite
    loss: float = 0.0
    images: float = 0.0
    seconds: float = 0.0
    gaussians: int = 0  # at the end

    def add(self, later: Bucket) -> None:
        for name in ("batches", "losses", "loss", "images", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(later, name))
        self.gaussians = later.gaussians


@dataclass
class Curves:
    """width: images of a bucket. buckets: by number; bucket k is of the images k * width + 1 to (k + 1) * width."""

    width: int = 1
    buckets: dict[int, Bucket] = field(default_factory=dict)
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # image, PSNR, as events say
    grown: dict[str, int] = field(default_factory=dict)  # sums of what densifications say
    resets: list[int] = field(default_factory=list)
    warnings: deque[str] = field(default_factory=lambda: deque(maxlen=_WARNINGS))
    begun: list[dict[str, Any]] = field(default_factory=list)  # `started`, once per call
    lanes: dict[str, Any] | None = None  # the last `lanes_sampled`
    last: int = 0  # image of the last batch

    def batch(self, image: int, bucket: Bucket) -> None:
        while (image - 1) // self.width >= _MOST:
            self._halve()
        self.buckets.setdefault((image - 1) // self.width, Bucket()).add(bucket)
        self.last = image

    def _halve(self) -> None:
        halved: dict[int, Bucket] = {}
        for k in sorted(self.buckets):
            halved.setdefault(k // 2, Bucket()).add(self.buckets[k])
        self.width, self.buckets = 2 * self.width, halved

    def forget_after(self, image: int) -> None:
        """The run went on from `image`."""
        self.buckets = {k: bucket for k, bucket in self.buckets.items() if k * self.width < image}
        self.last = min(self.last, image)
        self.evaluations = [(at, value) for at, value in self.evaluations if at <= image]
        self.resets = [at for at in self.resets if at <= image]

    def series(self, name: str) -> list[tuple[float, float]]:
        """(image, value) of `loss`, `gaussians` or `rate` (images per second), for the buckets that have one."""
        points: list[tuple[float, float]] = []
        for k in sorted(self.buckets):
            bucket = self.buckets[k]
            value = {
                "loss": bucket.loss / bucket.losses if bucket.losses else math.nan,
                "gaussians": float(bucket.gaussians),
                "rate": bucket.images / bucket.seconds if bucket.seconds > 0 and bucket.images else math.nan,
            }[name]
            if math.isfinite(value):
                points.append((min((k + 1) * self.width, self.last), value))
        return points


def read_curves(path: Path) -> Curves:
    """Of a run's `events.jsonl`; empty where there is none."""
    curves = Curves()
    try:
        every = 1 + path.stat().st_size // _LARGE
        with open(path, "rb") as file:
            batches, before = 0, None
            for line in file:
                is_batch = line.startswith(_BATCH)
                batches += is_batch
                if is_batch and batches % every:
                    continue
                try:
                    event = json.loads(line)
                    before = take(curves, event, before)
                except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
                    continue
    except OSError:
        pass
    return curves


def take(curves: Curves, event: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any] | None:
    """Count one event, as a line of `events.jsonl` has it; returns the last batch. before: the one until now, in this call of the
    run."""
    kind = event["type"]
    if kind == "batch_done":
        curves.batch(int(event["iteration"]), _bucket(event, before))
        return event
    if kind == "started":
        curves.begun.append(event)
        curves.forget_after(int(event["iteration"]))
        return None
    if kind == "evaluated":
        curves.evaluations.append((int(event["iteration"]), float(event["psnr"])))
    elif kind == "opacity_reset":
        curves.resets.append(int(event["iteration"]))
    elif kind == "lanes_sampled":
        curves.lanes = event
    elif kind == "message" and event["level"] == "warning":
        curves.warnings.append(str(event["text"]))
    elif kind not in ("message", "checkpoint_saved", "finished"):  # whatever a strategy does
        for key, value in event.items():
            if type(value) is int and key not in ("iteration", "num_gaussians", "pages"):
                curves.grown[key] = curves.grown.get(key, 0) + value
    return before


def _bucket(event: dict[str, Any], before: dict[str, Any] | None) -> Bucket:
    loss, seconds = event["loss"], float(event["seconds"])
    finite = isinstance(loss, int | float) and math.isfinite(loss)
    images = 0.0
    if before is not None and event["step"] > before["step"]:
        images = (event["iteration"] - before["iteration"]) / (event["step"] - before["step"])
    return Bucket(
        1, int(finite), float(loss) if finite else 0.0, images, seconds if images else 0.0, int(event["num_gaussians"])
    )
