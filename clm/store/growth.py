"""Growth as data: which rows leave the store, and which rows come from whom. A strategy decides it, the store carries it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Rows(NamedTuple):
    """geometry [n, 12], colour [n, 48], f32."""

    geometry: np.ndarray
    colour: np.ndarray


@dataclass(frozen=True, eq=False)
class Growth:
    """leave [L] i32: ids of rows that go, ascending; parents [C] i32: for each new row the id of the one whose page it goes to,
    ascending; keys [C] u64: the new rows' own. make(piece): geometry and colour of a range of the new rows, made from the store
    as it was, so that they need not be held all at once; it is asked for each once, before the pages of their parents change, and
    what it returns is of no use any more when it is asked again."""

    leave: np.ndarray
    parents: np.ndarray
    keys: np.ndarray
    make: Callable[[slice], Rows]

    @staticmethod
    def of(
        leave: np.ndarray, parents: np.ndarray, keys: np.ndarray, geometry: np.ndarray, colour: np.ndarray
    ) -> Growth:
        """Of new rows that are at hand: geometry [C, 12], colour [C, 48]."""
        return Growth(leave, parents, keys, lambda piece: Rows(geometry[piece], colour[piece]))

    @property
    def rows(self) -> int:
        """Rows that there are more of, or fewer, afterwards."""
        return len(self.parents) - len(self.leave)
