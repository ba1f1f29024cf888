"""Damaged checkpoints: every file cut off, flipped by a bit, of another shape or type, emptied, deleted; state.json changed.

Expected: the damage is named and refused, and without the damaged checkpoint the run goes on from the one before; or the
damage does no harm, and the model at the end is that of the undisturbed run.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fault_parts.bench import saved
from fault_parts.mutate import mutate_json
from fault_parts.tries import Fault, Lost, Try

Damage = Callable[[bytes, np.random.Generator], bytes]


def _copy(t: Try) -> tuple[Path, Path]:
    """A run that was killed halfway, and its newest checkpoint."""
    run = t.folder / "run"
    shutil.copytree(t.bench.halfway, run)
    return run, run / "checkpoints" / f"step_{saved(run)[-1]}"


def _files(t: Try) -> list[str]:
    folder = t.bench.halfway / "checkpoints" / f"step_{saved(t.bench.halfway)[-1]}"
    return sorted(p.name for p in folder.iterdir() if p.is_file())


def _go_on(t: Try, run: Path, newest: Path, what: str) -> None:
    said = t.bench.clm(*t.bench.train_words(run, "--resume"))
    if said.code == 0:
        try:
            t.bench.same_model(run)
        except Lost as error:
            raise Lost(f"{what}: accepted, and {error}") from None
        return
    if said.code != 2:
        raise Lost(f"{what}: exit code {said.code}, not 2: {said.sentence}")
    if newest.exists():
        shutil.rmtree(newest)  # what the sentence says
    t.bench.go_on(run)


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(len(data)))]


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    out = bytearray(data)
    out[int(rng.integers(len(out)))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def _flip_header(data: bytes, rng: np.random.Generator) -> bytes:
    return _flip(data[:128], rng) + data[128:]


def _saved_array(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=array.dtype.hasobject)
    return file.getvalue()


def _reshaped(data: bytes, rng: np.random.Generator) -> bytes:
    """Fewer rows, one row (which numpy would repeat for all), more columns, none, turned, flat."""
    if not data.startswith(b"\x93NUMPY"):
        return data[: len(data) // 2]
    array = np.load(io.BytesIO(data))
    shapes = [
        array[:-1],
        array[:1],
        np.concatenate([array, array[:1]]),
        array[:0],
        array.T if array.ndim > 1 else array[None],
    ]
    return _saved_array([*shapes, array.reshape(-1)[:-1], np.float32(1)][int(rng.integers(7))])


def _retyped(data: bytes, rng: np.random.Generator) -> bytes:
    if not data.startswith(b"\x93NUMPY"):
        return b'"' + data[1:]
    array = np.load(io.BytesIO(data))
    kinds = ("f8", "f2", "i4", "u1", "c8", ">f4", "U8", "O", "?")
    with np.errstate(all="ignore"):
        return _saved_array(array.astype(kinds[int(rng.integers(len(kinds)))]))


def _noise(data: bytes, rng: np.random.Generator) -> bytes:
    return rng.integers(0, 256, len(data), dtype=np.uint8).tobytes()


_DAMAGES: dict[str, Damage | None] = {
    "cut off": _cut,
    "a bit flipped": _flip,
    "a bit flipped in its header": _flip_header,
    "wrong shape": _reshaped,
    "wrong type": _retyped,
    "emptied": lambda data, rng: b"",
    "noise": _noise,
    "deleted": None,
}


def _damaged(t: Try) -> None:
    run, newest = _copy(t)
    names, kinds = _files(t), list(_DAMAGES)
    name, kind = names[t.case % len(names)], kinds[t.case // len(names) % len(kinds)]
    path, damage = newest / name, _DAMAGES[kind]
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes(), t.rng))
    _go_on(t, run, newest, f"{name} {kind}")


def _state(t: Try) -> None:
    run, newest = _copy(t)
    path = newest / "state.json"
    path.write_bytes(mutate_json(path.read_bytes(), t.rng))
    _go_on(t, run, newest, "state.json changed")


FAULTS = [
    Fault(
        "checkpoint-files", "each checkpoint file cut, flipped, reshaped, retyped, emptied, deleted", 216, 4, _damaged
    ),
    Fault("checkpoint-state", "state.json of a checkpoint changed", 100, 2, _state),
]
