"""How one key of the configuration is declared: its value, its bounds, and everything that is said or decided by it."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(
    default: Any,
    help: str,
    *,
    lo: float | None = None,
    hi: float | None = None,
    choices: tuple[str, ...] = (),
    kind: str = "",
    suggest: Any = None,
    resume: str = "said",
    flag: bool = True,
    metavar: str | None = None,
    section: str = "",
    planned: bool = False,
) -> Any:
    """Everything about one key.

    lo, hi: bounds of a number. choices: of a text; those of a `size` beside sizes. kind: `count` (18M), `size` (8GiB) or
    `colour`. suggest: what a refusal of a value out of bounds proposes, if not the bound. resume: whether a resumed run
    may have another value: `free` does not change the model, `said` does and is said, `fixed` is refused, `begun` has no
    effect any more, and `own` is not taken over from the run. flag: False where it is settable in a file or preset only,
    else `flag_of(name)`. section: of `clm train --help`, which begins here. planned: whether a plan depends on it, so that
    `clm plan` takes it, too.
    """
    example = next((value for value in (default, suggest, lo) if value is not None), "NAME")
    if choices and metavar is None:
        metavar = "|".join(choices)
    facts = {"help": help, "flag": flag, "metavar": metavar, "lo": lo, "hi": hi, "choices": choices, "kind": kind}
    facts |= {"suggest": suggest, "example": example, "resume": resume, "section": section, "planned": planned}
    return field(default=default, metadata=facts)


def rate(default: float, help: str) -> Any:
    return option(default, help, lo=0.0, hi=10.0, flag=False)
