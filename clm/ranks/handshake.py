"""What all ranks do before step 0: they fail together, and they agree on what they are about to train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from clm.errors import ClmError
from clm.ranks.place import Place
from clm.ranks.ranks import Ranks

T = TypeVar("T")
_LONGEST = 60  # characters of a value that is shown


def together(ranks: Ranks, work: Callable[[], T]) -> T:
    """Do `work` on every rank. A ClmError on any of them is raised on all: its own on those that have one, on the others that of
    the first rank that has, with its name. So nobody waits for a rank that has given up."""
    result, error = None, None
    try:
        result = work()
    except ClmError as raised:
        error = raised
    if ranks.alone:
        if error is not None:
            raise error
        return result  # type: ignore[return-value]
    told = None if error is None else (type(error), error.message, error.fix, name_here(ranks))
    for failure in ranks.gather(told):
        if failure is not None:
            kind, message, fix, name = failure
            error = error or kind(f"{name}: {message}", fix)
            break
    if error is not None:
        error.of_all_ranks = True  # type: ignore[attr-defined]
        raise error
    return result  # type: ignore[return-value]


def name_here(ranks: Ranks) -> str:
    """How this rank is called in sentences."""
    place = Place.of_environment()
    return f"Rank {ranks.rank}" if place is None else place.name


def agree(ranks: Ranks, facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse ranks that would train something else than rank 0. facts: by what they are of ("the version", "the configuration",
    "the scene"), then by name; plain values.

    Raises, on every rank, a ClmError that names the first rank and the first fact that differ."""
    everybody = ranks.gather((name_here(ranks), {kind: dict(named) for kind, named in facts.items()}))
    first = everybody[0][1]
    for name, theirs in everybody:
        for kind, named in theirs.items():
            for key in [*first[kind], *(set(named) - set(first[kind]))]:
                mine, other = first[kind].get(key), named.get(key)
                if mine != other:
                    error = ClmError(
                        f"{name} differs from rank 0 in {kind}: {key} is {_shown(other)} instead of {_shown(mine)}.",
                        "All ranks train one model: give them the same program, options and scene.",
                    )
                    error.of_all_ranks = True  # type: ignore[attr-defined]
                    raise error


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
