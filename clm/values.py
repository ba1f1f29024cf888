"""One value of the configuration: read from YAML or a flag, checked against its field's type and bounds.

Whatever is wrong is one ClmError that names the key, what is there, and a value that works when it is written instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from clm.errors import ClmError
from clm.units import parse_bytes, parse_count, shown

FLAGS = "the command line"  # as the source of a value
LARGEST_COUNT = 2**31 - 1  # row ids are int32


def parse_background(text: str) -> tuple[float, float, float] | None:
    """RGB in 0..1, or None for `random` (a new colour for every training image)."""
    named = {"black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0), "random": None}
    if text in named:
        return named[text]
    try:
        r, g, b = (float(part) for part in text.split(","))
        if all(0.0 <= value <= 1.0 for value in (r, g, b)):
            return r, g, b
    except ValueError:
        pass
    raise ClmError(f"`background` is `{shown(text)}`.", "Use black, white, random, or r,g,b with numbers in 0..1.")


def checked_value(name: str, want: type, facts: Mapping[str, Any], value: Any, source: str) -> Any:
    """`value` as the type `want` and within the bounds that `facts` (the metadata of a field) state; never None."""
    if want is bool:
        return _flag(name, value, source)
    if want is int or want is float:
        number = _number(name, want, facts, value, source)
        return _within(name, facts, number, source)
    return _text(name, facts, value, source)


def flag_of(name: str) -> str:
    """The flag of a key: `--batch-size`."""
    return "--" + name.replace("_", "-")


def remedy(name: str, value: Any, source: str) -> str:
    """How to state `value` where the wrong one came from."""
    if source == FLAGS:
        return f"Pass `{flag_of(name)} {value}`."
    return f"Write `{name}: {value}`."


def _flag(name: str, value: Any, source: str) -> bool:
    if not isinstance(value, bool):
        raise ClmError(f"`{name}` in {source} must be true or false, not `{shown(value)}`.", f"Write `{name}: true`.")
    return value


def _number(name: str, want: type, facts: Mapping[str, Any], value: Any, source: str) -> int | float:
    """An int or a finite float, from a number or a text that is one (YAML takes `1e-4` for a text)."""
    kind = "a whole number" if want is int else "a number"
    wrong = ClmError(
        f"`{name}` in {source} must be {kind}, not `{shown(value)}`.", remedy(name, facts["example"], source)
    )
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wrong
    if isinstance(value, str) and facts["kind"] == "count":
        return parse_count(value, source)
    try:
        if want is int and not isinstance(value, float):
            return int(value)
    except ValueError:
        pass
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise wrong from None
    if not math.isfinite(number) or (want is int and not number.is_integer()):
        raise wrong
    return want(number)


def _within(name: str, facts: Mapping[str, Any], number: int | float, source: str) -> int | float:
    """The number itself, if it lies in lo..hi."""
    lo, hi = facts["lo"], facts["hi"]
    if lo is not None and number < lo:
        bound, said = lo, f"at least {lo}"
    elif hi is not None and number > hi:
        bound, said = hi, f"at most {hi}"
    else:
        return number
    example = bound if facts["suggest"] is None else facts["suggest"]
    raise ClmError(f"`{name}` is {shown(number)}, but must be {said}.", remedy(name, example, source))


def _text(name: str, facts: Mapping[str, Any], value: Any, source: str) -> str:
    """A text: a size in bytes, one of the choices, a colour, or any (names of files)."""
    if isinstance(value, bool) and {"on", "off"} <= set(facts["choices"]):
        value = "on" if value else "off"  # YAML has read `on` as true
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ClmError(
            f"`{name}` in {source} must be a text, not `{shown(value)}`.", remedy(name, facts["example"], source)
        )
    text, choices = str(value), facts["choices"]
    if facts["kind"] == "size":
        if text not in choices:
            try:
                parse_bytes(text)
            except ClmError as error:
                raise ClmError(
                    f"`{name}` in {source} is `{shown(text)}`, which is not a size in bytes.", error.fix
                ) from None
    elif choices and text not in choices:
        raise ClmError(
            f"`{name}` is `{shown(text)}`, but must be one of: {', '.join(choices)}.",
            remedy(name, facts["example"], source),
        )
    elif facts["kind"] == "colour":
        parse_background(text)
    elif not text or "\0" in text:
        raise ClmError(
            f"`{name}` in {source} must be the name of a file or folder, not `{shown(text)}`.", "Leave it out for none."
        )
    return text
