"""What the files of a run say, read as far as they are there and whole: a report is made of what there is."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clm.config import Config, fields, resolve
from clm.errors import ClmError
from clm.report.curves import Curves, read_curves
from clm.run.begun import read_run_config
from clm.values import flag_of

_MOST_EVALUATIONS = 200  # that are read


@dataclass(frozen=True)
class Facts:
    """metrics, receipt: of `metrics.json` and `report.json`, {} where they are absent. evaluations: (image, metrics) of each
    `eval/step_N/metrics.json`."""

    run: Path
    data: Path | None
    config: Config | None
    metrics: dict[str, Any]
    receipt: dict[str, Any]
    curves: Curves
    evaluations: list[tuple[int, dict[str, Any]]]


def read_facts(run: Path) -> Facts:
    """Raises ClmError where `run` is no run directory."""
    if not (run / "config.yaml").is_file() and not (run / "events.jsonl").is_file():
        raise ClmError(
            f"{run} is not a run directory: it has neither config.yaml nor events.jsonl.",
            "Pass the folder given to `clm train -o`.",
        )
    try:
        data, config = read_run_config(run)
    except (ClmError, OSError):
        data, config = None, None
    return Facts(
        run,
        data,
        config,
        _object(run / "metrics.json"),
        _object(run / "report.json"),
        read_curves(run / "events.jsonl"),
        _evaluations(run),
    )


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _evaluations(run: Path) -> list[tuple[int, dict[str, Any]]]:
    names = ((path.parent.name.removeprefix("step_"), path) for path in run.glob("eval/step_*/metrics.json"))
    found = sorted((int(number), path) for number, path in names if number.isdecimal())
    found = found[:: 1 + len(found) // _MOST_EVALUATIONS] + found[-1:]
    return [(image, _object(path)) for image, path in dict(found).items()]


def dig(value: Any, *keys: str) -> Any:
    """value[key][key]..., None where that is not there."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def number(value: Any, *keys: str) -> float | None:
    """The same, if it is a finite number."""
    found = dig(value, *keys)
    usable = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
    return float(found) if usable else None


def changed(config: Config) -> dict[str, Any]:
    """The keys that are not what they are by default in a run of so many images, in the order of the configuration."""
    default = resolve(Config(iterations=config.iterations))
    skipped = {f.name for f in fields() if f.metadata["resume"] == "own"} | {"iterations"}
    values = {f.name: (getattr(config, f.name), getattr(default, f.name)) for f in fields() if f.name not in skipped}
    return {name: value for name, (value, usual) in values.items() if value != usual}


def command(facts: Facts) -> tuple[str, str]:
    """The command that trains the same model again, and the file (`FILE.yaml`) that it needs for keys without a flag, or ''."""
    config = facts.config
    assert config is not None
    words, rest, data = ["clm", "train", str(facts.data or "DATA")], {}, {f.name: f for f in fields()}
    words += ["-o", f"{facts.run.resolve().name}_again", "--iterations", str(config.iterations)]
    for name, value in changed(config).items():
        if not data[name].metadata["flag"]:
            rest[name] = value
        elif isinstance(value, bool):
            words += [flag_of(name)] * value
        else:
            words += [flag_of(name), str(value)]
    if rest:
        words += ["--config", "FILE.yaml"]
    return shlex.join(words), yaml.safe_dump(rest, sort_keys=False) if rest else ""
