"""Damage: bytes, text and JSON values changed the way that disks, editors and other people's tools change them."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

INTEGERS = (0, 1, -1, 2, 7, 255, 65_535, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, 2**63 - 1, -(2**63), 10**6)
FLOATS = (0.0, -1.0, 1e-300, 1e-38, 1e-7, 0.5, 64.0, 1e7, 1e38, 1e300, float("nan"), float("inf"), -float("inf"))
WORDS = (
    *("nan", "inf", "-inf", "NaN", "1e308", "1e999", "-1", "0", "1e-320", "0x10", "abc", "", "-", ".", "1,5", "1_000"),
    *(
        "18446744073709551616",
        "-9223372036854775809",
        "4294967296",
        "2147483648",
        "PINHOLE",
        "OPENCV",
        "#",
        '"',
        "\x00",
    ),
    *("1.5", "é", "a b", "../x.png", "/etc/passwd", "x" * 300),
)


def some(rng: np.random.Generator, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def mutate_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """One damage: cut off, a bit, a number, a piece missing, doubled, zeroed, swapped or of noise."""
    out, size = bytearray(data), len(data)
    if not size:
        return bytes(rng.integers(0, 256, 8, dtype=np.uint8))
    at, kind = int(rng.integers(size)), int(rng.integers(12))
    end = min(size, at + 1 + int(rng.integers(64)))
    if kind == 0:
        return bytes(out[:at])
    if kind == 1:
        out[at] ^= 1 << int(rng.integers(8))
    elif kind in (2, 3, 4, 5):
        # A record's number, mostly where one is aligned: 8 bytes, 4 bytes, or a byte.
        form = some(rng, ["<d", "<d", "<f", "<q", "<i", "<H", "<B"])
        width = struct.calcsize(form)
        at -= at % some(rng, (1, 4, 8))
        if form[1] in "df":
            with np.errstate(over="ignore"):
                value = float(np.float32(some(rng, FLOATS))) if form == "<f" else some(rng, FLOATS)
        else:
            value = some(rng, INTEGERS) & ((1 << (8 * width)) - 1)
            value -= (1 << (8 * width)) if form[1] in "qi" and value >> (8 * width - 1) else 0
        packed = struct.pack(form, value)
        out[at : at + width] = packed[: size - at]
    elif kind == 6:
        del out[at:end]
    elif kind == 7:
        out[at:at] = out[at:end]
    elif kind == 8:
        out[at:end] = bytes(end - at)
    elif kind == 9:
        out[at:end] = rng.integers(0, 256, end - at, dtype=np.uint8).tobytes()
    elif kind == 10:
        out += rng.integers(0, 256, end - at, dtype=np.uint8).tobytes()
    else:
        head = min(size, int(rng.integers(1, 64)))  # counts and headers are at the start
        out[int(rng.integers(head))] = int(rng.integers(256))
    return bytes(out)


def mutate_text(text: bytes, rng: np.random.Generator) -> bytes:
    """One damage to a text of lines and words; sometimes to its bytes."""
    lines, kind = text.split(b"\n"), int(rng.integers(10))
    if kind == 0:
        return mutate_bytes(text, rng)
    at = int(rng.integers(len(lines)))
    words = lines[at].split(b" ")
    word = int(rng.integers(len(words)))
    if kind in (1, 2, 3, 4):
        words[word] = some(rng, WORDS).encode()
        lines[at] = b" ".join(words)
    elif kind == 5:
        del words[word]
        lines[at] = b" ".join(words)
    elif kind == 6:
        lines[at] = b" ".join([*words[:word], some(rng, WORDS).encode(), *words[word:]])
    elif kind == 7:
        del lines[at]
    elif kind == 8:
        lines.insert(at, lines[int(rng.integers(len(lines)))])
    else:
        lines[at] = (
            some(rng, (b"\xff\xfe", b"\xe9t\xe9.png", b"\t\t", b"\r", b"\x00\x00", b"# ", b"\xef\xbb\xbf")) + lines[at]
        )
    return b"\n".join(lines)


def nasty_value(rng: np.random.Generator) -> Any:
    """A JSON or YAML value of the wrong kind or size."""
    plain = (None, True, False, [], {}, [1, 2, 3], {"a": 1}, "abc", "", [None], "nan")
    return some(rng, (*plain, *INTEGERS, *FLOATS, *WORDS))


def mutate_json(text: bytes, rng: np.random.Generator) -> bytes:
    """One value changed, removed or added somewhere in the tree; sometimes the text itself."""
    if rng.integers(5) == 0:
        return mutate_text(text, rng)
    value = json.loads(text)
    node, path = value, list[tuple[Any, Any]]()
    while isinstance(node, dict | list) and len(node) and (not path or rng.integers(4)):
        key = some(rng, list(node)) if isinstance(node, dict) else int(rng.integers(len(node)))
        path.append((node, key))
        node = node[key]
    if not path:
        return json.dumps(nasty_value(rng)).encode()
    parent, key = path[-1]
    kind = int(rng.integers(6))
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[f"{key}x"] = nasty_value(rng)
    elif kind == 2 and isinstance(parent, list):
        parent.insert(key, nasty_value(rng))
    else:
        parent[key] = nasty_value(rng)
    return json.dumps(value).encode()
