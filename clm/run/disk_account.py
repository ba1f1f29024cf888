"""What the disk tier of a run has done, added up batch by batch: bytes, hits, and the seconds that computing waited for it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Protocol


class DiskPart(Protocol):
    """What the store's disk tier counts since it was made."""

    bytes_read: int
    bytes_written: int
    uses: int  # pages that somebody asked for
    reads: int  # of them, those that were read from disk for it
    busy_seconds: float  # in which something was read or written
    exposed_seconds: float  # in which somebody waited for it
    disk_bytes: int  # of the scratch file


@dataclass
class DiskTotals:
    """Sums of the counters of `DiskPart`; of the scratch file, its largest size."""

    bytes_read: int = 0
    bytes_written: int = 0
    uses: int = 0
    reads: int = 0
    busy_seconds: float = 0.0
    exposed_seconds: float = 0.0
    disk_bytes: int = 0

    @staticmethod
    def of(part: DiskPart) -> DiskTotals:
        return DiskTotals(**{field.name: getattr(part, field.name) for field in fields(DiskTotals)})

    def add(self, other: DiskTotals) -> None:
        size = max(self.disk_bytes, other.disk_bytes)
        for field in fields(DiskTotals):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        self.disk_bytes = size

    @property
    def hit_rate(self) -> float:
        """Share of the pages asked for that were in host memory."""
        return 1.0 - self.reads / self.uses if self.uses else 1.0

    @property
    def hidden_fraction(self) -> float:
        """Share of the disk's seconds that nobody waited for."""
        return min(1.0, max(0.0, 1.0 - self.exposed_seconds / self.busy_seconds)) if self.busy_seconds else 1.0

    def report(self) -> dict[str, Any]:
        """The part `disk` of `report.json`."""
        return {
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "hit_rate": self.hit_rate,
            "hidden_fraction": self.hidden_fraction,
            "seconds": self.busy_seconds,
            "exposed": self.exposed_seconds,
        }


class DiskMeter:
    """Reads the counters of whichever disk tier there is, so that nothing is counted twice."""

    def __init__(self) -> None:
        self._part: DiskPart | None = None
        self._seen = DiskTotals()

    def since(self, part: DiskPart | None) -> DiskTotals | None:
        """What `part` has done since the last call; all of it, where it was another one then. None: there is none."""
        if part is None:
            return None
        before = self._seen if part is self._part else DiskTotals()
        self._part, self._seen = part, DiskTotals.of(part)
        names = (field.name for field in fields(DiskTotals) if field.name != "disk_bytes")
        done = {name: getattr(self._seen, name) - getattr(before, name) for name in names}
        return DiskTotals(**done, disk_bytes=self._seen.disk_bytes)
