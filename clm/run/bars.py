"""Work beside training steps as a person or a program sees it: nothing for what is done at once, a bar with the time left
for what takes longer (`Working` events come by the thousand; most are dropped here).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import IO, Any

from clm.run.events import Emit, Event, Working

SHOW_AFTER = 2.0  # seconds that work may take before anything is shown of it
PLAIN_EVERY = 10.0  # seconds between lines where the stream is not a terminal
_JSON_EVERY = 1.0


def clock(seconds: float) -> str:
    """h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


class WorkBar:
    """One piece of work at a time: a bar on a terminal (below that of training, and gone when the work is done), lines
    elsewhere. Work of unknown length gets one sentence, from a thread, because whoever works cannot call meanwhile."""

    def __init__(self, stream: IO[str], say: Callable[[str], None]):
        self._stream, self._say = stream, say
        self._what: str | None = None
        self._began = self._last_line = 0.0
        self._spoken = False
        self.bar: Any = None  # while one is drawn
        self._timer: threading.Timer | None = None

    def __call__(self, event: Working, position: int = 0) -> None:
        """position: how many bars are above."""
        now = time.perf_counter()
        if event.what != self._what:
            self._begin(event, now)
        if event.done == event.total > 0:
            self.close()
        elif event.total and now - self._began >= SHOW_AFTER:
            self._show(event, now, position)

    def close(self) -> None:
        """Take away what is shown: the work is done, or has failed."""
        if self._timer is not None:
            self._timer.cancel()
        if self.bar is not None:
            self.bar.close()
        what, spoken = self._what, self._spoken
        self._what, self.bar, self._timer, self._spoken = None, None, None, False
        if spoken:
            self._say(f"{what}: done after {clock(time.perf_counter() - self._began)}")

    def _begin(self, event: Working, now: float) -> None:
        self.close()
        self._what, self._began, self._last_line = event.what, now, now
        if not event.total and event.done:
            self._say(f"{event.what} ...")
        elif not event.total:
            self._timer = threading.Timer(SHOW_AFTER, self._say, [f"{event.what} ..."])
            self._timer.daemon = True
            self._timer.start()

    def _show(self, event: Working, now: float, position: int) -> None:
        if self._stream.isatty():
            if self.bar is None:
                from tqdm import tqdm

                self.bar = tqdm(
                    desc=event.what, total=event.total, unit=f" {event.unit}", unit_scale=event.total > 100_000,
                    file=self._stream, dynamic_ncols=True, leave=False, position=position,
                )  # fmt: skip
                # As if it had been there from the beginning, so that the time left is right at once (tqdm's clock is another).
                self.bar.start_t -= now - self._began
                self.bar.last_print_t = self.bar.start_t
            self.bar.update(event.done - self.bar.n)
        elif now - self._last_line >= PLAIN_EVERY:
            left = (now - self._began) * (event.total - event.done) / event.done if event.done else 0.0
            self._say(f"{event.what}: {event.done / event.total:.0%}" + (f", ETA {clock(left)}" if event.done else ""))
            self._last_line, self._spoken = now, True


def sparse(consumer: Emit) -> Emit:
    """`consumer` for programs: every event but Working, and of that at most one a second, of work that takes longer."""
    what, began, last = None, 0.0, 0.0

    def emit(event: Event) -> None:
        nonlocal what, began, last
        if isinstance(event, Working):
            now = time.perf_counter()
            if event.what != what:
                what, began, last = event.what, now, 0.0
            finished = event.done == event.total > 0
            if now - began < SHOW_AFTER or (now - last < _JSON_EVERY and not finished):
                what = None if finished else what
                return
            what, last = None if finished else what, now
        consumer(event)

    return emit
