"""The base of all events: frozen values that whoever does something emits, and others consume."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Event:
    """`type` in a JSON line is the class name in snake_case."""

    def record(self) -> dict[str, Any]:
        name = "".join("_" + c.lower() if c.isupper() else c for c in type(self).__name__).lstrip("_")
        return {"type": name, **dataclasses.asdict(self)}
