"""What a checkpoint says beside its arrays: read, checked, and made into the state of a run."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from clm.config import Config, from_dict
from clm.errors import ClmError
from clm.optim.schedules import Leg
from clm.ranks import ALONE, Ranks
from clm.run.arrays import Damaged
from clm.run.events import Emit, Message, reporter
from clm.run.exposure import SavedExposures
from clm.run.records import restored
from clm.run.restore import Loaded, load_sound_checkpoint
from clm.run.room import Room
from clm.run.schedule import Progress
from clm.run.totals import Totals

_SORTED = "new_rows_since_sort"  # which rows had in formats 1 and 2


class Saved(NamedTuple):
    """The state of a checkpoint, beside its arrays. `run`: the name of the run that wrote it, if it says."""

    run: str | None
    config: Config
    scene_scale: float
    progress: Progress
    totals: Totals
    exposures: SavedExposures | None = None

    @classmethod
    def parse(cls, state: dict[str, Any], source: str) -> Saved:
        """Raises Damaged where a value is none that a run writes."""
        run, scale = state.get("run"), state["scene_scale"]
        try:
            config = from_dict(state["config"], source)
        except ClmError as error:
            raise Damaged(f"its configuration is refused: {error.message.rstrip('.')}") from None
        first_leg = dataclasses.asdict(Leg.of(config, scale))  # checkpoints from before there were legs name none
        kept = {key: value for key, value in state["progress"].items() if key != _SORTED}
        progress = restored(Progress, {"leg": first_leg, **kept}, "progress")
        totals = restored(Totals, state["totals"], "totals")
        exposures = SavedExposures.parse(state["exposure"]) if "exposure" in state else None
        return cls(str(run) if run else None, config, scale, progress, totals, exposures)

    @property
    def last_stamp(self) -> int:
        """The largest stamp that a row can have."""
        return self.progress.leg.index(self.progress.step)


def load_saved(path: Path, emit: Emit, room: Room, ranks: Ranks = ALONE) -> Loaded[Saved]:
    """The checkpoint `path`, or the newest sound one before it (`load_sound_checkpoint`), with this rank's rows in `room`."""
    parse = partial(Saved.parse, source=str(path))
    return load_sound_checkpoint(path, parse, lambda text: emit(Message(text, "warning")), reporter(emit), room, ranks)
