"""Where a configuration comes from: defaults < preset < file < flags, and for a run that goes on what it had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clm.calendar import schedule_of
from clm.config import Config, checked, fields, resolve
from clm.errors import ClmError
from clm.values import FLAGS


def preset_folders() -> list[Path]:
    """Where presets are looked for: beside the package when installed, in the checkout otherwise."""
    here = Path(__file__).parent
    return [here / "configs", here.parent / "configs"]


def presets() -> dict[str, str]:
    """Name and purpose of every preset; the purpose is the comment on the first line of its file."""
    files = sorted((p for folder in preset_folders() for p in folder.glob("*.yaml")), key=lambda p: p.stem)
    return {p.stem: p.read_text().partition("\n")[0].lstrip("# ").rstrip() for p in files}


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: no text, no such date
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        reason = reason.splitlines()[0]
        raise ClmError(
            f"Cannot read the configuration {path}: {reason}.", "It must be a YAML file of `key: value`."
        ) from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ClmError(f"The configuration {path} is not a list of `key: value` lines.")
    values.pop("data", None)  # a run's own config.yaml, which names its scene, is a configuration as well
    return checked(values, str(path))


def _preset(name: str) -> dict[str, Any]:
    for folder in preset_folders():
        if (folder / f"{name}.yaml").exists():
            return _read_yaml(folder / f"{name}.yaml")
    raise ClmError(f"No preset `{name}`.", f"Known presets: {', '.join(presets())}.")


def load_config(
    flags: dict[str, Any], *, preset: str | None = None, file: Path | None = None, resumed: Config | None = None
) -> Config:
    """Merge defaults < preset < file < flags (None in `flags`: not given), check them, compute what was left open.

    resumed: the configuration of the run that goes on; it stands in for the defaults."""
    given: dict[str, Any] = {}
    if preset:
        given |= _preset(preset)
    if file:
        given |= _read_yaml(file)
    given |= checked({k: v for k, v in flags.items() if v is not None}, FLAGS)
    values = {} if resumed is None else _taken_over(resumed, given)
    return resolve(Config(**values | given))


def _taken_over(resumed: Config, given: dict[str, Any]) -> dict[str, Any]:
    """What a resumed run keeps where nothing else is given. A schedule that was computed from `iterations` is computed
    again from others: it stretches with the run."""
    kept = {f.name: getattr(resumed, f.name) for f in fields() if f.metadata["resume"] != "own"}
    if given.get("iterations", resumed.iterations) == resumed.iterations:
        return kept
    computed = schedule_of(resumed.iterations, resumed.strategy)
    return {name: value for name, value in kept.items() if computed.get(name) != value}
