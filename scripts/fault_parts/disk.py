"""A disk that fills up, at ten sizes: a small tmpfs of its own where that may be mounted, else a limit on file sizes.

Expected: exit code 3 with one sentence, whatever was saved still whole, and once there is room the run goes on.
"""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
from pathlib import Path

from fault_parts.bench import SAVE_EVERY, last_saved, saved
from fault_parts.tries import Fault, Lost, Try

_CLONE_NEWNS = 0x20000
_SIZES = 10


def _own_mounts() -> bool:
    """A mount namespace of this process's own, gone with it; False where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() or libc.unshare(_CLONE_NEWNS):
        return False
    private = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True)
    return private.returncode == 0


def _mount(folder: Path, size: int, remount: bool = False) -> bool:
    options = f"{'remount,' if remount else ''}size={size}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def used_bytes(folder: Path) -> int:
    return sum(p.stat().st_blocks * 512 for p in folder.rglob("*"))


def _disk_full(t: Try) -> None:
    disk = t.folder / "disk"
    disk.mkdir()
    whole = int(1.4 * used_bytes(t.bench.reference))  # a checkpoint more than what is left at the end
    size = whole * (t.case % _SIZES + 1) // (_SIZES + 1) // 4096 * 4096 + 4096
    if not (_own_mounts() and _mount(disk, size)):
        _file_limit(t)
        return
    run = disk / "run"
    try:
        save_every = (SAVE_EVERY, t.bench.images)[t.case // _SIZES % 2]
        said = t.bench.finish(t.bench.start(t.bench.train_words(run, save_every=save_every)), 60)
        _full(said.code, said.sentence, run)
        if not _mount(disk, 1 << 26, remount=True):
            raise AssertionError("the mounted disk could not be made larger")
        t.bench.go_on(run, save_every=save_every)
    finally:
        subprocess.run(["umount", "-l", str(disk)], capture_output=True)


def _full(code: int, sentence: str, run: Path) -> None:
    if code not in (0, 3):
        raise Lost(f"a full disk ended the run with code {code}, not 3: {sentence}")
    if code and not sentence.startswith("error: "):
        raise Lost(f"a full disk, but the last line is: {sentence}")
    if max(saved(run), default=0) < last_saved(run):
        raise Lost(f"the checkpoint of image {last_saved(run)} is gone")


def _file_limit(t: Try) -> None:
    """RLIMIT_FSIZE (`ulimit -f`): writing beyond it fails with EFBIG."""
    run = t.folder / "run"
    largest = max(p.stat().st_size for p in t.bench.reference.rglob("*") if p.is_file())
    limit = largest * (t.case % _SIZES + 1) // (_SIZES + 1)
    read, write = os.pipe()
    os.set_blocking(write, False)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    process = t.bench.start(t.bench.train_words(run), stdout=write, stderr=write, preexec_fn=limited)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        text = pipe.read()
    process.log.write_bytes(text)  # type: ignore[attr-defined]
    said = t.bench.finish(process, 60)
    _full(said.code, said.sentence, run)
    t.bench.go_on(run)


FAULTS = [
    Fault("disk-full", "disk full (tmpfs of ten sizes)", 20, 2, _disk_full),
    Fault("file-limit", "file-size limit (ten sizes)", 10, 1, _file_limit),
]
