"""Dataclasses out of JSON that may be damaged: every value is checked against the type of its field before it is used."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, TypeVar

from clm.run.arrays import Damaged

T = TypeVar("T")
_LARGEST = 2**62


def restored(kind: type[T], values: Any, name: str) -> T:
    """An instance of the dataclass `kind`. Its fields are counts (int >= 0), finite floats, bool, str, other dataclasses, lists
    and tuples of these, or one of these and None.

    Fields with a default may be absent. Raises Damaged, which calls the record `name`."""
    if not isinstance(values, dict):
        raise Damaged(f"`{name}` is not an object")
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise Damaged(f"`{name}` has an unknown key {key[:40]!r}")
    known = {key: _value(hints[key], value, f"{name}.{key}") for key, value in values.items()}
    try:
        return kind(**known)
    except TypeError:
        missing = [f.name for f in dataclasses.fields(kind) if f.name not in known]  # type: ignore[arg-type]
        raise Damaged(f"`{name}` lacks {missing[0]}") from None


def _value(hint: Any, value: Any, name: str) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None and types.NoneType in hint.__args__:
            return None
        return _value(next(t for t in hint.__args__ if t is not types.NoneType), value, name)
    if dataclasses.is_dataclass(hint):
        return restored(typing.cast(type, hint), value, name)
    origin = typing.get_origin(hint)
    if origin in (list, tuple):  # of any length
        if type(value) in (list, tuple):
            return origin(_value(typing.get_args(hint)[0], element, name) for element in value)
    elif hint is float:
        if type(value) in (int, float) and abs(value) < _LARGEST and math.isfinite(value):
            return float(value)
    elif hint is int:
        if type(value) is int and 0 <= value < _LARGEST:
            return value
    elif type(value) is hint:
        return value
    raise Damaged(f"`{name}` is not what a run writes there")
