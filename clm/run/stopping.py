"""What ends long work from outside: signals, and readers of its output that go away.

Ctrl-C, SIGTERM and SIGHUP (a closed terminal; not under nohup) finish the batch that trains and save. A second one abandons
the batch, but never a save: that ends first. A viewer's button asks as the first one does. Output that nobody reads any more is
dropped; the run goes on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Whether the work was asked to stop. Invariant: KeyboardInterrupt is never raised while `saving` is entered."""

    def __init__(
        self,
        stopping: str = "stopping after this batch, then saving; once more abandons what is not saved",
        abandoning: str = "abandoning what was trained since the last checkpoint",
    ) -> None:
        """What is said at the first signal, and at the second."""
        self._stopping, self._abandoning = stopping, abandoning
        self.requested = False
        self._saving = False

    def __call__(self) -> bool:
        return self.requested

    def ask(self) -> None:
        """As the first signal does; from any thread, however often."""
        if not self.requested:
            self.requested = True
            _tell(self._stopping)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """A second signal changes nothing before this is left: the run stops after it anyway."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if not self.requested:
            self.ask()
        elif self._saving:
            _tell("the save in progress ends first")
        else:
            _tell(self._abandoning)
            raise KeyboardInterrupt

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals while inside; those that are ignored (nohup) stay so."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self._on_signal) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _tell(text: str) -> None:
    """A line on stderr, past all buffers: the signal may have come in the middle of a print. Nothing where there is no text."""
    if sys.__stderr__ is None or not text:
        return  # closed from the start: descriptor 2 may be any file
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode())


class _Outlasting:
    """A text stream whose reader may go away: what cannot be written is dropped, from then on everything."""

    def __init__(self, stream: Any):
        self._stream = stream if stream is not None else open(os.devnull, "w")  # noqa: SIM115  (none from the start)
        self._lost = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, call: Any, *words: str) -> None:
        if self._lost:
            return
        try:
            call(*words)
        except (OSError, ValueError):  # a closed pipe or terminal, a full disk, a closed file
            self._lost = True
            with suppress(OSError, ValueError):  # what is buffered must not fail again when the process ends
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)


@contextmanager
def outlasting_output() -> Iterator[None]:
    """stdout and stderr of the block drop what nobody reads, instead of raising."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Outlasting(stream) for stream in before)  # type: ignore[assignment]
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before
