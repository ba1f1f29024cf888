"""The Python faces of the kernels say what the C++ says: arguments, results, structures, numbers; ids are checked in tests."""

from __future__ import annotations

import ctypes
import importlib
import re
from pathlib import Path

import numpy as np
import pytest

from clm import kernels
from clm.kernels import numbers, rows
from clm.kernels import plan as plan_kernels
from clm.optim.adam import Adam, Betas
from clm.store import layout
from clm.store.store import Store
from clm.stream.parking import GradientBuffer

FACES = Path(kernels.__file__).parent
INTEGERS = {"int": ctypes.c_int, "int32_t": ctypes.c_int32, "int64_t": ctypes.c_int64, "uint64_t": ctypes.c_uint64}
TYPES = {**INTEGERS, "float": ctypes.c_float, "double": ctypes.c_double, "void": None}


def c_type(text: str) -> object:
    """The ctypes type of `const float* rows`, `int64_t count` or `void`."""
    if "*" in text:
        return ctypes.c_char_p if re.match(r"const char\s*\*", text) else ctypes.c_void_p
    return TYPES[text.split()[0]]


def exported() -> dict[str, tuple[object, list[object]]]:
    """Result and arguments of every function that the C++ sources export."""
    found = {}
    for source in sorted((FACES / "src").glob("*.cpp")):
        for result, name, arguments in re.findall(r"^CLM_API ([\w* ]+?)(clm_\w+)\(([^)]*)\)", source.read_text(), re.M):
            parts = [part.strip() for part in arguments.split(",") if part.strip()]
            found[name] = c_type(result), [c_type(part) for part in parts]
    return found


def test_every_function_is_declared_with_the_arguments_and_the_result_of_the_source() -> None:
    library = kernels.load()
    for path in FACES.glob("*.py"):
        face = importlib.import_module(f"clm.kernels.{path.stem}" if path.stem != "__init__" else "clm.kernels")
        if hasattr(face, "_library"):
            face._library()
    assert len(exported()) > 30
    for name, (result, arguments) in exported().items():
        function = getattr(library, name)
        assert function.argtypes is not None, f"{name} is not declared in Python"
        assert list(function.argtypes) == arguments, name
        assert function.restype == result, name


def test_structures_are_as_long_as_those_of_the_source() -> None:
    assert ctypes.sizeof(rows.AdamStep) == kernels.number("sizeof AdamStep")
    assert ctypes.sizeof(rows.StoreView) == kernels.number("sizeof StoreView")
    assert ctypes.sizeof(plan_kernels.ResidencyArrays) == plan_kernels._library().clm_residency_bytes()


def test_python_and_the_kernels_agree_on_every_number() -> None:
    names = [name for name in vars(numbers) if name.isupper()]
    assert len(names) > 10 and np.isnan(kernels.number("nothing"))
    for name in names:
        assert kernels.number(name) == pytest.approx(getattr(numbers, name), rel=1e-6), name
    assert layout.SHN.stop == numbers.COLOUR and layout.LOGIT_OPACITIES < numbers.GRAD_DRAWN


def test_row_ids_and_slots_outside_are_refused_in_every_test_run() -> None:
    store, step = Store.from_rows(np.zeros((10, 12), np.float32), np.zeros((10, 48), np.float32)), None
    geometry, colour = np.zeros((4, 12), np.float32), np.zeros((4, 48), np.float32)
    for wrong in ([3, 10], [-1, 2]):
        with pytest.raises(IndexError, match=r"row ids .* reach outside 0..9"):
            rows.fetch(store, step, np.array(wrong, np.int32), geometry, colour, 48)
        with pytest.raises(IndexError, match="row ids"):
            rows.put_entries(np.array(wrong, np.int32), np.zeros((2, 4), np.float32), store.entries)
    two = np.array([1, 2], np.int32)
    with pytest.raises(IndexError, match=r"slots .* reach outside 0..3"):
        rows.fetch(store, step, two, geometry, colour, 48, np.array([0, 4], np.int32))
    with pytest.raises(IndexError, match="5 rows, but 4 places"):
        rows.fetch(store, step, np.arange(5, dtype=np.int32), geometry, colour, 48)
    with pytest.raises(IndexError, match="2 rows, 1 slots"):
        rows.fetch(store, step, two, geometry, colour, 48, two[:1])
    with pytest.raises(IndexError, match="slots"):
        rows.place((geometry, colour), np.arange(1, 5, dtype=np.int32), geometry, colour, GradientBuffer(4), 48)
    adam = Adam(np.full((6, 5), 1e-3), Betas.for_batch(1))
    with pytest.raises(IndexError, match="slots"):
        rows.adam(
            store, adam.at(1), two, GradientBuffer(4), two + 2, 48, store.statistics, np.zeros((2, 4), np.float32)
        )
