"""A visit to a run while it trains: what its viewers see of it, and what their buttons do to it.

The run is never touched from another thread. Buttons leave a wish; the training loop asks between two batches whether there is
one (`clm.run.loop.Visitor`) and has it served there, on its own thread: pictures, figures, a save by the run's own saver, a pause
as long as it lasts, and a stop as the first signal asks for it. Whatever fails here ends the visit, never the run.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from clm.errors import ClmError
from clm.event import Event
from clm.report.curves import Curves, take
from clm.run.events import BatchDone, Emit, Evaluated, Finished, Message, Started, Working
from clm.run.stopping import StopRequest
from clm.view.easel import Easel

if TYPE_CHECKING:
    from clm.run.open import Run

LANES = ("load", "compute", "send_back", "update", "disk", "plan")
_EVERY = 1.0  # seconds between figures that a run is asked for
_ALONE = 20.0  # seconds that a pause lasts when nobody looks any more
_MOST_LINGERING = (
    0.5  # seconds that a batch waits for a camera that moves, at most; never longer than the last one took
)


@dataclass(frozen=True)
class Status:
    """How a run is doing. bytes: (now, budget). lanes: busy seconds of each per second of the batches since the last status."""

    image: int = 0
    iterations: int = 0
    gaussians: int = 0
    loss: float | None = None
    psnr: float | None = None
    rate: float | None = None  # images per second
    device_bytes: tuple[int, int] | None = None
    host_bytes: tuple[int, int] | None = None
    disk_bytes: int = 0
    lanes: dict[str, float] = field(default_factory=dict)
    doing: str = ""  # work beside training steps
    over: bool = False


class Visit:
    """Invariant: `run` is only used inside `serve`, on the thread that trains."""

    def __init__(self, easel: Easel, stop: StopRequest, emit: Emit, curves: Curves | None = None):
        """emit: for what the run's own consumers should know. curves: of the run until now."""
        self.easel, self.curves = easel, curves or Curves()
        self.say: Callable[[str], None] = lambda text: None  # to all viewers
        self.lock = threading.Lock()  # of curves
        self.status = Status()
        self._stop, self._emit = stop, emit
        self._last_batch: dict[str, Any] | None = None
        self._paused = self._save = self._failed = False
        self._seen, self._left = 0.0, 0.0  # when the run was asked for figures, and when it last went on
        self._before: tuple[float, dict[str, float]] = 0.0, {}  # seconds of batches, of lanes, when it was asked

    # ---- buttons, from any thread ----

    @property
    def paused(self) -> bool:
        return self._paused

    def pause(self, paused: bool) -> None:
        self._paused = paused
        self.easel.wake()

    def save(self) -> None:
        self._save = True
        self.easel.wake()

    def stop(self) -> None:
        self._stop.ask()
        self.easel.wake()

    # ---- events of the run ----

    def __call__(self, event: Event) -> None:
        """A consumer: what happens goes into the curves and the status."""
        try:
            self._hear(event)
        except Exception as error:
            self._fail(error)

    def _hear(self, event: Event) -> None:
        status = self.status
        if isinstance(event, Started):
            status = replace(status, image=event.iteration, iterations=event.iterations, gaussians=event.num_gaussians)
        elif isinstance(event, BatchDone):
            loss = status.loss
            if math.isfinite(event.loss):
                loss = event.loss if loss is None else 0.95 * loss + 0.05 * event.loss
            status = replace(status, image=event.iteration, gaussians=event.num_gaussians, loss=loss, doing="")
        elif isinstance(event, Evaluated):
            status = replace(status, psnr=event.psnr)
        elif isinstance(event, Working):
            self.status = replace(status, doing="" if event.done == event.total > 0 else event.what)
            return  # these are not in events.jsonl either
        elif isinstance(event, Finished):
            status = replace(status, over=True, doing="")
            self.say("The run has stopped; what it saved goes on with `clm train --resume`." if event.interrupted else
                     "The run is over: `clm view` shows its result.")  # fmt: skip
        self.status = status
        with self.lock:
            self._last_batch = take(self.curves, event.record(), self._last_batch)

    # ---- on the thread that trains ----

    @property
    def wanted(self) -> bool:
        if self._failed or not (self._save or self._paused or self.easel.looked_at):
            return False
        return self._save or self._paused or self.easel.due or time.monotonic() - self._seen >= _EVERY

    def serve(self, run: Run) -> None:
        """Between two batches; returns when the run is to go on."""
        try:
            self._serve(run)
        except Exception as error:
            self._fail(error)
        self._left = time.monotonic()

    def _fail(self, error: Exception) -> None:
        if not self._failed:
            self._failed, self._paused = True, False
            why = str(error) or type(error).__name__
            self._emit(Message(f"the viewer failed and shows nothing more of the run, which goes on: {why}", "warning"))

    def _serve(self, run: Run) -> None:
        from clm.run.looking import look_at  # not where a finished model is shown: all of training would be imported

        self.easel.model, began = run.schedule.image, time.monotonic()
        lingering = min(_MOST_LINGERING, began - self._left) if self._left else 0.0
        render, looked_at = look_at(run), began
        if self._paused:
            self._emit(Message(f"paused by a viewer at image {run.schedule.image}"))
        was_paused = self._paused
        while True:
            if self._save:
                self._save = False
                self._save_now(run)
            now = time.monotonic()
            if now - self._seen >= _EVERY:
                self._look_round(run)
            painted = self.easel.paint(render)
            looked_at = now if self.easel.looked_at else looked_at
            if self._paused and (self._stop() or now - looked_at > _ALONE):
                self._paused = False
            if not (self._paused or (self.easel.moving and now - began < lingering)):
                break
            if not painted:
                self.easel.wait(0.05)  # for whoever moves; a signal is seen between two of these
        if was_paused:
            self._emit(Message(f"the pause at image {run.schedule.image} is over"))

    def _save_now(self, run: Run) -> None:
        """By the run's own saver. What it cannot save is said, and the run goes on."""
        before = self.status
        self.status = replace(before, doing="saving")
        try:
            run.saver.save()
        except ClmError as error:
            self.say(f"Not saved: {error}")
            self._emit(Message(f"a viewer wanted a checkpoint, which was not saved: {error}", "warning"))
        else:
            self.say(f"Image {run.schedule.image} is saved.")
        self.status = replace(self.status, doing="")

    def _look_round(self, run: Run) -> None:
        """Figures of the run, as they are now."""
        self._seen = time.monotonic()
        residence, totals = run.residence, run.accounts.totals
        device, host, _ = residence.held_bytes()
        budgets = residence.budgets()
        seconds, lanes = totals.batch_seconds, {lane: getattr(totals.lanes, lane) for lane in LANES}
        before, lanes_before = self._before
        if (passed := seconds - before) > 0 and lanes_before:
            shares = {lane: max(0.0, lanes[lane] - lanes_before[lane]) / passed for lane in LANES}
        else:
            shares = self.status.lanes
        self._before = seconds, lanes
        rate = totals.images / seconds if seconds else None
        self.status = replace(
            self.status,
            rate=rate,
            device_bytes=(device, budgets[0]),
            host_bytes=(host + run.photos.bytes, budgets[1]),
            disk_bytes=totals.disk.disk_bytes if totals.disk else 0,
            lanes=shares,
        )
