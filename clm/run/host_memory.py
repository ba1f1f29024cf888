"""`--host-memory` covers the whole process: what a run takes of the host beside its rows, and what that leaves for them.

Rows come last: the interpreter and the libraries are there before them, photos get at most a share, and what changing the
rows takes for a moment is counted with each row. The photo cache gives way first, because it only saves decoding.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clm.device.budget import AVAILABLE_SHARE, available_memory
from clm.errors import ResourceError
from clm.plan.budget import AUTO, WRITING_BYTES
from clm.run.room import Room
from clm.units import format_bytes, parse_bytes, size_flag

_PHOTO_SHARE = 0.25  # of a stated budget at most


def resident_bytes() -> int:
    """Bytes of RAM that this process holds now; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@dataclass(frozen=True)
class HostMemory:
    """Bytes of the host for a run."""

    stated: int | None  # None: auto
    base: int  # what the process held before its rows
    photos: int  # of the photo cache, at most
    runs: int = 1  # ranks on this host, of which each gets as much of what is free

    @staticmethod
    def find(
        text: str, base: int, image_cache: int, all_photos: int, say: Callable[[str], None], runs: int = 1
    ) -> HostMemory:
        """text: --host-memory. image_cache: what the photo cache may take as configured; all_photos: what it can fill. `say`
        hears where it gets less. Raises ResourceError where the budget ends before the first row."""
        photos = min(image_cache, all_photos)
        if text == AUTO:
            return HostMemory(None, base, photos, runs)
        stated = parse_bytes(text)
        if stated <= base:
            raise ResourceError(
                f"--host-memory {text} is less than the {format_bytes(base)} that the program takes before its first "
                "Gaussian.",
                f"Pass `--host-memory {size_flag(2 * base)}` or more.",
            )
        share = int(_PHOTO_SHARE * (stated - base))
        if photos > share:
            say(
                f"photos are cached in {format_bytes(share)} instead of {format_bytes(photos)}, a quarter of what "
                f"--host-memory {text} leaves beside the program: the others are decoded again when they are used"
            )
        return HostMemory(stated, base, min(photos, share), runs)

    def total(self) -> int:
        """Bytes for the whole process, now."""
        if self.stated is not None:
            return self.stated
        return int(
            AVAILABLE_SHARE * (available_memory() // self.runs + resident_bytes())
        )  # what is free, or ours already

    def room(self, offload: str, scratch: Path) -> Room:
        """For a store that is made."""
        left = self.total() - self.beside_rows
        return Room(left, scratch if offload in ("auto", "disk") else None, everything=offload == "disk")

    @property
    def beside_rows(self) -> int:
        """Bytes for the program, its photos, and what it writes."""
        return self.base + self.photos + WRITING_BYTES
