"""Sizes and counts in words, both ways: as people write them in flags and files, and as messages say them."""

from __future__ import annotations

import math
import re
import reprlib
from typing import Any

from clm.errors import ClmError

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_COUNTS = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}


def parse_bytes(text: str) -> int:
    """Bytes of `8GiB`, `8G` (both 2**30), `8GB` (10**9), `512 MiB`, `1.5TiB` or a plain number; ClmError otherwise."""
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d+)?|\.\d+)\s*([KMGT]?)(IB|B)?\s*", text.upper())
    if not match:
        raise ClmError(f"Not a size in bytes: {text!r}.", "Write a number with a unit, for example 8GiB or 500MB.")
    number, unit, kind = match.groups()
    if not unit and kind == "IB":
        raise ClmError(f"Not a size in bytes: {text!r}.", "Write a number with a unit, for example 8GiB or 500MB.")
    base = 1000 if kind == "B" else 1024
    return round(float(number) * base ** _UNITS[unit])


def format_bytes(count: int) -> str:
    """`12.4 GiB`, `512.0 MiB`, `17 B`: binary units, one decimal."""
    if count < 1024:
        return f"{count} B"
    power = 1
    while power < 4 and count / 1024**power >= 1023.95:
        power += 1
    return f"{count / 1024**power:.1f} {'KMGT'[power - 1]}iB"


def format_rows(count: int) -> str:
    """`18M`, `950k`, `740`: rounded down to two or three digits, as --max-gaussians takes it."""
    for size, suffix in ((1_000_000, "M"), (1_000, "k")):
        if count >= 10 * size:
            return f"{count // size}{suffix}"
        if count >= size:
            return f"{math.floor(10 * count / size) / 10:g}{suffix}"
    return str(max(0, count))


def size_flag(count: int) -> str:
    """The smallest whole MiB or tenth of a GiB that holds `count` bytes, as --gpu-memory takes it."""
    if count < 2**30:
        return f"{max(1, math.ceil(count / 2**20))}MiB"
    return f"{math.ceil(10 * count / 2**30) / 10:g}GiB"


def parse_count(text: str, source: str) -> int:
    """`18M`, `1.5M`, `950k` or a plain number."""
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d+)?)\s*([kKmMbBgG]?)\s*", text)
    if not match:
        raise ClmError(f"`{shown(text)}` in {source} is not a count.", "Write a number such as 18M, 950k or 20000.")
    return round(float(match[1]) * _COUNTS[match[2].lower()])


def shown(value: Any) -> str:
    """A value in a message: short, on one line, whatever it is."""
    text = value if isinstance(value, str) else reprlib.repr(value)
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= 60 else text[:57] + "..."
