"""Checkpoints: everything a run needs to go on as if it had never stopped, in a folder that appears whole or not at all.

`checkpoints/step_N/` holds `state.json` and one .npy per store array. It is written under a hidden name, synced and
renamed; older ones are deleted only after that. Kill -9 at any moment leaves the previous checkpoint untouched.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clm.errors import ClmError, ResourceError
from clm.files import sync_directory
from clm.gaussians.store import Store
from clm.plan.budget import format_bytes

FORMAT = 1


def _write_array(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def save_checkpoint(folder: Path, iteration: int, state: Mapping[str, Any], store: Store, keep: int) -> Path:
    """Write `folder/step_{iteration}` and drop all but the newest `keep`. Raises ResourceError when the disk is full."""
    target, temporary = folder / f"step_{iteration}", folder / f".step_{iteration}.tmp"
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a run that was killed while saving
    if target.exists():
        return target  # the same images were processed: the same state
    temporary.mkdir()
    try:
        for name in store.names:
            _write_array(temporary / f"{name}.npy", getattr(store, name))
        with open(temporary / "state.json", "w") as file:
            header = {"format": FORMAT, "rows": store.rows, "moments": store.moments, "iteration": iteration}
            json.dump({**header, **state}, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(temporary)
        os.replace(temporary, target)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno != errno.ENOSPC:
            raise
        raise ResourceError(
            f"The disk is full: checkpoint {target} needs {format_bytes(store.bytes)}.",
            "Free that much and run again with --resume; the previous checkpoint is intact.",
        ) from None
    sync_directory(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [p for p in folder.glob("step_*") if p.name[5:].isdigit() and (p / "state.json").exists()]
    return sorted(found, key=lambda p: int(p.name[5:]))


def latest_checkpoint(folder: Path) -> Path:
    """The newest complete checkpoint, or a ClmError that says where was looked."""
    found = checkpoints(folder)
    if not found:
        raise ClmError(f"No checkpoint in {folder}.", "Start without --resume, or pass the run with -o.")
    return found[-1]


def load_checkpoint(path: Path) -> tuple[dict[str, Any], Store]:
    """State and store of a checkpoint; cull entries must be refreshed by the caller."""
    try:
        state = json.loads((path / "state.json").read_text())
        if state.get("format") != FORMAT:
            raise ClmError(f"Checkpoint {path} has format {state.get('format')}; this clm reads format {FORMAT}.")
        store = Store(state["rows"], moments=state.get("moments", "f32"))
        store.rows = state["rows"]
        for name in store.names:
            saved = np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            getattr(store, name)[:] = saved
    except (OSError, ValueError, KeyError) as error:
        raise ClmError(
            f"Checkpoint {path} cannot be read: {error}.", "Delete it to resume from the one before."
        ) from None
    return state, store
