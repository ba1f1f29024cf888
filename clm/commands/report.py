"""`clm report`: the page `report.html` of a run, finished or not, written anew from its files."""

from __future__ import annotations

from pathlib import Path

from clm.errors import ClmError
from clm.files import refuse_unwritable
from clm.report.facts import read_facts
from clm.report.page import NAME, write_report
from clm.run.begun import read_run_config
from clm.run.events import Emit, Message, reporter
from clm.scene import Scene
from clm.scene.open import open_scene


def report_run(run: Path, output: Path | None, data: Path | None, emit: Emit = lambda event: None) -> Path:
    """Write the report of a run; returns where. output: another place than `RUN/report.html`; data: where the run's scene is now.

    Without the scene there is a report all the same, without photos, and that is said."""
    if not run.is_dir():
        raise ClmError(f"No such directory: {run}.", "Pass the folder given to `clm train -o`.")
    read_facts(run)  # whether it is a run at all
    path = output or run / NAME
    refuse_unwritable(path)
    return write_report(run, _scene(run, data, emit), path)


def _scene(run: Path, data: Path | None, emit: Emit) -> Scene | None:
    try:
        before, config = read_run_config(run)
        return open_scene(data or before, config, report=reporter(emit))
    except ClmError as error:
        if data is not None:
            raise
        emit(Message(f"the report has no photos: {error.message} Say where the scene is with --data DIR.", "warning"))
        return None
