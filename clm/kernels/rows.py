"""Face of the row kernels: deferred Adam, fetch, placement in the arena, gradient send-back.

Sources: `src/rows.cpp`, `src/adam.cpp`.

All arrays are C-contiguous numpy, float32 unless said otherwise; ids are int32. Every call releases the GIL.
`colour_columns` is how many of the 48 colour columns are active (3, 12, 27 or 48 for SH degree 0 to 3).
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_int64, c_void_p
from functools import cache
from typing import Protocol

import numpy as np

from clm.kernels import DEBUG, ids, load, pointer
from clm.kernels.numbers import COLOUR, GEOMETRY, GRAD_GEOMETRY, STATISTICS

f32, u16 = np.float32, np.uint16


@cache
def _library() -> ctypes.CDLL:
    library = load()
    store_and_step, lists = (c_void_p, c_void_p), (c_void_p, c_void_p, c_int64)
    colours = (c_void_p, c_int32, c_int32)  # address, stride, bytes of a value
    library.clm_fetch.argtypes = [
        *(*store_and_step, *lists),
        *(c_void_p, c_void_p, c_int32, c_int32, c_int32, c_void_p, c_void_p),
    ]
    library.clm_settle.argtypes = [*store_and_step, c_void_p, c_int64]
    library.clm_adam.argtypes = [
        *(*store_and_step, *lists),
        *(c_void_p, c_void_p, c_int32, c_int32, c_void_p, c_void_p),
    ]
    library.clm_entries.argtypes = [*store_and_step, c_void_p, c_int64, c_void_p]
    library.clm_put_entries.argtypes = [c_void_p, c_void_p, c_int64, c_void_p]
    library.clm_place.argtypes = [c_void_p, *colours, c_void_p, c_int64, *(c_void_p,) * 4, c_int32]
    gradients = (c_void_p, c_void_p, c_int32, c_void_p)  # geometry, colour, stride, slots
    library.clm_move_gradients.argtypes = [*gradients, c_int64, *gradients, c_int32]
    library.clm_touch.argtypes = [c_void_p, c_int64]
    for name in ("fetch", "settle", "adam", "entries", "put_entries", "place", "move_gradients", "touch"):
        getattr(library, f"clm_{name}").restype = None
    return library


def colour_columns(sh_degree: int) -> int:
    """Active colour columns at a spherical-harmonics degree: 3 (degree + 1)^2."""
    return 3 * (sh_degree + 1) ** 2


class AdamStep(ctypes.Structure):
    """Constants and tables of one optimizer step; built by `clm.optim.adam.Adam.at`, which also keeps the tables alive.

    `bf16_colours` 1: every fetch for this step rounds colours to bf16 (nearest, ties to even) after catching up. What follows it
    is 3DGS-MCMC's (`clm.optim.mcmc`); where `variance` is NULL, there is none.
    """

    _fields_ = (
        ("step", ctypes.c_int32),
        ("table_steps", ctypes.c_int32),
        ("beta1", ctypes.c_float),
        ("beta2", ctypes.c_float),
        ("eps", ctypes.c_float),
        ("gradient_scale", ctypes.c_float),
        ("drift", ctypes.c_void_p),
        ("ratio_power", ctypes.c_void_p),
        ("beta1_power", ctypes.c_void_p),
        ("beta2_power", ctypes.c_void_p),
        ("eps_drift", ctypes.c_void_p),
        ("rate", ctypes.c_float * 6),
        ("eps_step", ctypes.c_float),
        ("bf16_colours", ctypes.c_int32),
        ("noise_seed", ctypes.c_uint32),
        ("variance", ctypes.c_void_p),
        ("rate_sums", ctypes.c_void_p),
        ("beta2_spent", ctypes.c_void_p),
        ("variance_until", ctypes.c_double),
        ("growth", ctypes.c_void_p),
        *((name, ctypes.c_float) for name in ("scale_pull", "opacity_pull", "scale_share", "opacity_share")),
    )


class StoreView(ctypes.Structure):
    """Addresses of a store's arrays; moments and stamps are NULL for a store that only renders.

    `moment_bytes`: 4 where moments are float32, 2 where they are bf16 (uint16 arrays).
    """

    _fields_ = (
        ("geometry", ctypes.c_void_p),
        ("colour", ctypes.c_void_p),
        ("m_geometry", ctypes.c_void_p),
        ("v_geometry", ctypes.c_void_p),
        ("m_colour", ctypes.c_void_p),
        ("v_colour", ctypes.c_void_p),
        ("stamp", ctypes.c_void_p),
        ("moment_bytes", ctypes.c_int32),
    )


class StoreArrays(Protocol):
    """What the kernels need of a store. `geometry` [N, 12]: row ids lie in 0..N-1."""

    @property
    def geometry(self) -> np.ndarray: ...

    def view(self) -> StoreView: ...


class GradientRows(Protocol):
    """A place that holds gradient rows: grad_geometry [n, 16], grad_colour [n, >= active columns]."""

    @property
    def grad_geometry(self) -> np.ndarray: ...
    @property
    def grad_colour(self) -> np.ndarray: ...


def step_address(step: AdamStep | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None) if step is None else ctypes.cast(ctypes.byref(step), ctypes.c_void_p)


def _rows(store: StoreArrays, rows: np.ndarray) -> ctypes.c_void_p:
    """Address of row ids [M]."""
    return ids(rows, len(store.geometry))


def _slots(slots: np.ndarray | None, count: int, *places: np.ndarray) -> ctypes.c_void_p:
    """Address of slots [count] in all of `places`; None: positions 0..count-1."""
    limit = min(len(place) for place in places)
    if DEBUG and (slots is None or len(slots) != count) and (slots is not None or count > limit):
        raise IndexError(f"{count} rows, but {limit} places" if slots is None else f"{count} rows, {len(slots)} slots")
    return ids(slots, limit, "slots")


def _colours(colour: np.ndarray, columns: int, dtype: type = f32) -> tuple[ctypes.c_void_p, int]:
    """Address and stride of colour rows: 48 floats apart in the store and the arena, only the active ones in staging."""
    if colour.shape[1] < columns:
        raise TypeError(f"kernel argument: {columns} active colour columns, but rows of {colour.shape[1]}")
    return pointer(colour, dtype, None, None), colour.shape[1]


def _bus_colours(colour: np.ndarray, columns: int) -> tuple[ctypes.c_void_p, int, int]:
    """Address, stride and bytes per value of colour rows that may be bf16 (uint16 arrays)."""
    packed = colour.dtype == u16
    return *_colours(colour, columns, u16 if packed else f32), 2 if packed else 4


def _gradients(place: GradientRows, columns: int) -> tuple[ctypes.c_void_p, ctypes.c_void_p, int]:
    return pointer(place.grad_geometry, f32, None, GRAD_GEOMETRY), *_colours(place.grad_colour, columns)


def _places(gradients: GradientRows) -> tuple[np.ndarray, np.ndarray]:
    return gradients.grad_geometry, gradients.grad_colour


def _arena_gradients(place: GradientRows | None) -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    return (pointer(None, f32), pointer(None, f32)) if place is None else _gradients(place, COLOUR)[:2]


def fetch(
    store: StoreArrays,
    step: AdamStep | None,
    rows: np.ndarray,
    geometry: np.ndarray,
    colour: np.ndarray,
    columns: int,
    slots: np.ndarray | None = None,
    gradients: GradientRows | None = None,
) -> None:
    """Catch rows [M] up to `step - 1` and copy them to geometry/colour at slots [M] (None: positions 0..M-1), where their
    rows of `gradients` [>= M, 48 colour columns], if given, become zero.

    Colour rows of the target may be as short as `columns`, and bf16 (uint16) where the step rounds to that: packing then
    loses nothing. TypeError where it would."""
    if colour.dtype == u16 and not (step is not None and step.bf16_colours):
        raise TypeError("kernel argument: bf16 colours of a step that does not round them")
    address, stride, colour_bytes = _bus_colours(colour, columns)
    _library().clm_fetch(
        ctypes.byref(store.view()),
        step_address(step),
        _rows(store, rows),
        _slots(slots, len(rows), geometry, colour, *(() if gradients is None else _places(gradients))),
        len(rows),
        pointer(geometry, f32, None, GEOMETRY),
        address,
        columns,
        stride,
        colour_bytes,
        *_arena_gradients(gradients),
    )


def settle(store: StoreArrays, step: AdamStep, rows: np.ndarray) -> None:
    """Write rows [M], each named once, back into the store as they are after `step - 1`; decayed bf16 moments are rounded anew."""
    _library().clm_settle(ctypes.byref(store.view()), step_address(step), _rows(store, rows), len(rows))


def adam(
    store: StoreArrays,
    step: AdamStep,
    rows: np.ndarray,
    gradients: GradientRows,
    slots: np.ndarray | None,
    columns: int,
    statistics: np.ndarray | None,
    entries: np.ndarray,
) -> None:
    """Apply `step` to rows [M]; entries [M, 4] receives their new cull entries (radius -1: the row did not change).

    bf16 moments take part as they are stored; the step uses the new ones in float32 and then rounds them stochastically:
    the expectation of a stored moment is its float32 value. The random bits are a function of (the row's identity, step,
    column), see `reference.round_to_bf16`, so the result depends on neither threads nor placement.
    """
    grad_geometry, grad_colour, stride = _gradients(gradients, columns)
    _library().clm_adam(
        ctypes.byref(store.view()),
        step_address(step),
        _rows(store, rows),
        _slots(slots, len(rows), *_places(gradients)),
        len(rows),
        grad_geometry,
        grad_colour,
        columns,
        stride,
        pointer(statistics, f32, None, STATISTICS),
        pointer(entries, f32, None, 4),
    )


def cull_entries(store: StoreArrays, step: AdamStep | None, rows: np.ndarray, entries: np.ndarray) -> None:
    """entries [M, 4] = cull entries of stored rows [M]: centre and bounding radius, pending steps included."""
    view = ctypes.byref(store.view())
    _library().clm_entries(view, step_address(step), _rows(store, rows), len(rows), pointer(entries, f32, len(rows), 4))


def put_entries(rows: np.ndarray, fresh: np.ndarray, entries: np.ndarray) -> None:
    """entries[rows] = fresh where the fresh radius is not negative."""
    fresh_list, entry_list = pointer(fresh, f32, len(rows), 4), pointer(entries, f32, None, 4)
    _library().clm_put_entries(ids(rows, len(entries)), fresh_list, len(rows), entry_list)


def place(
    staging: tuple[np.ndarray, np.ndarray],
    slots: np.ndarray,
    geometry: np.ndarray,
    colour: np.ndarray,
    gradients: GradientRows,
    columns: int,
) -> None:
    """Scatter staged rows (geometry [M, 12], colour [M, >= columns]) into arena slots [M] and zero their gradient rows.

    Staged colours are f32, or bf16 (uint16), which are expanded."""
    _library().clm_place(
        pointer(staging[0], f32, None, GEOMETRY),
        *_bus_colours(staging[1], columns),
        _slots(slots, len(staging[0]), geometry, colour, *_places(gradients)),
        len(slots),
        pointer(geometry, f32, None, GEOMETRY),
        pointer(colour, f32, None, COLOUR),
        *_arena_gradients(gradients),
        columns,
    )


def move_gradients(
    source: GradientRows,
    source_slots: np.ndarray | None,
    target: GradientRows,
    target_slots: np.ndarray | None,
    count: int,
    columns: int,
) -> None:
    """target[target_slots[i]] = source[source_slots[i]] for i < count; None means position i."""
    _library().clm_move_gradients(
        *_gradients(source, columns),
        _slots(source_slots, count, *_places(source)),
        count,
        *_gradients(target, columns),
        _slots(target_slots, count, *_places(target)),
        columns,
    )


def touch(values: np.ndarray) -> None:
    """values [n] += 1 in place with all threads: the read+write limit of this machine, for benchmarks."""
    _library().clm_touch(pointer(values, f32, None), len(values))
