"""What a run directory says about how it was begun: its scene, its configuration, the views it holds out.

`config.yaml` names the scene by its absolute path; `split.json` names every view that was ever trained on or held out, so
that photos which come or go never move one to the other side. Read again by `clm train --resume`, `clm eval`, `clm render`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from clm.config import Config, fields, from_dict, to_dict
from clm.errors import ClmError
from clm.files import atomic_write, write_json
from clm.scene import Scene
from clm.values import flag_of


@dataclass(frozen=True)
class Split:
    """Names of views, as in COLMAP."""

    train: frozenset[str]
    test: frozenset[str]


def read_run_config(run: Path) -> tuple[Path, Config]:
    """The data folder and the configuration that a run directory was trained with."""
    path = run / "config.yaml"
    if not path.exists():
        raise ClmError(f"{run} is not a run directory: {path} is missing.", "Pass the folder given to `clm train -o`.")
    try:
        values = yaml.safe_load(path.read_text())
        data = Path(values.pop("data"))
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        raise ClmError(f"{path} is damaged.", "Restore it, or pass the PLY of the run instead.") from None
    return data, from_dict(values, str(path))


def write_run_config(run: Path, data: Path, config: Config) -> None:
    """Paths are absolute, so that the run finds its scene again from anywhere."""
    values = to_dict(config)
    for key in ("images", "masks", "test_list"):  # relative to the scene, or else to the working directory
        if values[key] is not None and not (data / values[key]).exists():
            values[key] = str(Path(values[key]).absolute())
    with atomic_write(run / "config.yaml", "w") as file:
        yaml.safe_dump({"data": str(data.absolute()), **values}, file, sort_keys=False)


def scene_of_run(run: Path, data: Path, option: str) -> Path:
    """`data`, where the run's scene was; ClmError when it is gone. option: how to say where it is now."""
    if not data.is_dir():
        raise ClmError(f"The scene of {run} is not at {data} any more.", f"Say where it is: `{option}`.")
    return data


def read_split(run: Path, config: Config) -> Split | None:
    """The views of a run; None where it says nothing. Of a run without split.json, by the rule that it was split by."""
    try:
        if (run / "split.json").exists():
            split = json.loads((run / "split.json").read_text())
            return Split(frozenset(map(str, split["train"])), frozenset(map(str, split["test"])))
        if not (run / "cameras.json").exists():
            return None
        if config.test_list is not None:
            raise KeyError
        names = [str(entry["img_name"]) for entry in json.loads((run / "cameras.json").read_text())]
    except (ValueError, KeyError, TypeError):
        raise ClmError(
            f"{run / 'split.json'} is damaged or gone: it says which views are held out.",
            "Restore it from a copy of the run.",
        ) from None
    test = {name for k, name in enumerate(names) if config.test_every and k % config.test_every == 0}
    test = set() if len(test) == len(names) else test  # none is held out where none would be left to train
    return Split(frozenset(names) - test, frozenset(test))


def write_split(run: Path, scene: Scene, before: Split | None) -> None:
    """The views of `scene`, and those of `before` that are not in it now but may come back."""
    names = [view.name for view in scene.views]
    train, test = {names[k] for k in scene.train}, {names[k] for k in scene.test}
    if before is not None and (train | test) & (before.train | before.test):
        train, test = train | before.train, test | before.test
    write_json(run / "split.json", {"test": sorted(test), "train": sorted(train)})


def with_split(scene: Scene, split: Split | None) -> Scene:
    """The scene with the views of `split` held out; new ones are trained on. A scene that has none of its views is another
    one, and keeps its own."""
    names = [view.name for view in scene.views]
    if split is None or not (split.train | split.test) & set(names):
        return scene
    held_out = np.array([name in split.test for name in names])
    if held_out.all():
        raise ClmError(f"All {len(names)} images of {scene.path} are held out by the run.", "Restore its other photos.")
    index = np.arange(len(names), dtype=np.int32)
    return dataclasses.replace(scene, train=index[~held_out], test=index[held_out])


_RESULTS = ("checkpoints/step_*/*", "point_cloud/*/*", "metrics.json", "report.json", "report.html")
_BEGINNINGS = ("cfg_args", "cameras.json", "split.json", "georef.json", "input.ply", "events.jsonl", "eval/*/*")


def refuse_foreign(run: Path) -> None:
    """Raise ClmError where a new run would write over what it did not write: results, or files of the same names.

    What a run leaves that was killed before its first checkpoint may be written again: `config.yaml`, its first file, says
    so."""
    patterns: tuple[str, ...] = _RESULTS
    try:
        read_run_config(run)
    except ClmError:
        patterns = ("config.yaml", *_RESULTS, *_BEGINNINGS)
    for pattern in patterns:
        for found in sorted(run.glob(pattern)):
            raise ClmError(
                f"{run} already holds {found.relative_to(run)}, which this run did not write and could overwrite.",
                "Pass another folder with -o.",
            )


def config_changes(saved: Config, now: Config) -> list[str]:
    """One line per key that differs between a checkpoint and this call; keys that change the stored arrays are refused."""
    lines = []
    for f in fields():
        old, new = getattr(saved, f.name), getattr(now, f.name)
        if old == new or f.metadata["resume"] in ("free", "own"):
            continue
        if f.metadata["resume"] == "fixed":
            raise ClmError(
                f"The checkpoint was trained with {f.name} {old}, this call says {new}.",
                f"Pass `{flag_of(f.name)} {old}`.",
            )
        if f.metadata["resume"] == "begun":
            lines.append(f"{f.name} {new} changes nothing: a run keeps what it began with")
        else:
            lines.append(f"resumed with another {f.name}: {old} -> {new}")
    return lines
