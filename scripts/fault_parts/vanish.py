"""Photos and the COLMAP model that vanish or turn unreadable while a run reads them.

Few photos: the run goes on without them. Most of them: exit code 2 with the state saved; once they are back, the run goes
on. The photo cache is made too small to hold them, so that every visit reads the file.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from fault_parts.bench import Bench, copy_scene, images_done, saved, wait_for
from fault_parts.tries import Fault, Lost, Try


def _words(t: Try, scene: Path, run: Path) -> list[str]:
    config = t.folder / "uncached.yaml"
    config.write_text(t.bench.growing + "image_cache: 1\n")
    return t.bench.train_words(run, "--config", config, scene=scene)


def _spoil(photo: Path, how: int) -> None:
    if how == 0:
        photo.unlink()
    elif how == 1:
        photo.write_bytes(photo.read_bytes()[:60])
    elif how == 2:
        photo.write_bytes(b"\0" * 500)
    elif how == 3:
        photo.unlink()
        photo.mkdir()
    else:
        photo.write_bytes(b"")


def _photos(t: Try, count: int) -> int:
    """Train, spoil `count` photos at a random moment; returns the exit code, the state being saved if it is not 0."""
    scene, run = copy_scene(t.bench.scene, t.folder / "scene"), t.folder / "run"
    process = t.bench.start(_words(t, scene, run))
    moment = int(t.rng.integers(1, t.bench.images // 3))
    wait_for(lambda: images_done(run) >= moment, process)
    photos = sorted((scene / "images").iterdir())
    for photo in t.rng.permutation(len(photos))[:count]:
        _spoil(photos[photo], t.case % 5)
    said = t.bench.finish(process, 60)
    if said.code and max(saved(run), default=0) < images_done(run):
        raise Lost(f"exit code {said.code} at image {images_done(run)}, the newest checkpoint is of {saved(run)[-1:]}")
    if said.text.count("warning:") > 20:
        raise Lost(f"{said.text.count('warning:')} warnings, not one that sums them up")
    if said.code:
        shutil.rmtree(scene)
        copy_scene(t.bench.scene, scene)
        said = t.bench.clm(*_words(t, scene, run), "--resume")
        if said.code:
            raise Lost(f"the photos are back, but going on ended with code {said.code}: {said.sentence}")
        _has_ply(t.bench, run)
        return 2
    _has_ply(t.bench, run)
    return 0


def _has_ply(bench: Bench, run: Path) -> None:
    if not (run / bench.ply.relative_to(bench.reference)).exists():
        raise Lost("no PLY at the end")


def _few(t: Try) -> None:
    if _photos(t, 1) != 0:
        raise Lost("one photo of eight was gone, and the run stopped")


def _many(t: Try) -> None:
    if _photos(t, 8 - t.case % 2) != 2:
        raise Lost("nearly all photos were gone, and the run ended with code 0")


def _model(t: Try) -> None:
    """The model is read once: a run does not need it any more; going on later does."""
    scene, run = copy_scene(t.bench.scene, t.folder / "scene"), t.folder / "run"
    process = t.bench.start(t.bench.train_words(run, scene=scene))
    moment = int(t.rng.integers(1, t.bench.images * 2 // 3))
    wait_for(lambda: images_done(run) >= moment, process)
    shutil.rmtree(scene / "sparse")
    said = t.bench.finish(process, 60)
    if said.code:
        raise Lost(f"the model was gone, and the run stopped with code {said.code}: {said.sentence}")
    t.bench.same_model(run)
    again = t.bench.clm(*t.bench.train_words(run, "--resume", scene=scene))
    if again.code != 2:
        raise Lost(f"going on without a model ended with code {again.code}, not 2")
    shutil.copytree(t.bench.scene / "sparse", scene / "sparse")
    t.bench.go_on(run, scene=scene)


FAULTS = [
    Fault("photos-few", "one photo of eight deleted or unreadable during the run: it goes on", 10, 1, _few),
    Fault("photos-many", "most photos gone during the run: exit 2, state saved", 10, 1, _many),
    Fault("model-gone", "COLMAP model deleted during the run", 5, 1, _model),
]
