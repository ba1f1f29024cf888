"""Photos and masks of the training views, and the visits that have to do without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from clm.errors import ClmError
from clm.scene import CorruptImage, ImageCache, Scene

_NAMED = 3  # photos that cannot be used are named, later ones counted
_VANISHED_SHARE = 0.1  # of the training photos; a run stops when more cannot be read


class FirstFew:
    """Says the first few sentences of a kind, and counts the others."""

    def __init__(self, say: Callable[[str], None]):
        self._say, self._count = say, 0

    def add(self, sentence: str) -> None:
        self._count += 1
        if self._count <= _NAMED:
            self._say(sentence)

    @property
    def more(self) -> int:
        """How many were counted only."""
        return max(0, self._count - _NAMED)


class Photos:
    """The image cache of a run. strict: an unreadable photo is an error at once."""

    def __init__(self, scene: Scene, cache: ImageCache, strict: bool, warn: Callable[[str], None]):
        self.cache = cache
        self._scene, self._strict, self._named = scene, strict, FirstFew(warn)
        self._unreadable: list[int] = []  # views, in the order in which they were found

    def of(self, view: int, background: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Photo [H, W, 3] u8, over `background` where it is transparent, and mask [H, W] bool of a view; None: it cannot be read,
        and this visit is skipped. The first few are named."""
        try:
            return self.cache.over(view, background)
        except CorruptImage as error:
            if self._strict:
                raise
            self._unread(view, f"{error} Skipping it.")
            return None

    def unread(self, view: int, why: str) -> None:
        """Another rank was to use this photo, and could not."""
        self._unread(view, f"{self._scene.views[view].name}: {why}. Skipping it.")

    def _unread(self, view: int, sentence: str) -> None:
        if view not in self._unreadable:
            self._unreadable.append(view)
            self._named.add(sentence)

    def prefetch(self, views: Sequence[int]) -> None:
        self.cache.prefetch(views)

    def vanished(self) -> ClmError | None:
        """Why a run should stop: more photos became unreadable than it should go on without."""
        gone, views = len(self._unreadable), len(self._scene.train)
        if gone <= max(_NAMED, _VANISHED_SHARE * views):
            return None
        name = self._scene.views[self._unreadable[-1]].name
        return ClmError(
            f"{gone} of {views} training photos can no longer be read (the last one: {name}).",
            "The state is saved; bring the photos back and run again with --resume.",
        )

    @property
    def bytes(self) -> int:
        return self.cache.bytes

    def close(self) -> None:
        self.cache.close()
