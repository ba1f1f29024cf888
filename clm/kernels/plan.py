"""Typed face of the planning kernels (source: `src/plan.cpp`): overlaps, the order of views, residency.

What the results mean is derived in `clm.plan.order` and `clm.plan.residency`; this file checks its arguments and sizes
the outputs. All kernels run on the calling thread, release the GIL, and take time and scratch memory that follow the
rows and the blocks that the batch touches (8 bytes per row of a touched block), never N.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from clm.kernels import load, pointer

MAX_EXACT = 20  # views of `exact_order`, which takes 2^n n^2 steps

_NOT_ASCENDING, _NO_MEMORY, _TOO_MANY = 1, 2, 3


class ResidencyArrays(ctypes.Structure):
    """Addresses of the outputs of `residency`; mirrors `Residency` in the source."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in (
            *("slots", "load_rows", "load_slots", "send_rows", "send_slots", "union_rows"),
            *("load_partial", "counts", "totals"),
        )
    )


@dataclass(frozen=True, eq=False)
class Residency:
    """Lists of all turns one after the other; `counts` cuts loads and sends, the sizes of the sets cut `slots`. The sends of
    a turn are final rows, then rows that take a partial gradient along, then rows that have none."""

    slots: np.ndarray  # [total rows] i32
    load_rows: np.ndarray  # [loads] i32
    load_slots: np.ndarray  # [loads] i32
    load_partial: np.ndarray  # [loads] bool
    send_rows: np.ndarray  # [sends] i32
    send_slots: np.ndarray  # [sends] i32
    counts: np.ndarray  # [turns, 5] i64: loads, early loads; sends: final, partial, of no gradient
    union_rows: np.ndarray  # [D] i32
    partial: int  # loads that bring a partial gradient
    shared: int  # sum |V_i & V_{i-1}|


@cache
def _library() -> ctypes.CDLL:
    library = load()
    address, long = ctypes.c_void_p, ctypes.c_int64
    library.clm_plan_residency.argtypes = [address, address, address, long, long, long, address]
    library.clm_plan_overlaps.argtypes = [address, address, long, long, address]
    library.clm_order_exact.argtypes = [address, long, address]
    library.clm_order_greedy.argtypes = [address, long, address]
    library.clm_order_descend.argtypes = [address, long, address, long, address]
    for name in ("clm_plan_residency", "clm_plan_overlaps", "clm_order_exact", "clm_order_greedy", "clm_order_descend"):
        getattr(library, name).restype = ctypes.c_int32
    library.clm_residency_bytes.argtypes, library.clm_residency_bytes.restype = [], long
    return library


def _run(code: int) -> None:
    if code == _NOT_ASCENDING:
        raise ValueError("row sets must be strictly ascending and not negative")
    if code == _NO_MEMORY:
        raise MemoryError("no memory for the plan of one batch")
    if code == _TOO_MANY:
        raise ValueError(f"the blocks that one batch touches have more than {np.iinfo(np.int32).max} places")


def _addresses(sets: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Addresses [n] and sizes [n] of the sets, which must be int32 and contiguous and outlive their use."""
    for rows in sets:
        if rows.dtype != np.int32 or rows.ndim != 1 or not rows.flags.c_contiguous:
            raise TypeError(f"row set: want contiguous int32 [n], got {rows.dtype} {rows.shape}")
    addresses = np.array([rows.ctypes.data for rows in sets], np.uint64)
    return addresses, np.array([len(rows) for rows in sets], np.int64)


def residency(sets: Sequence[np.ndarray], adds: Sequence[bool], capacity: int, page_rows: int) -> Residency:
    """Slots, loads and sends of every turn; sets [turns] as those of `clm.plan.residency.Turn.rows`, adds [turns]: whether
    gradients are added to them. A turn that adds nothing may be a row's last only where no turn adds to the row.

    `capacity` must hold the largest set (not checked here). ValueError when a set is not strictly ascending from 0 on, or
    when the touched blocks have more than 2^31 - 1 places.
    """
    if page_rows < 1:
        raise ValueError(f"page_rows must be positive, got {page_rows}")
    addresses, sizes = _addresses(sets)
    adding, total = np.array(adds, np.uint8), int(sizes.sum())
    lists, load_partial = np.empty((6, total + 1), np.int32), np.empty(total, bool)
    counts, totals = np.zeros((len(sets), 5), np.int64), np.zeros(3, np.int64)
    outputs = [*lists, load_partial, counts, totals]
    out = ResidencyArrays(*(array.ctypes.data for array in outputs))
    _run(
        _library().clm_plan_residency(
            pointer(addresses, np.uint64, None),
            pointer(sizes, np.int64, None),
            pointer(adding, np.uint8, len(sets)),
            len(sets),
            min(int(capacity), total),
            page_rows,
            ctypes.byref(out),
        )
    )
    loads, _, *leaving = (int(count) for count in counts.sum(axis=0))
    slots, load_rows, load_slots, send_rows, send_slots, union_rows = lists
    partial, shared, union = (int(value) for value in totals)
    return Residency(
        slots=slots[:total],
        load_rows=load_rows[:loads],
        load_slots=load_slots[:loads],
        load_partial=load_partial[:loads],
        send_rows=send_rows[: sum(leaving)],
        send_slots=send_slots[: sum(leaving)],
        counts=counts,
        union_rows=union_rows[:union],
        partial=partial,
        shared=shared,
    )


def overlaps(sets: Sequence[np.ndarray], page_rows: int) -> np.ndarray:
    """|A & B| of sorted int32 sets, [n, n] i64 with a zero diagonal. `page_rows` only sizes what is compared at a time."""
    if page_rows < 1:
        raise ValueError(f"page_rows must be positive, got {page_rows}")
    addresses, sizes = _addresses(sets)
    shared = np.zeros((len(sets), len(sets)), np.int64)
    _run(
        _library().clm_plan_overlaps(
            pointer(addresses, np.uint64, None),
            pointer(sizes, np.int64, None),
            len(sets),
            page_rows,
            pointer(shared, np.int64, None, None),
        )
    )
    return shared


def _distances(distances: np.ndarray) -> ctypes.c_void_p:
    return pointer(distances, np.int64, len(distances), len(distances))


def exact_order(distances: np.ndarray) -> np.ndarray:
    """Shortest open path [n] i64 through symmetric distances [n + 1, n + 1] i64, the gap last; n from 1 to 20."""
    count = len(distances) - 1
    if not 1 <= count <= MAX_EXACT:
        raise ValueError(f"exact order of {count} views: want 1 to {MAX_EXACT}")
    path = np.empty(count, np.int64)
    _run(_library().clm_order_exact(_distances(distances), count, pointer(path, np.int64, None)))
    return path


def greedy_tour(distances: np.ndarray) -> np.ndarray:
    """The best of the nearest-neighbour tours that start at each view, [n + 1] i64; the gap (node n) is first."""
    tour = np.empty(len(distances), np.int64)
    _run(_library().clm_order_greedy(_distances(distances), len(distances) - 1, pointer(tour, np.int64, None)))
    return tour


def descend(distances: np.ndarray, tour: np.ndarray, budget: int) -> tuple[np.ndarray, int]:
    """`tour` [n + 1] i64 after the best 2-opt and or-opt moves, until none gains or `budget` scans are spent; scans.

    The first node stays where it is.
    """
    moved, used = tour.copy(), ctypes.c_int64(0)
    if sorted(moved.tolist()) != list(range(len(distances))):
        raise ValueError("the tour must visit every node once")
    out = pointer(moved, np.int64, None)
    _run(_library().clm_order_descend(_distances(distances), len(moved), out, budget, ctypes.byref(used)))
    return moved, used.value
