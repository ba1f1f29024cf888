"""Mutated configurations: every key of the YAML file and every flag with values of the wrong kind, size and spelling."""

from __future__ import annotations

from typing import Any

import yaml

from fault_parts.bench import finite_ply
from fault_parts.inputs import MEMORY, SECONDS, stopped_after
from fault_parts.mutate import mutate_text, nasty_value, some
from fault_parts.tries import Fault, Try

_SIZES = (
    "0",
    "-8GiB",
    "1",
    "1KiB",
    "8GB",
    "8 gib",
    "nanGiB",
    "infGiB",
    "1e3GiB",
    "8GiB8",
    "GiB",
    "10000TiB",
    "auto",
    "half",
)
_SPECIAL: dict[str, tuple[Any, ...]] = {
    **{name: _SIZES for name in ("gpu_memory", "host_memory", "image_cache")},
    "max_gaussians": ("0", "-5", "1", "18M", "1e3", "0.1k", "999999B", "k", "1.5", 0, -1, 2**70),
    "background": ("nan,nan,nan", "1,2,3", "-1,0,0", "red", "1,2", "0.5,0.5,0.5,0.5", "inf,0,0", ""),
    "batch_size": (1_000_000, 0, -1, 7, 10**20, 1.5, "4.0"),
    "threads": (32_768, -1, 10**9, 1.5, 10**30),
    "iterations": (0, -1, 1, 10**12, 10**30, 1e9, "30k", 7.5),
    "sh_degree": (-1, 4, 1.5, "3", 10**10),
    "save_every": (-1, 0, 1, 10**30, 0.5),
    "eval_every": (-1, 0, 1, 10**30, 0.5),
    "keep_checkpoints": (0, -1, 1, 10**30),
}


def _value(t: Try, name: str) -> Any:
    special = _SPECIAL.get(name, ())
    return some(t.rng, special) if special and t.rng.integers(2) else nasty_value(t.rng)


def _run(t: Try, words: list[str], given: set[str]) -> None:
    """given: keys that the case sets; the others that make a run short are the harness's own. A run that was told to be
    long is stopped in order after some seconds."""
    run, fixed = t.folder / "run", list[str]()
    for name, value in (("threads", 1), ("iterations", 8)):
        fixed += [] if name in given else [f"--{name}", str(value)]
    timer = stopped_after(4.0)
    said = t.bench.clm("train", t.bench.scene, "-o", run, "-q", *fixed, *words)
    timer.cancel()
    plys = sorted(run.glob("point_cloud/*/point_cloud.ply"))
    if said.code == 0:
        finite_ply(plys[-1] if plys else run / "point_cloud")


def _yaml(t: Try) -> None:
    """One or two keys, or the text of a whole configuration damaged."""
    from clm.config import Config, fields, to_dict

    names = [f.name for f in fields()]
    path = t.folder / "config.yaml"
    if t.case % 4 == 3:
        text = yaml.safe_dump({**to_dict(Config()), "batch_size": 4, "densify_until": 0}, sort_keys=False).encode()
        path.write_bytes(mutate_text(text, t.rng))
        _run(t, ["--config", str(path)], set())
        return
    chosen = {names[t.case % len(names)], *([some(t.rng, names)] if t.rng.integers(3) == 0 else [])}
    path.write_text(yaml.safe_dump({name: _value(t, name) for name in sorted(chosen)}))
    _run(t, ["--config", str(path)], chosen)


def _flags(t: Try) -> None:
    from clm.config import fields

    flags = [f.name for f in fields() if f.metadata["flag"] is not None]
    chosen = sorted({some(t.rng, flags) for _ in range(1 + int(t.rng.integers(2)))})
    words = list[str]()
    for name in chosen:
        switch = [] if name in ("strict", "antialias") else [str(_value(t, name)).replace("\0", "")]
        words += [f"--{name.replace('_', '-')}", *switch]
    _run(t, words, set(chosen))


FAULTS = [
    Fault("config-file", "mutated configuration file", 300, 4, _yaml, SECONDS, MEMORY),
    Fault("config-flags", "mutated flags", 250, 4, _flags, SECONDS, MEMORY),
]
