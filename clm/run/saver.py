"""When a run is saved, and what: parts say what of them a checkpoint must hold, this asks them and writes it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

from clm.config import to_dict
from clm.errors import ClmError, ResourceError
from clm.run.accounts import Accounts
from clm.run.checkpoint import save_checkpoint
from clm.run.events import CheckpointSaved, Emit, Message, reporter
from clm.run.exposure import Exposures
from clm.run.residence import Residence
from clm.run.schedule import Schedule
from clm.run.segments import Kept
from clm.run.several import of_all_ranks

SAVE_SECONDS = 600.0  # of training between two checkpoints, unless --save-every says otherwise
_SAVE_SHARE = 0.05  # of the time at most goes into such saves


class Saver:
    """Writes `checkpoints/step_N`. A save never changes the model."""

    def __init__(
        self,
        folder: Path,
        schedule: Schedule,
        residence: Residence,
        exposures: Exposures,
        accounts: Accounts,
        scene_scale: float,
        emit: Emit,
    ):
        self.folder = folder
        self._schedule, self._residence, self._exposures, self._accounts = schedule, residence, exposures, accounts
        self._scale, self._emit = scene_scale, emit
        self._name = residence.ranks.of_first(
            secrets.token_hex(8)
        )  # of this run among others; its checkpoints carry it
        self._saved: Path | None = None  # the checkpoint of the newest state that is saved
        self._kept: Kept | None = None  # the one that a save may link pages of
        self._undisturbed: Callable[[], AbstractContextManager[None]] = nullcontext
        self._last, self._seconds = time.perf_counter(), 0.0

    def goes_on_from(self, name: str | None, checkpoint: Path | None, kept: Kept | None) -> None:
        """The run is that of a checkpoint; name: as it says; kept: where it has this rank's pages, if they can be linked."""
        self._name, self._saved, self._kept = name or self._name, checkpoint, kept

    def begin(self, undisturbed: Callable[[], AbstractContextManager[None]]) -> None:
        """Training begins now. undisturbed: entered while a checkpoint is written, which nothing may interrupt."""
        self._undisturbed, self._last = undisturbed, time.perf_counter()

    @property
    def due(self) -> bool:
        """Whether a checkpoint is due after the last batch."""
        every = self._schedule.config.save_every
        if every is not None:
            return self._schedule.crossed(every)
        ranks, waited = self._residence.ranks, time.perf_counter() - self._last
        return ranks.any(ranks.first and waited >= max(SAVE_SECONDS, self._seconds / _SAVE_SHARE))

    def save(self) -> None:
        """Checkpoint the run as it is between two batches, unless that very state is saved."""
        if self._saved == self.folder / f"step_{self._schedule.image}":
            return
        with self._undisturbed():
            began = time.perf_counter()
            self._save()
            self._last = time.perf_counter()
            self._seconds = self._last - began

    @contextmanager
    def kept_when_refused(self) -> Iterator[None]:
        """Between batches: a budget that does not suffice ends the run, with its state saved."""
        try:
            yield
        except ResourceError as error:
            if self._residence.ranks.alone or getattr(error, "of_all_ranks", False):
                self.save()  # a rank that is refused alone cannot: the others are elsewhere
            raise

    def stop_for(self, error: ClmError | None) -> None:
        """End the run for `error`, if it is one, with its state saved."""
        if error is not None:
            self.save()
            raise of_all_ranks(error)

    def _save(self) -> None:
        image, config = self._schedule.image, self._schedule.config
        self._accounts.count_seconds()
        state = {
            "run": self._name,
            "config": to_dict(config),
            "scene_scale": self._scale,
            "progress": asdict(self._schedule.progress),
            "totals": self._accounts.totals.state(),
            **self._exposures.state(),
        }
        with self._residence.whole() as store:
            self._kept = save_checkpoint(
                self.folder, image, state, store, config.keep_checkpoints, self._warn, reporter(self._emit), self._kept,
                self._residence.ranks,
            )  # fmt: skip
        self._saved = self._kept.path
        if self._residence.ranks.first:
            self._exposures.write(self.folder.parent, image)
        self._emit(CheckpointSaved(image, str(self._saved)))

    def _warn(self, text: str) -> None:
        self._emit(Message(text, "warning"))
