"""Consumers of training events: a progress bar or plain lines, JSON lines on stdout, and `events.jsonl` in the run."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from clm.files import storage_failure
from clm.run.bars import PLAIN_EVERY, WorkBar, clock
from clm.run.events import (
    BatchDone,
    CheckpointSaved,
    Cleared,
    Densified,
    Emit,
    Evaluated,
    Event,
    Finished,
    LanesSampled,
    Message,
    OpacityReset,
    Relocated,
    Started,
    Working,
)
from clm.units import format_bytes


def fan_out(*consumers: Emit) -> Emit:
    """One consumer that passes every event on."""

    def emit(event: Event) -> None:
        for consumer in consumers:
            consumer(event)

    return emit


class EventLog:
    """`events.jsonl`: one JSON object per line, `type` first, flushed per line; a resumed run appends.

    The file is opened when training starts and takes along what was said before: a run that is refused leaves nothing.
    """

    def __init__(self, path: Path, *, append: bool):
        self._path, self._mode = path, "a" if append else "w"
        self._file: IO[bytes] | None = None
        self._early: list[str] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Working):
            return
        self._early.append(json.dumps({**event.record(), "time": round(time.time(), 3)}) + "\n")
        if self._file is None and isinstance(event, Started):
            self._file = self._open()
        if self._file is not None:
            self._append("".join(self._early).encode())
            self._early.clear()

    def _open(self) -> IO[bytes]:
        """Unbuffered. Half a line at the end, of a run that was killed, is cut off."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._mode == "a" and self._path.exists():
                with open(self._path, "rb+") as file:
                    content = file.read()
                    file.truncate(content.rfind(b"\n") + 1)
            return open(self._path, f"{self._mode}b", buffering=0)
        except OSError as error:
            raise storage_failure(error, self._path) or error from None

    def _append(self, lines: bytes) -> None:
        """All of it or nothing."""
        assert self._file is not None
        before = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(lines)
            while written < len(lines):
                written += self._file.write(lines[written:])
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(before)
            raise storage_failure(error, self._path) or error from None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def json_lines(event: Event) -> None:
    """`--json`: every event as a line on stdout."""
    print(json.dumps(event.record()), flush=True)


class Console:
    """The progress a person sees: a bar on a terminal, a line now and then otherwise. Sentences go to stderr."""

    def __init__(self, stream: IO[str] | None = None):
        self._stream = stream or sys.stderr
        self._bar: Any = None
        self._work = WorkBar(self._stream, self._say)
        self._unproven = False  # whether it was said that growth ends for lack of evidence
        self._refused: list[int] = []  # Gaussians that one densification wanted and the budget did not admit
        self._loss: float | None = None
        self._psnr: float | None = None
        self._began, self._start_iteration, self._last_line = time.perf_counter(), 0, 0.0
        self._total = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Message):
            self._say(f"warning: {event.text}" if event.level == "warning" else event.text)
        elif isinstance(event, Started):
            self._start(event)
        elif isinstance(event, BatchDone):
            self._batch(event)
        elif isinstance(event, Evaluated):
            self._psnr = event.psnr
            self._say(f"image {event.iteration}: {event.split} PSNR {event.psnr:.2f} dB, SSIM {event.ssim:.4f}")
        elif isinstance(event, Densified):
            self._refusal(event)
            self._no_evidence(event)
        elif isinstance(event, Cleared):
            self._cleared(event)
        elif isinstance(event, CheckpointSaved):
            self._say(f"saved {event.path}")
        elif isinstance(event, Finished):
            self._finish(event)
        elif isinstance(event, Working):
            self._work(event, position=int(self._bar is not None))
        elif not isinstance(event, OpacityReset | Relocated | LanesSampled):
            raise TypeError(f"unknown event {event}")

    def close(self) -> None:
        """Take bars away; what is said next has its own line."""
        self._work.close()
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _refusal(self, event: Densified) -> None:
        """Growth beyond the budget is said when it is refused first, and summed up at the end."""
        if event.refused and not self._refused:
            self._say(f"image {event.iteration}: {event.refused:,} Gaussians more were wanted than the budget admits")
        self._refused += [event.refused] * bool(event.refused)

    def _no_evidence(self, event: Densified) -> None:
        """Growth that ends by itself is said once: when fewer rows grow than may not."""
        if event.unproven > event.split and not self._unproven:
            self._unproven = True
            self._say(
                f"image {event.iteration}: growth slows down at {event.num_gaussians:,} Gaussians: {event.unproven:,} more would "
                "grow, but too little of them is seen from more than one place (grow_evidence)"
            )

    def _cleared(self, event: Cleared) -> None:
        if event.unseen or event.edges:
            self._say(
                f"image {event.iteration}: {event.unseen + event.edges:,} Gaussians are gone that would float in front of other "
                f"views: {event.unseen:,} that no photo shows, {event.edges:,} that one shows at its edge (prune_views)"
            )

    def _say(self, text: str) -> None:
        bar = self._bar if self._bar is not None else self._work.bar
        if bar is not None:
            bar.write(text, file=self._stream)  # above all bars
        else:
            print(text, file=self._stream, flush=True)

    def _start(self, event: Started) -> None:
        self._say(
            f"training on {event.train_views} views ({event.test_views} held out), {event.num_gaussians:,} Gaussians, "
            f"device {event.device}, offload {event.offload}"
        )
        self._began, self._start_iteration, self._total = time.perf_counter(), event.iteration, event.iterations
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=event.iterations, initial=event.iteration, unit="img", file=self._stream, dynamic_ncols=True
            )

    def _batch(self, event: BatchDone) -> None:
        self._loss = event.loss if self._loss is None else 0.95 * self._loss + 0.05 * event.loss
        facts = {
            "loss": f"{self._loss:.4f}",
            "psnr": f"{self._psnr:.2f}" if self._psnr is not None else "-",
            "gaussians": f"{event.num_gaussians:,}",
            "device": format_bytes(event.device_bytes),
            "hidden": f"{100 * event.hidden_fraction:.0f}%",
        }
        if event.disk_hit_rate is not None:
            facts["disk hits"] = f"{100 * event.disk_hit_rate:.0f}%"
        if self._bar is not None:
            self._bar.set_postfix(facts, refresh=False)
            self._bar.update(event.iteration - self._bar.n)
            return
        now = time.perf_counter()
        if now - self._last_line < PLAIN_EVERY and event.iteration < self._total:
            return
        self._last_line = now
        rate = (event.iteration - self._start_iteration) / max(now - self._began, 1e-9)
        eta = (self._total - event.iteration) / max(rate, 1e-9)
        told = ", ".join(f"{key} {value}" for key, value in facts.items())
        self._say(f"{event.iteration}/{self._total} images, {rate:.1f} img/s, ETA {clock(eta)}, {told}")

    def _finish(self, event: Finished) -> None:
        self.close()
        if len(self._refused) > 1:
            self._say(
                f"growth was refused {len(self._refused)} times, of up to {max(self._refused):,} Gaussians at once: "
                "--host-memory, --max-gaussians and the disk of --scratch set the budget"
            )
        state = "stopped" if event.interrupted else "done"
        self._say(f"{state} at image {event.iteration} after {clock(event.seconds)}, {event.num_gaussians:,} Gaussians")
