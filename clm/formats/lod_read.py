"""Streamed SOG (lod-meta.json, version 1) in: one level of detail, by default the finest, and the environment if there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clm.errors import ClmError
from clm.formats.joined import JoinedRows, Run, joined, read_index
from clm.formats.sog_read import open_sog


class LodRows(JoinedRows):
    """One level of a streamed SOG."""

    kind = "streamed SOG"


def open_lod(path: Path, level: int = 0) -> JoinedRows:
    """A level of the model whose index is `path`; ClmError where it has no such level, or a file is missing or damaged."""
    index = read_index(path, 1, "streamed SOG")
    try:
        if not 0 <= level < index["lodLevels"]:
            raise ClmError(f"{path} has {index['lodLevels']} levels of detail, and no level {level}.", "Choose from 0.")
        files = [path.parent / name for name in index["filenames"]]
        runs = [_run(lods[str(level)], len(files)) for lods in _leaves(index["tree"]) if str(level) in lods]
        environment = index.get("environment")
        if environment is not None:
            files.append(path.parent / environment)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ClmError(f"{path} is damaged: its tree cannot be followed ({error!r}).", "Copy it again.") from None
    if environment is not None:
        runs.append(Run(len(files) - 1, 0, open_sog(files[-1]).count))
    return joined(LodRows, path, files, runs, open_sog)


def open_finest(path: Path) -> JoinedRows:
    """The finest level of `FOLDER/lod-meta.json`."""
    return open_lod(path)


def _run(entry: dict[str, Any], files: int) -> Run:
    run = Run(*(int(entry[key]) for key in ("file", "offset", "count")))
    if not 0 <= run.file < files or run.offset < 0 or run.count < 0:
        raise ValueError(f"{entry} names no rows of {files} files")
    return run


def _leaves(root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the leaves of a tree hold, in its order."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node.get("children"):
            waiting += reversed(node["children"])
        else:
            yield node["lods"]
