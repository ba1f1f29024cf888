"""Typed face of the culling kernels: block bounds, block classes, row tests.

What the numbers mean (planes, radii, margins) is derived in `clm.plan.visibility`; this file checks shapes and sizes
the outputs. The result does not depend on the thread count, nor on how rows are cut into blocks.
"""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np

from clm.kernels import load, pointer
from clm.kernels.numbers import CAMERA_FLOATS

_long, _float, _address = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


@cache
def _library() -> ctypes.CDLL:
    library = load()
    library.clm_block_bounds.argtypes = [_address, _long, _long, _address, _address, _long, _address]
    library.clm_cull_blocks.argtypes = [_address, _long, _address, _address, _long, _float, _float, _address]
    library.clm_cull_rows.argtypes = [
        *(_address, _long, _long, _address, _address, _long),
        *(_address, _address, _address, _address, _float, _float, _address, _address),
    ]
    library.clm_cull_ids.argtypes = [_long, _address, _long, *([_address] * 6)]
    for name in ("clm_block_bounds", "clm_cull_blocks", "clm_cull_rows", "clm_cull_ids"):
        getattr(library, name).restype = None
    return library


def block_bounds(
    entries: np.ndarray,
    page_rows: int,
    bounds: np.ndarray,
    blocks: np.ndarray | None = None,
    fill: np.ndarray | None = None,
) -> None:
    """Fills bounds [nb, 8] f32 from entries [N, 4] f32 for the listed blocks (int32; None = all). fill [nb] i32: how many of a
    block's rows are live, from its first on; None: all of [0, N)."""
    rows = len(entries)
    total = _blocks(rows, page_rows, fill)
    if blocks is not None and blocks.size and (int(blocks.min()) < 0 or int(blocks.max()) >= total):
        raise ValueError(f"blocks must lie in [0, {total})")
    count = total if blocks is None else len(blocks)
    _library().clm_block_bounds(
        pointer(entries, np.float32, None, 4),
        rows,
        page_rows,
        pointer(fill, np.int32, total),
        pointer(blocks, np.int32, None),
        count,
        pointer(bounds, np.float32, total, 8),
    )


def _blocks(rows: int, page_rows: int, fill: np.ndarray | None) -> int:
    """How many blocks there are. ValueError where `fill` counts rows that do not exist."""
    if fill is None:
        return -(-rows // page_rows)
    if fill.min(initial=0) < 0 or fill.max(initial=0) > page_rows:
        raise ValueError(f"fill must hold counts from 0 to {page_rows}")
    used = np.flatnonzero(fill)
    if len(used) and int(used[-1]) * page_rows + int(fill[used[-1]]) > rows:
        raise ValueError(f"fill counts rows beyond the {rows} that there are")
    return len(fill)


def cull(
    entries: np.ndarray,
    bounds: np.ndarray,
    cameras: np.ndarray,
    growth: float,
    extra: float,
    page_rows: int,
    fill: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Sorted int32 row ids per camera; cameras [C, 32] f32 as packed by `clm.plan.visibility.camera_planes`;
    fill as above.

    Memory: one byte per (block, camera), `page_rows` bits per pair that is neither out nor in, and the ids.
    """
    library, rows, count = _library(), len(entries), len(cameras)
    blocks = _blocks(rows, page_rows, fill)
    if rows == 0 or count == 0:
        return [np.empty(0, np.int32) for _ in range(count)]
    planes = pointer(cameras, np.float32, None, CAMERA_FLOATS)
    classes = _classes(bounds, blocks, fill, cameras, growth, extra)
    pairs = np.flatnonzero(classes)
    pair_class = classes.reshape(-1)[pairs]
    pair_block, pair_camera = ((part.astype(np.int32)) for part in np.divmod(pairs, count))
    starts = np.flatnonzero(np.diff(pair_block, prepend=-1))
    runs = np.append(starts, len(pairs)).astype(np.int64)
    bits = np.empty((len(pairs), -(-page_rows // 64)), np.uint64)
    counts = np.empty(len(pairs), np.int64)
    run_list = (pointer(runs, np.int64, None), len(starts))
    block_list, class_list = pointer(pair_block, np.int32, None), pointer(pair_class, np.uint8, None)
    bit_words, count_list = pointer(bits, np.uint64, None, None), pointer(counts, np.int64, None)
    library.clm_cull_rows(
        pointer(entries, np.float32, None, 4),
        rows,
        page_rows,
        pointer(fill, np.int32, blocks),
        *run_list,
        block_list,
        pointer(pair_camera, np.int32, None),
        class_list,
        planes,
        growth,
        extra,
        bit_words,
        count_list,
    )
    offsets, total = _offsets(pair_camera, counts)
    ids = np.empty(total, np.int32)
    library.clm_cull_ids(
        page_rows,
        *run_list,
        block_list,
        class_list,
        bit_words,
        count_list,
        pointer(offsets, np.int64, None),
        pointer(ids, np.int32, None),
    )
    sizes = np.bincount(pair_camera, weights=counts, minlength=count).astype(np.int64)
    return np.split(ids, np.cumsum(sizes)[:-1])


def _classes(
    bounds: np.ndarray, blocks: int, fill: np.ndarray | None, cameras: np.ndarray, growth: float, extra: float
) -> np.ndarray:
    """[blocks, cameras] u8: whether a camera sees nothing (0), a part, or all of a block."""
    classes = np.empty((blocks, len(cameras)), np.uint8)
    _library().clm_cull_blocks(
        pointer(bounds, np.float32, blocks, 8),
        blocks,
        pointer(fill, np.int32, blocks),
        pointer(cameras, np.float32, None, CAMERA_FLOATS),
        len(cameras),
        growth,
        extra,
        pointer(classes, np.uint8, None, None),
    )
    return classes


def _offsets(pair_camera: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, int]:
    """Where the ids of each (block, camera) pair begin, camera by camera [pairs] i64, and how many there are in all."""
    by_camera = np.argsort(pair_camera, kind="stable")
    offsets = np.empty(len(counts), np.int64)
    ends = np.cumsum(counts[by_camera])
    offsets[by_camera] = ends - counts[by_camera]
    return offsets, int(ends[-1]) if len(ends) else 0
