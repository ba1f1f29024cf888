"""The C++ kernels behind a C ABI: chosen for this CPU at load, called through ctypes (which releases the GIL).

Invariants: every kernel gives bitwise equal results for any thread count; no kernel allocates memory that outlives the
call, except the rasteriser's workspace handle. The typed faces live beside this file (`rows.py`, `raster.py`, ...).
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from clm.errors import ClmError

_ABI = 20
# Whether row ids and slots are checked in every call, as in all tests.
DEBUG = os.environ.get("CLM_DEBUG", "0") not in ("", "0")


def _cpu_flags() -> set[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split(":", 1)[1].split())
    except OSError:
        pass
    return set()


def variants() -> list[str]:
    """Names of the builds this CPU can run, best first."""
    flags = _cpu_flags() if platform.machine() in ("x86_64", "AMD64") else set()
    names = ["base"]
    if {"avx2", "fma"} <= flags:
        names.insert(0, "avx2")
        if {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= flags:
            names.insert(0, "avx512")
    return names


def variant() -> str:
    """The build in use; the environment variable CLM_KERNELS overrides the choice (for tests and comparisons)."""
    return os.environ.get("CLM_KERNELS") or variants()[0]


@cache
def load() -> ctypes.CDLL:
    """The kernel library for this CPU. Starts one thread per core; `set_threads` changes that."""
    suffix = "dylib" if platform.system() == "Darwin" else "so"
    # CLM_KERNELS_DIR: another build of the same kernels, such as the sanitized one of scripts/sanitize.sh.
    folder = Path(os.environ.get("CLM_KERNELS_DIR") or Path(__file__).parent)
    path = folder / f"libclm_{variant()}.{suffix}"
    if not path.exists():
        raise ClmError(
            f"The CPU kernels are not built: {path} is missing.",
            "Install the package (`pip install .`) or run `bash scripts/setup.sh`.",
        )
    library = ctypes.CDLL(str(path))
    for name, result, arguments in _OWN:
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    if library.clm_abi_version() != _ABI:
        raise ClmError(f"The CPU kernels in {path} are from another version of clm.", "Run `pip install .` again.")
    library.clm_set_threads(os.cpu_count() or 1)
    return library


# The functions that this file calls; those of the faces are declared there.
_OWN: tuple[tuple[str, Any, list[Any]], ...] = (
    ("clm_abi_version", ctypes.c_int, []),
    ("clm_set_threads", None, [ctypes.c_int]),
    ("clm_get_threads", ctypes.c_int, []),
    ("clm_number", ctypes.c_double, [ctypes.c_char_p]),
)


def number(name: str) -> float:
    """What the kernels were built with; NaN where they know no such name (see `src/numbers.cpp`)."""
    return float(load().clm_number(name.encode()))


def set_threads(count: int) -> None:
    """Number of threads that share one kernel call, the caller included."""
    load().clm_set_threads(int(count))


def get_threads() -> int:
    return int(load().clm_get_threads())


def pointer(array: np.ndarray | None, dtype: type, *shape: int | None) -> ctypes.c_void_p:
    """Address of a C-contiguous array after checking dtype and shape (None = any length); None gives NULL."""
    if array is None:
        return ctypes.c_void_p(None)
    ok = array.dtype == dtype and array.flags.c_contiguous and array.ndim == len(shape)
    if not ok or any(want is not None and have != want for have, want in zip(array.shape, shape, strict=True)):
        raise TypeError(f"kernel argument: want {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}")
    return ctypes.c_void_p(array.ctypes.data)


def ids(rows: np.ndarray | None, limit: int, what: str = "row ids") -> ctypes.c_void_p:
    """Address of row ids or slots [M] i32. With CLM_DEBUG=1, IndexError unless all lie in 0..limit-1."""
    address = pointer(rows, np.int32, None)
    if DEBUG and rows is not None and len(rows) and int(rows.view(np.uint32).max()) >= limit:  # a negative one is huge
        raise IndexError(f"{what} {int(rows.min())} to {int(rows.max())} reach outside 0..{limit - 1}")
    return address
