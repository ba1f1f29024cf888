"""One process per run directory: a lock on `RUN/.lock` that the kernel gives back when its holder dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clm.errors import ClmError
from clm.files import storage_failure


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the lock of a run directory, which is made if need be. ClmError names the process that has it.

    Leaves neither the file nor an empty directory behind. Where the file system knows no locks, there is none."""
    made = [folder for folder in (run, *run.parents) if not folder.exists()]
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(run)
    except OSError as error:
        raise storage_failure(error, run / ".lock") or error from None
    try:
        yield
    finally:
        with suppress(OSError):
            (run / ".lock").unlink()  # before the lock is given back: whoever waits for it looks again
        os.close(descriptor)
        with suppress(OSError):
            for folder in made:
                folder.rmdir()  # only where the run left nothing


def _acquire(run: Path) -> int:
    path = run / ".lock"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return descriptor  # no locks here
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise ClmError(
                f"{run} is being trained by process {holder}.", "Wait for it, stop it, or pass another folder with -o."
            ) from None
        with suppress(OSError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                return descriptor
        os.close(descriptor)  # its holder removed it meanwhile
