"""What a checkpoint says of itself: `state.json` and `manifest.json`, read without believing either."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from clm.errors import ClmError
from clm.run.arrays import Damaged, Listed, read_listed
from clm.store.store import MOMENT_TYPES, MOST_PLACES

FORMAT = 3
READ = (1, 2, 3)  # format 1 had no manifest, formats 1 and 2 no keys and no pages
WITH_PAGES = 3  # and keys
STATE, MANIFEST = "state.json", "manifest.json"
_LONGEST_STATE = 1 << 26  # bytes


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, Listed]]:
    """`state.json`, checked against the manifest and for what every format holds; and what the manifest lists."""
    listed: dict[str, Listed] = {}
    manifest = _parse(path / MANIFEST, None) if os.path.lexists(path / MANIFEST) else None
    if manifest is not None:
        if manifest.get("format") != FORMAT:
            _refuse_other_formats(path, manifest.get("format"), _parse_quietly(path / STATE).get("format"))
        listed = _listed_files(manifest)
    state = _parse(path / STATE, listed.get(STATE))
    if manifest is None:
        if state.get("format") in READ[1:]:
            raise Damaged(f"{MANIFEST} is missing")
        _refuse_other_formats(path, state.get("format"), state.get("format"))
        state.setdefault("moments", "f32")
    _check_state(state)
    return state, listed


def _parse(path: Path, listed: Listed | None) -> dict[str, Any]:
    content = read_listed(path, listed, _LONGEST_STATE)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise Damaged(f"{path.name} is not JSON") from None
    if not isinstance(value, dict):
        raise Damaged(f"{path.name} is not a JSON object")
    return value


def _parse_quietly(path: Path) -> dict[str, Any]:
    try:
        return _parse(path, None)
    except Damaged:
        return {}


def _refuse_other_formats(path: Path, number: Any, again: Any) -> None:
    """Refuse a format that both files name alike; one that only one of them names is damage."""
    if type(number) is not int or number != again or number < 1:
        raise Damaged(f"its format is not a number that {STATE} and {MANIFEST} agree on")
    if number not in READ:
        raise ClmError(
            f"Checkpoint {path} has format {number}; this clm reads formats {READ[0]} to {READ[-1]}.",
            "Resume with the version that wrote it, or move it away to go on from an older one.",
        )


def _listed_files(manifest: dict[str, Any]) -> dict[str, Listed]:
    files = manifest.get("files")
    if not isinstance(files, dict) or STATE not in files:
        raise Damaged(f"{MANIFEST} lists no {STATE}")
    listed = {name: Listed.parse(value) for name, value in files.items()}
    wrong = [name for name, entry in listed.items() if entry is None]
    if wrong:
        raise Damaged(f"{MANIFEST} has no size and checksum of {wrong[0]}")
    return {name: entry for name, entry in listed.items() if entry is not None}


def _check_state(state: dict[str, Any]) -> None:
    """Refuse values that no checkpoint holds; what else belongs into `config`, `progress` and `totals`, their owners know."""
    for key, most in (("rows", MOST_PLACES), ("iteration", 2**62)):
        if type(state.get(key)) is not int or not 0 <= state[key] <= most:
            raise Damaged(f"`{key}` in {STATE} is not a count")
    if not isinstance(state.get("moments"), str) or state["moments"] not in MOMENT_TYPES:
        raise Damaged(f"`moments` in {STATE} is not one of {', '.join(MOMENT_TYPES)}")
    for key in ("config", "progress", "totals"):
        if not isinstance(state.get(key), dict):
            raise Damaged(f"`{key}` in {STATE} is not an object")
    scale = state.get("scene_scale")
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not math.isfinite(scale) or scale <= 0:
        raise Damaged(f"`scene_scale` in {STATE} is not a length")
    step, iteration = state["progress"].get("step"), state["iteration"]
    if state["progress"].get("iteration") != iteration or type(step) is not int or not 0 <= step <= iteration:
        raise Damaged(f"`progress` in {STATE} is not that of image {iteration}")
