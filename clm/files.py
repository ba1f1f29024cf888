"""Files that appear whole or not at all, and what to say when storage fails.

A file is written under a temporary name, synced, renamed. Temporary names carry this program's mark and the number of its
process: what a kill left behind is recognised and removed, and nothing else ever is.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from clm.errors import ClmError, ResourceError
from clm.units import format_bytes

_MARK = re.compile(r"\..*\.(\d+)\.clm\.tmp")
_LONGEST_NAME = 200  # file systems admit 255 bytes; the rest is for the mark
_REASONS = {
    errno.ENOSPC: ("The disk is full", "Free space and run again."),
    errno.EDQUOT: ("The disk quota is used up", "Free space and run again."),
    errno.EFBIG: ("The limit on the size of a file is too small (ulimit -f)", "Raise it and run again."),
    errno.EROFS: ("The file system is read-only", "Make it writable or choose another folder."),
    errno.EACCES: ("Writing is not permitted", "Change the permissions or choose another folder."),
    errno.EPERM: ("Writing is not permitted", "Change the permissions or choose another folder."),
    errno.EIO: ("The disk reports an error", "Check it, or choose another folder."),
}
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)  # another place is needed, not more of anything
_SHORT_WRITE = re.compile(r"requested and \d+ written|encoder error")  # numpy and Pillow, without an errno


def storage_failure(error: OSError, path: Path, needed: int | None = None, kind_of: str = "") -> ClmError | None:
    """What to say when writing `path` failed, a ResourceError where for want of space; None: the error is of another kind.

    needed: bytes that the whole file or folder takes, where they are known. kind_of: what it is, in a word."""
    number = errno.ENOSPC if error.errno is None and _SHORT_WRITE.search(str(error)) else error.errno
    if number not in _REASONS:
        return None
    reason, fix = _REASONS[number]
    size = f" It needs {format_bytes(needed)}." if needed is not None else ""
    free = f" {format_bytes(free_bytes(path))} are free." if number == errno.ENOSPC else ""
    kind = ClmError if number in _FORBIDDEN else ResourceError
    return kind(f"{reason}: {f'{kind_of} ' if kind_of else ''}{path} was not written.{size}{free}", fix)


def refuse_unwritable(path: Path) -> None:
    """Raise ClmError where no file can be written at `path`, before the work of which it is the result is done."""
    if path.is_dir():
        raise ClmError(f"{path} is a folder.", "Name a file in it.")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise ClmError(f"{path} cannot be written: {folder} is no folder.", "Choose another folder.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ClmError(f"{path} cannot be written: {folder} is not open to you.", _REASONS[errno.EACCES][1])


def free_bytes(path: Path) -> int:
    """Bytes free where `path` is or would be; 0 where that cannot be found out."""
    for folder in (path, *path.parents):
        if folder.is_dir():
            try:
                return shutil.disk_usage(folder).free
            except OSError:
                return 0
    return 0


def sync_directory(path: Path) -> None:
    """Make renames inside `path` durable; where the platform cannot, the rename itself is still atomic."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path` that this process alone uses and that `remove_leftovers` recognises."""
    return path.with_name(f".{path.name[:_LONGEST_NAME]}.{os.getpid()}.clm.tmp")


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and folders directly in `folder` that a process of this program left when it died."""
    found = [(path, _MARK.fullmatch(path.name)) for path in folder.glob(".*.clm.tmp")]
    return [path for path, match in found if match and not _lives(int(match[1]))]


def remove_leftovers(folder: Path) -> None:
    for path in leftovers(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    """Whether another process of that number runs now (our own number: an earlier process had it)."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process != os.getpid()


@contextmanager
def atomic_write(path: Path | str, mode: str = "wb", *, needed: int | None = None) -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success sync it and rename it to `path`, on any error remove it.

    Raises what `storage_failure` says, which names `path`, and what it needs where `needed` (bytes) says so."""
    path = Path(path)
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException as error:
        _remove(temporary)
        if isinstance(error, OSError) and (failure := _failure_here(error, path, temporary, needed)):
            raise failure from None
        raise


@contextmanager
def atomic_folder(path: Path | str, ours: re.Pattern[str]) -> Iterator[Path]:
    """A temporary folder beside `path`; on success it becomes `path`, on any error it is removed. An older folder is replaced if
    all that lies in it has a name like `ours`; ClmError otherwise, before anything is written.

    Files in it are synced. Raises what `atomic_write` does."""
    path = Path(path)
    foreign = [path] if path.exists() and not path.is_dir() else []
    foreign += [file for file in path.glob("*") if not ours.fullmatch(file.name)]
    if foreign:
        raise ClmError(f"{foreign[0]} would be lost with the folder that is replaced.", "Name a folder that is new.")
    path = path.resolve()
    temporary, older = temporary_name(path), temporary_name(path.with_name(path.name + ".old"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in leftovers(
            path.parent
        ):  # of this folder, by a process that was killed; not what it may have put aside
            if re.fullmatch(rf"\.{re.escape(path.name[:_LONGEST_NAME])}\.\d+\.clm\.tmp", left.name):
                shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for file in [*temporary.rglob("*"), temporary]:
            sync_directory(file)
        if path.exists():
            os.rename(path, older)
        os.rename(temporary, path)
        sync_directory(path.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if older.exists() and not path.exists():
            os.rename(older, path)
        ours_failed = isinstance(error, OSError) and str(error.filename or temporary).startswith(str(temporary))
        if isinstance(error, OSError) and ours_failed and (failure := storage_failure(error, path)):
            raise failure from None
        raise
    shutil.rmtree(older, ignore_errors=True)


def _failure_here(error: OSError, path: Path, temporary: Path, needed: int | None) -> ClmError | None:
    """As storage_failure, for errors of these files: the block may have read others."""
    ours = {str(p) for p in (path, temporary, *path.parents)}
    named = error.filename is not None and os.fspath(error.filename) not in ours
    return None if named else storage_failure(error, path, needed)


def _remove(temporary: Path) -> None:
    with suppress(OSError):  # its folder is no folder, or read-only: then nothing was written
        temporary.unlink(missing_ok=True)


def finite(value: Any) -> Any:
    """The value with null for every number that is not finite: JSON has no name for those."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path | str, value: Any) -> None:
    text = json.dumps(finite(value), indent=2, allow_nan=False) + "\n"
    with atomic_write(path, "w", needed=len(text)) as file:
        file.write(text)
