"""Arrays of a checkpoint as .npy files that are checked when they are read: kind, size, shape, type and checksum.

Both directions stream in pieces; the checksum (CRC-32 of the whole file, about 4 GB/s) is taken on the way. Nothing that
a file says is believed before it was compared with what the caller expects, so damage never allocates or broadcasts.
"""

from __future__ import annotations

import io
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clm.errors import ClmError

_PIECE = 1 << 24  # bytes


class Damaged(ClmError):
    """A checkpoint whose files are not those that were written. An older one may be sound."""


class Listed(NamedTuple):
    """What the manifest says of a file."""

    bytes: int
    crc32: int

    @classmethod
    def parse(cls, value: Any) -> Listed | None:
        """None: not the entry of a file."""
        numbers = [value.get("bytes"), value.get("crc32")] if isinstance(value, dict) else []
        whole = [n for n in numbers if type(n) is int]
        return cls(*whole) if len(whole) == 2 else None


def _pieces(array: np.ndarray, runs: Iterable[slice]) -> Iterator[memoryview]:
    """The bytes of runs of rows of a C-contiguous array, a piece at a time, without a copy."""
    for run in runs:
        raw = array[run].reshape(-1).view(np.uint8)
        for first in range(0, len(raw), _PIECE):
            yield raw[first : first + _PIECE].data


def write_array(
    path: Path,
    array: np.ndarray,
    passed: Callable[[int], None] = lambda size: None,
    runs: Sequence[slice] = (slice(None),),
) -> dict[str, Any]:
    """Write and sync an .npy file; returns its entry in the manifest. runs: the rows of `array` that are written, one run after
    the other; all. passed: told how many bytes of the array went by."""
    head, shape = io.BytesIO(), (_rows(array, runs), *array.shape[1:])
    np.lib.format.write_array_header_1_0(head, {**np.lib.format.header_data_from_array_1_0(array), "shape": shape})
    size, crc = head.tell(), zlib.crc32(head.getvalue())
    with open(path, "wb") as file:
        file.write(head.getvalue())
        for piece in _pieces(array, runs):
            file.write(piece)
            crc = zlib.crc32(piece, crc)
            size += len(piece)
            passed(len(piece))
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "crc32": crc, "dtype": array.dtype.str, "shape": list(shape)}


def _rows(array: np.ndarray, runs: Iterable[slice]) -> int:
    return sum(len(range(*run.indices(len(array)))) for run in runs)


def read_listed(path: Path, listed: Listed | None, longest: int) -> bytes:
    """The content of a small file, of at most `longest` bytes, that agrees with the manifest (None: there is none)."""
    with opened(path) as file:
        content = file.read(longest + 1)
    if len(content) > longest:
        raise Damaged(f"{path.name} is longer than {longest:,} bytes")
    if listed is not None:
        _compare(path, Listed(len(content), zlib.crc32(content)), listed)
    return content


def check_array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], listed: Listed | None) -> None:
    """Raise Damaged unless the file is as long as such an array and says that it holds one; its values are not read."""
    with opened(path) as file:
        _read_header(path, file, dtype, shape)
        expected = file.tell() + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        found = os.fstat(file.fileno()).st_size
    for size in (expected, listed.bytes if listed else expected):
        if size != found:
            raise Damaged(f"{path.name} is {found:,} bytes long instead of {size:,}")


def read_array(
    path: Path,
    out: np.ndarray,
    listed: Listed | None,
    passed: Callable[[int], None] = lambda size: None,
    runs: Sequence[slice] = (slice(None),),
) -> None:
    """Fill rows of `out` from a file that `check_array` admitted; raises Damaged if the checksum is another. passed, runs: as
    above."""
    with opened(path) as file:
        head = _read_header(path, file, out.dtype, (_rows(out, runs), *out.shape[1:]))
        size, crc = len(head), zlib.crc32(head)
        for piece in _pieces(out, runs):
            if file.readinto(piece) != len(piece):
                raise Damaged(f"{path.name} ends too early")
            crc = zlib.crc32(piece, crc)
            size += len(piece)
            passed(len(piece))
    if listed is not None:
        _compare(path, Listed(size, crc), listed)


def _compare(path: Path, found: Listed, listed: Listed) -> None:
    if found.bytes != listed.bytes:
        raise Damaged(f"{path.name} is {found.bytes:,} bytes long instead of {listed.bytes:,}")
    if found.crc32 != listed.crc32:
        raise Damaged(f"{path.name} does not match its checksum")


def opened(path: Path) -> io.BufferedReader:
    """Open a regular file; anything else (missing, a folder, a pipe that would wait forever) is Damaged."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Damaged(f"{path.name} is not a file")
        return open(path, "rb")
    except FileNotFoundError:
        raise Damaged(f"{path.name} is missing") from None
    except OSError as error:
        raise Damaged(f"{path.name}: {error.strerror}") from None


def _read_header(path: Path, file: io.BufferedReader, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Read past the header of an .npy file that holds `shape` of `dtype` in C order; returns its bytes."""
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError
        found, fortran, kind = np.lib.format.read_array_header_1_0(file)
    except Exception:  # the header is parsed as Python: damage raises whatever the parser does
        raise Damaged(f"{path.name} is not a NumPy array") from None
    if kind != dtype:
        raise Damaged(f"{path.name} holds {kind} instead of {dtype}")
    if found != shape or (fortran and len(shape) > 1):
        raise Damaged(f"{path.name} holds {found} values instead of {shape}")
    length = file.tell()
    file.seek(0)
    return file.read(length)
