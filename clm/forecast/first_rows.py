"""The rows that a run begins with, as a forecast looks at them: every few of them stand for all, and of rows that may lie on disk
the cull entries of all, because a view uses a page of which it sees a corner."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clm.config import Config
from clm.formats.ply_read import open_ply
from clm.formats.source import in_ram, store_of
from clm.formats.start import RANDOM_ROWS, ordered_source
from clm.plan.visibility import block_bounds
from clm.progress import unseen
from clm.scene import Scene
from clm.store.layout import PAGE_ROWS
from clm.store.store import Store


@dataclass(frozen=True, eq=False)
class FirstRows:
    """`entries` [N, 4] f32: cull entries in the order of the run's store, with the `bounds` of pages of them; `store`: every
    `step`-th of these rows."""

    entries: np.ndarray
    bounds: np.ndarray
    store: Store
    step: int
    page_rows: int = PAGE_ROWS

    @property
    def rows(self) -> int:
        return len(self.entries)

    @property
    def fill(self) -> np.ndarray:
        """[pages] i32: rows of each page."""
        return np.minimum(self.page_rows, self.rows - np.arange(0, self.rows, self.page_rows)).astype(np.int32)


def count_first_rows(scene: Scene, config: Config) -> int:
    """Rows that a run begins with, if nothing limits them."""
    return open_ply(config.init_ply).count if config.init_ply else len(scene.points) or RANDOM_ROWS


def first_rows(scene: Scene, config: Config, most: int, every_entry: bool) -> FirstRows:
    """At most `most` rows as a store; entries of all where `every_entry` says so, else of the same. Memory: as a run takes to find
    the order of its rows, 16 bytes of each for their entries, and the store."""
    source, order = ordered_source(scene, config, lambda _text: None, scratch=Path(tempfile.gettempdir()))
    step = -(-len(order) // most)
    store = store_of(source, order[::step], config.moments, in_ram, unseen)
    if step == 1 or not every_entry:
        return FirstRows(store.entries, store.bounds, store, 1)
    entries = source.entries()[order]
    return FirstRows(entries, block_bounds(entries), store, step)
