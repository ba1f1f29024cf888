"""What every fault is tried on: a tiny scene, a run of it that nothing disturbed, and two ways to start `clm`.

`clm` in this process (a try is a fork of a warm one) takes a tenth of a second; a process of its own is what signals are
sent to. Both are judged alike: an exit code that no one promised, a `bug:` line or a traceback is a finding.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fault_parts.tries import Hang, Lost, Traceback

ROOT = Path(__file__).resolve().parents[2]
BATCH, SAVE_EVERY = 4, 40
PROMISED = (0, 2, 3, 130)  # done, bad input, resources, interrupted
_TRACES = ("Traceback (most recent call last)", "\nbug: ", "Exception ignored", "Fatal Python error")


@dataclass(frozen=True)
class Said:
    code: int
    text: str  # stdout and stderr together

    @property
    def sentence(self) -> str:
        lines = [line for line in self.text.splitlines() if line.strip()]
        return lines[-1][:600] if lines else ""


def judge(words: list[str], said: Said, also: tuple[int, ...] = ()) -> Said:
    """Raise Traceback for an end that no user should see; `also`: codes that are right here beside the promised ones."""
    if any(trace in "\n" + said.text for trace in _TRACES) or said.code not in (*PROMISED, *also):
        raise Traceback(f"clm {' '.join(words)}: exit code {said.code}: {said.text[-3000:]}")
    return said


class Bench:
    """Paths of the scene and of the undisturbed run. Nothing under `base` is changed by a try: it copies."""

    def __init__(self, scratch: Path, images: int, debug: bool = False):
        self.scratch, self.images, self.debug = scratch, images, debug
        self.patience = 1.0  # what limits of time are multiplied with, on a machine that is busy
        self.base = scratch / "base"
        self.scene = self.base / "scene"
        self.config = self.base / "growing.yaml"
        self.reference = self.base / "run"
        self.halfway = self.base / "halfway"  # stopped in the middle, two checkpoints

    @property
    def growing(self) -> str:
        """A run that grows, so that rows are cloned, split and sorted between checkpoints."""
        every = self.images // 8
        growth = f"densify_from: {every}\ndensify_every: {every}\ndensify_until: {5 * every}\n"
        return growth + "grow_screen_gradient: 0.0001\n"

    @property
    def ply(self) -> Path:
        return self.reference / "point_cloud" / f"iteration_{self.images}" / "point_cloud.ply"

    def train_words(
        self, run: Path, *more: str | Path, scene: Path | None = None, save_every: int = SAVE_EVERY
    ) -> list[str]:
        """Words of the training command that everything is compared with."""
        fixed = f"--iterations {self.images} --batch-size {BATCH} --save-every {save_every} --threads 1 --test-every 4"
        words = ["train", scene or self.scene, "-o", run, "--config", self.config, *fixed.split(), *more]
        return [str(word) for word in words]

    def prepare(self) -> None:
        """Write the scene, run it to the end, and once more to the middle."""
        self.base.mkdir(parents=True)
        self.config.write_text(self.growing)
        write_scene(self.scene)
        said = self.finish(self.start(self.train_words(self.reference)), 120)
        assert said.code == 0 and self.ply.exists(), said.text
        # Killed, not stopped: what a signal does is one of the things to be found out.
        process = self.start(self.train_words(self.halfway))
        wait_for(lambda: len(saved(self.halfway)) > 1 and images_done(self.halfway) >= self.images // 2, process, 120)
        process.kill()
        process.wait()
        assert images_done(self.halfway) < self.images, "the run ended before it was killed"

    def clm(self, *words: str | Path) -> Said:
        """`clm WORDS` in this process, judged. Where one case is shown, its traceback is, too."""
        from clm.cli import main

        before = os.lseek(2, 0, os.SEEK_END)
        sys.argv, code = ["clm", *map(str, words), *(["--debug"] if self.debug else [])], 0
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception as error:
            code = getattr(error, "exit_code", 1)
            print(f"error: {error}" if code > 1 else traceback.format_exc(), file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        size = os.lseek(2, 0, os.SEEK_END)
        text = os.pread(2, size - before, before).decode("utf-8", "replace")
        return judge([str(w) for w in words], Said(code, text))

    def start(self, words: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """`clm WORDS` in a process of its own; what it says goes to a file, unless `options` say otherwise."""
        log = self.scratch / f"log-{os.getpid()}-{time.monotonic_ns()}"
        with open(log, "wb") as file:
            options = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT, **options}
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            process = subprocess.Popen([sys.executable, "-m", "clm", *words], env=environment, **options)
        process.log, process.words = log, words  # type: ignore[attr-defined]
        return process

    def finish(self, process: subprocess.Popen[bytes], seconds: float, also: tuple[int, ...] = ()) -> Said:
        """Wait for its end; judged. Raises Hang after `seconds` of an idle machine."""
        seconds *= self.patience
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            process.wait()
            text = process.log.read_text(errors="replace")  # type: ignore[attr-defined]
            raise Hang(f"clm {' '.join(process.words)} ran over {seconds:g} s: {text[-1500:]}") from None  # type: ignore[attr-defined]
        text = process.log.read_text(errors="replace")  # type: ignore[attr-defined]
        process.log.unlink()  # type: ignore[attr-defined]
        return judge(process.words, Said(code, text), also)  # type: ignore[attr-defined]

    def go_on(self, run: Path, *more: str | Path, save_every: int = SAVE_EVERY, scene: Path | None = None) -> None:
        """The same command again, with --resume where there is a checkpoint: it must end at the undisturbed model."""
        more = (*more, "--resume") if saved(run) else more
        said = self.clm(*self.train_words(run, *more, save_every=save_every, scene=scene))
        if said.code:
            raise Lost(f"going on with {run.name} ended with code {said.code}: {said.sentence}")
        self.same_model(run)

    def same_model(self, run: Path) -> None:
        """The final PLY is byte for byte that of the undisturbed run."""
        ply = run / self.ply.relative_to(self.reference)
        if not ply.exists():
            raise Lost(f"no {ply.relative_to(run)} at the end")
        if ply.read_bytes() != self.ply.read_bytes():
            raise Lost("the model at the end is not that of the undisturbed run")


def saved(run: Path) -> list[int]:
    """Images at which the run has a checkpoint, whole or not."""
    return sorted(int(p.name[5:]) for p in run.glob("checkpoints/step_*") if p.name[5:].isdigit())


def events(run: Path) -> list[dict[str, Any]]:
    """What the run wrote down; a line that is not whole (the last one, or one that a full disk cut) is left out."""
    try:
        lines = (run / "events.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def images_done(run: Path) -> int:
    """Images at the end of the last batch that was written down; 0: not begun. Reads the end of the file only: it is
    called in loops."""
    try:
        with open(run / "events.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            tail = file.read()
    except OSError:
        return 0
    found = re.findall(rb'"type": "batch_done", "step": \d+, "iteration": (\d+)', tail)
    return int(found[-1]) if found else 0


def last_saved(run: Path) -> int:
    return max((e["iteration"] for e in events(run) if e["type"] == "checkpoint_saved"), default=0)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 60) -> bool:
    """Poll until `condition()`; False: the process ended first. Raises Hang after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            return False
        if time.monotonic() > end:
            process.kill()
            raise Hang(f"{process.words} did not get there in {seconds:g} s")  # type: ignore[attr-defined]
        time.sleep(0.002)
    return True


def write_scene(folder: Path, views: int = 8, points: int = 300) -> None:
    """`views` photos of 64x48 on an arc around `points` points, with tracks; the binary model in sparse/0, its text in
    text/sparse/0 (images shared)."""
    import pycolmap

    rng = np.random.default_rng(11)
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(
            camera_id=1, model=pycolmap.CameraModelId.PINHOLE, width=64, height=48, params=[60.0, 60.0, 32.0, 24.0]
        )
    )
    (folder / "images").mkdir(parents=True)
    cloud, colours = rng.uniform(-1, 1, (points, 3)), rng.integers(0, 256, (points, 3), dtype=np.uint8)
    for k in range(views):
        c, s = np.cos(0.2 * k), np.sin(0.2 * k)
        pose = np.array([[c, 0, -s, 0], [0, 1, 0, 0], [s, 0, c, 4.0]])
        image = pycolmap.Image(name=f"{k:03d}.png", camera_id=1, image_id=k + 1)
        seen = (cloud @ pose[:, :3].T + pose[:, 3])[k::views]  # every point is seen by one view
        image.points2D = [pycolmap.Point2D(60 * p[:2] / p[2] + (32, 24)) for p in seen]
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
        photo = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        photo.resize((64, 48), Image.Resampling.BICUBIC).save(folder / "images" / f"{k:03d}.png")
    for i, (xyz, rgb) in enumerate(zip(cloud, colours, strict=True)):
        track = pycolmap.Track()
        track.add_element(1 + i % views, i // views)
        model.add_point3D(xyz, track, rgb)
    for place, write in ((folder, model.write_binary), (folder / "text", model.write_text)):
        (place / "sparse" / "0").mkdir(parents=True)
        write(str(place / "sparse" / "0"))
    (folder / "text" / "images").symlink_to(folder / "images")


def copy_scene(scene: Path, folder: Path, photos: bool = True) -> Path:
    """A copy to be damaged; `photos` False: its photos stay those of `scene`."""
    shutil.copytree(scene / "sparse", folder / "sparse")
    if photos:
        shutil.copytree(scene / "images", folder / "images")
    else:
        (folder / "images").symlink_to((scene / "images").resolve())
    return folder


def finite_ply(path: Path) -> None:
    """A model that was written must hold numbers."""
    if not path.exists():
        raise Lost(f"exit code 0, but no {path}")
    head, _, body = path.read_bytes().partition(b"end_header\n")
    if not np.isfinite(np.frombuffer(body, "<f4")).all() or not head.startswith(b"ply\n"):
        raise Lost(f"exit code 0, but {path} is not a PLY of finite numbers")
