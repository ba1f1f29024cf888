"""Mutated inputs: COLMAP models of either kind, Gaussian PLYs, cameras.json; each taken properly or refused in a sentence.

Every case reads the damaged input with each command that would, in a fork with a limit on its memory. What is accepted
must lead to a model of finite numbers; the input itself must come out of it unchanged.
"""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from fault_parts.bench import copy_scene, finite_ply
from fault_parts.mutate import mutate_bytes, mutate_json, mutate_text, some
from fault_parts.tries import Fault, Lost, Try

MEMORY = 6 << 30  # address space of a case, threads' stacks and reserves included
SECONDS = 25.0
_SHORT = ["--iterations", "8", "--batch-size", "4", "--threads", "1", "--test-every", "4", "-q"]


def stopped_after(seconds: float) -> threading.Timer:
    """A run that was told to be long is stopped in order, so that only one that does not stop counts as a hang."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    return timer


def _train(t: Try, scene: Path, *more: str | Path) -> None:
    run = t.folder / "run"
    said = t.bench.clm("train", scene, "-o", run, *_SHORT, *more)
    if said.code == 0:
        finite_ply(run / "point_cloud" / "iteration_8" / "point_cloud.ply")


def _colmap(t: Try, source: Path) -> None:
    """One file of the model, or two, damaged once to three times; `info` and `train` read it."""
    scene = copy_scene(source, t.folder / "scene", photos=False)
    model = scene / "sparse" / "0"
    text = (model / "cameras.txt").exists()
    mutate, end = (mutate_text, "txt") if text else (mutate_bytes, "bin")
    for _ in range(1 + int(t.rng.integers(2))):
        names = ("cameras", "cameras", "images", "images", "images", "points3D", "points3D", "rigs", "frames")
        path = model / f"{some(t.rng, names)}.{end}"
        data = path.read_bytes()
        for _ in range(1 + int(t.rng.integers(2))):
            data = mutate(data, t.rng)
        path.write_bytes(data)
        if t.rng.integers(50) == 0:
            path.unlink()
            break
    before = {p.name: p.read_bytes() for p in model.iterdir()}
    # Both read it with the same reader; after some errors pycolmap hangs when it reads again in the same process.
    if t.bench.clm("info", scene, "--json").code == 0:
        _train(t, scene)
    if {p.name: p.read_bytes() for p in model.iterdir()} != before:
        raise Lost("the COLMAP model was changed")


def _ply(t: Try) -> None:
    """The PLY of a run, binary or as text, with its header or its rows damaged; every command that opens a PLY."""
    path, data = t.folder / "model.ply", t.bench.ply.read_bytes()
    if t.case % 5 == 4:
        data = _ascii(data)
    cut = data.index(b"end_header\n") + 11
    for _ in range(1 + int(t.rng.integers(2))):
        if t.rng.integers(2):
            header = mutate_text(data[:cut], t.rng)
            cut, data = len(header), header + data[cut:]
        else:
            data = data[:cut] + mutate_bytes(data[cut:], t.rng)
    path.write_bytes(data)
    t.bench.clm("info", path)
    if t.bench.clm("export", path, t.folder / "out.ply").code == 0:
        finite_ply(t.folder / "out.ply")
    t.bench.clm("render", path, "--cameras", t.bench.reference / "cameras.json", "-o", t.folder / "pictures")
    _train(t, t.bench.scene, "--init-ply", path)
    if path.read_bytes() != data:
        raise Lost("the PLY was changed")


def _ascii(data: bytes) -> bytes:
    import numpy as np

    head, _, body = data.partition(b"end_header\n")
    columns = head.count(b"property ")
    rows = np.frombuffer(body, "<f4").reshape(-1, columns)[:40]
    lines = head.replace(b"binary_little_endian", b"ascii").split(b"\n")
    lines = [b"element vertex %d" % len(rows) if line.startswith(b"element") else line for line in lines]
    return b"\n".join(lines) + b"end_header\n" + b"".join(b" ".join(b"%g" % v for v in row) + b"\n" for row in rows)


def _cameras(t: Try) -> None:
    path = t.folder / "cameras.json"
    data = (t.bench.reference / "cameras.json").read_bytes()
    for _ in range(1 + int(t.rng.integers(2))):
        try:
            data = mutate_json(data, t.rng)
        except ValueError:  # no JSON any more
            data = mutate_text(data, t.rng)
    path.write_bytes(data)
    path_flags = ["--path", some(t.rng, ("interp", "ellipse")), "--frames", "3"] if t.case % 4 == 3 else []
    t.bench.clm("render", t.bench.ply, "--cameras", path, "-o", t.folder / "pictures", "--depth", *path_flags)


FAULTS = [
    Fault(
        "colmap-binary", "mutated COLMAP model, binary", 2000, 8, lambda t: _colmap(t, t.bench.scene), SECONDS, MEMORY
    ),
    Fault(
        "colmap-text",
        "mutated COLMAP model, text",
        2000,
        8,
        lambda t: _colmap(t, t.bench.scene / "text"),
        SECONDS,
        MEMORY,
    ),
    Fault("ply", "mutated PLY: info, export, render, train", 500, 4, _ply, SECONDS, MEMORY),
    Fault("cameras-json", "mutated cameras.json", 300, 4, _cameras, SECONDS, MEMORY),
]
