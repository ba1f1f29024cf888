"""Short training runs of the bundled scene, for tests: how to start them, and what they left behind.

The scene ships with the repository, so these tests run everywhere. At a quarter of its size (80x60) a run of 80 images
takes about a second.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clm.cli import main
from clm.config import Config
from clm.plan import placement
from clm.plan.budget import SLOT_BYTES
from clm.run.checkpoint import latest_checkpoint
from clm.run.events import Event
from clm.run.loop import train
from clm.run.restore import load_checkpoint
from clm.run.saved import Saved
from clm.scene.open import open_scene
from clm.settings import load_config
from clm.store.store import Store

REPOSITORY = Path(__file__).resolve().parents[1]
DEMO = REPOSITORY / "data" / "demo"
# Densification well inside a short run, so that rows are split and re-sorted between checkpoints.
GROWING = {"densify_from": 10, "densify_every": 20, "densify_until": 50, "grow_screen_gradient": 4e-4}
FIXED = {"densify_until": 0}


def small_config(**options: Any) -> Config:
    """A run of 80 images at 80x60, batches of 4, densifying at images 20 and 40, at constant rates, under which rounding does not
    grow; `options` override."""
    return load_config({"iterations": 80, "batch_size": 4, "downscale": "4", "anneal": 1.0, **GROWING, **options})


def run_demo(
    run: Path, *, data: Path = DEMO, stop_at: int | None = None, resume: bool = False, **options: Any
) -> list[Event]:
    """Train in this process and return the events. `stop_at`: ask to stop once so many images are done."""
    config, events = small_config(**options), []
    checkpoint = latest_checkpoint(run / "checkpoints") if resume else None
    stop = never if stop_at is None else lambda: bool(images_done(events)) and images_done(events)[-1] >= stop_at
    train(open_scene(data, config), config, run, events.append, resume=checkpoint, stop=stop)
    return events


def pages_in_a_quarter_of_ram(monkeypatch: pytest.MonkeyPatch, page_rows: int) -> None:
    """From now on pages have so many rows, and where rows lie on disk a quarter of the pages is in RAM."""
    kept = Store.keep_on_disk
    monkeypatch.setattr("clm.store.paged.PAGE_ROWS", page_rows)
    monkeypatch.setattr(Store, "keep_on_disk", lambda self, frames, scratch: kept(self, self.pages // 4, scratch))


def train_roomy_and_tight(roomy: Path, tight: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """One run with everything in memory on two threads; and one on one thread with a quarter of the pages in RAM and views in
    pieces, stopped at image 36 and resumed."""
    pages_in_a_quarter_of_ram(monkeypatch, 32)
    run_demo(roomy, offload="none", threads=2, **options)
    monkeypatch.setattr(placement, "LEAST_SLOTS", 64)
    small = {"offload": "disk", "threads": 1, "gpu_memory": str(700 * SLOT_BYTES), **options}
    run_demo(tight, stop_at=36, **small)
    run_demo(tight, resume=True, **small)


def write_survey_scene(folder: Path, side: int = 5, points: int = 3000, reach: float = 4.0) -> Path:
    """A COLMAP scene (text model) of side x side cameras flown over a field, each seeing about a fifth of it; where they are
    farther than `reach` 4 from the middle, less.

    Neighbours overlap by half in both directions, so no path through a batch keeps all that is needed again: a tight
    arena has to evict rows and load them twice. The photos are smooth noise.
    """
    rng, model = np.random.default_rng(7), folder / "sparse" / "0"
    model.mkdir(parents=True)
    (folder / "images").mkdir()
    poses, centres = [], np.linspace(-reach, reach, side)
    for k, (y, x) in enumerate(itertools.product(centres, centres)):
        noise = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((64, 48), Image.Resampling.BICUBIC).save(folder / "images" / f"{k:02d}.png")
        poses.append(f"{k + 1} 1 0 0 0 {-x} {-y} 0 1 {k:02d}.png\n\n")
    edge = reach + 2.0
    field = np.column_stack(
        [rng.uniform((-edge, -edge, 4), (edge, edge, 4.5), (points, 3)), rng.integers(0, 256, (points, 3))]
    )
    rows = (f"{k + 1} {x} {y} {z} {r:.0f} {g:.0f} {b:.0f} 1\n" for k, (x, y, z, r, g, b) in enumerate(field))
    (model / "cameras.txt").write_text("1 PINHOLE 64 48 60 60 32 24\n")
    (model / "images.txt").write_text("".join(poses))
    (model / "points3D.txt").write_text("".join(rows))
    return folder


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Every file with its bytes, every folder with None."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def never() -> bool:
    return False


def images_done(events: list[Event]) -> list[int]:
    """Image counts at the ends of batches."""
    return [event.iteration for event in events if type(event).__name__ == "BatchDone"]


def of_type(events: list[Event], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def checkpoint_arrays(run: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by name: its live rows, and how many each page has."""
    return saved_rows(latest_checkpoint(run / "checkpoints"))


def saved_rows(checkpoint: Path) -> dict[str, np.ndarray]:
    store = load_checkpoint(checkpoint, lambda state: Saved.parse(state, str(checkpoint))).store
    live = np.concatenate([*store.live(), np.zeros(0, np.int32)])
    return {"fill": store.fill, **{name: getattr(store, name)[live] for name in store.names}}


def assert_same_model(run: Path, other: Path) -> None:
    """Newest checkpoints (parameters, moments, stamps, statistics) and PLYs are equal, bit for bit."""
    assert latest_checkpoint(run / "checkpoints").name == latest_checkpoint(other / "checkpoints").name
    first, second = checkpoint_arrays(run), checkpoint_arrays(other)
    assert first.keys() == second.keys()
    assert {"geometry", "colour", "stamp"} <= first.keys()
    for name, array in first.items():
        assert array.shape == second[name].shape, name
        assert array.tobytes() == second[name].tobytes(), f"{name} differs in {differing(array, second[name])} rows"
    plys = [sorted(r.glob("point_cloud/iteration_*/point_cloud.ply"))[-1:] for r in (run, other)]
    assert [p.read_bytes() for p in plys[0]] == [p.read_bytes() for p in plys[1]]


def as_format_1(checkpoint: Path) -> None:
    """Make a checkpoint what the first version wrote: one array a file, no manifest, no keys, no name of its run."""
    rows, state = saved_rows(checkpoint), read_json(checkpoint / "state.json")
    for path in checkpoint.iterdir():
        path.unlink()
    rows["statistics"] = np.ascontiguousarray(rows["statistics"][:, :2])
    for name in rows.keys() - {"keys", "fill"}:
        np.save(checkpoint / f"{name}.npy", rows[name])
    kept = {key: value for key, value in state.items() if key not in ("run", "segments", "pages", "page_rows")}
    (checkpoint / "state.json").write_text(json.dumps({**kept, "format": 1}, indent=2))


def as_format_3(checkpoint: Path) -> None:
    """Make a checkpoint what the third version wrote: rows with two statistics, which lie behind all else of a page."""
    state, manifest, index = read_json(checkpoint / "state.json"), read_json(checkpoint / "manifest.json"), []
    where, segments = np.load(checkpoint / "index.npy"), [checkpoint / name for name in state["segments"]]
    whole = {path: (path.read_bytes(), bytearray()) for path in segments}
    for segment, offset, fill, _crc in where.tolist():
        if segment < 0:
            index.append((-1, 0, 0, 0))
            continue
        before, after = whole[segments[segment]]
        width = len(before) // sum(n for s, _, n, _ in where.tolist() if s == segment)
        page = before[offset : offset + fill * width]
        statistics = np.frombuffer(page[-16 * fill :], np.float32).reshape(fill, 4)[:, :2]
        page = page[: -16 * fill] + statistics.tobytes()
        index.append((segment, len(after), fill, zlib.crc32(page)))
        after += page
    for path, (_, content) in whole.items():
        path.write_bytes(content)
    np.save(checkpoint / "index.npy", np.array(index, np.int64))
    (checkpoint / "state.json").write_text(json.dumps({**state, "format": 3}, indent=2))
    files = {name: (checkpoint / name).read_bytes() for name in manifest["files"]}
    listed = {name: {"bytes": len(content), "crc32": zlib.crc32(content)} for name, content in files.items()}
    (checkpoint / "manifest.json").write_text(json.dumps({"format": 3, "files": listed}, indent=2))


def differing(a: np.ndarray, b: np.ndarray) -> int:
    return int((a != b).reshape(len(a), -1).any(axis=1).sum())


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def read_events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def files_under(folder: Path) -> set[str]:
    """Relative names of all files, hidden ones too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def clm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`clm ARGUMENTS` in this process, from parsing to exit code: a second faster than a process of its own."""
    words, before = ["clm", *map(str, arguments)], sys.argv
    shown, said, code = io.StringIO(), io.StringIO(), 0
    try:
        sys.argv = words
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(said):
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = before
    return subprocess.CompletedProcess(words, code, shown.getvalue(), said.getvalue())


def clm_process(*arguments: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=timeout, env=environment())


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "clm", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY)}
