"""Work that is done every so many training images. Batches may jump over the exact image."""

from __future__ import annotations


def crossed(every: int, before: int, now: int) -> bool:
    """Whether a multiple of `every` images lies in (before, now]; every 0: never."""
    return every > 0 and now // every > before // every
