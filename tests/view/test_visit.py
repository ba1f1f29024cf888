"""A run that somebody looks at: the same model, bit for bit; and what the buttons do to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clm.errors import ResourceError
from clm.pictures import to_uint8
from clm.run import looking
from clm.run.checkpoint import checkpoints
from clm.run.console import fan_out
from clm.run.events import BatchDone, CheckpointSaved, Event, Message
from clm.run.loop import train
from clm.run.open import Run
from clm.run.stopping import StopRequest
from clm.scene.open import open_scene
from clm.view import visit as visiting
from clm.view.album import album_of_scene
from clm.view.easel import Easel, Shot
from clm.view.frame import Frame
from clm.view.visit import Visit
from clm.view.words import status_html
from tests.demo_run import DEMO, assert_same_model, of_type, small_config


class Visited:
    """A run of the bundled scene with a visit, and viewers that tests play. on_batch: called after each batch."""

    def __init__(self, run: Path, on_batch: Callable[[int], None] = lambda image: None, **options: Any):
        self.config = small_config(**options)
        self.scene = open_scene(DEMO, self.config)
        self.album = album_of_scene(self.scene)
        frame = Frame.of(self.album.cameras, self.scene.points)
        self.easel, self.stop, self.events = Easel(frame, self.album.cameras), StopRequest(), list[Event]()
        self.shots: list[Shot] = []
        self.said: list[str] = []
        self.easel.show = lambda viewer, shot: self.shots.append(shot)
        self.visit = Visit(self.easel, self.stop, self.events.append)
        self.visit.say = self.said.append
        self.gaze, self.run, self.on_batch = frame.gaze(self.album.cameras[3], 160, 120), run, on_batch

    def train(self) -> bool:
        def hear(event: Event) -> None:
            self.events.append(event)
            if isinstance(event, BatchDone):
                self.on_batch(event.iteration)

        emit = fan_out(hear, self.visit)
        saving = self.stop.saving
        return train(self.scene, self.config, self.run, emit, stop=self.stop, saving=saving, visitor=self.visit)

    def fly(self, image: int) -> None:
        """Two viewers who never stop, one of them far outside, so that it sees more than any training view."""
        for viewer, away in ((1, 0.01 * image), (2, 3.0 + 0.1 * image)):
            self.easel.look(viewer, replace(self.gaze, position=self.gaze.position * (1 + away)))

    @property
    def messages(self) -> list[str]:
        return [event.text for event in of_type(self.events, Message)]


PLACEMENTS = [
    {"offload": "none"},
    {"offload": "host", "gpu_memory": "3MiB"},
    {"offload": "disk", "gpu_memory": "3MiB"},
    {"offload": "host", "gpu_memory": "3MiB", "strategy": "mcmc"},
]


@pytest.mark.parametrize("options", PLACEMENTS, ids=["none", "host", "disk", "mcmc"])
def test_a_run_that_is_looked_at_trains_the_same_model_bitwise(tmp_path: Path, options: dict[str, Any]) -> None:
    alone = Visited(tmp_path / "alone", **options)
    assert alone.train() and alone.shots == []
    seen = Visited(tmp_path / "seen", **options)
    seen.on_batch = seen.fly
    assert seen.train() and len(seen.shots) >= 20 and not seen.messages.count("failed")
    assert_same_model(tmp_path / "alone", tmp_path / "seen")


def test_a_picture_of_a_run_is_that_of_an_evaluation_at_the_same_image(tmp_path: Path) -> None:
    seen = Visited(tmp_path / "run", offload="host", gpu_memory="3MiB", iterations=24)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    serve = seen.visit.serve

    def both(run: Run) -> None:
        before = len(seen.shots)
        serve(run)
        if len(seen.shots) > before:
            camera = seen.easel.places[3].resized(160, 120)
            found.append((to_uint8(run.residence.renderer()(camera).rgb), seen.shots[-1].pixels))

    seen.visit.serve = both  # type: ignore[method-assign]

    def stand(image: int) -> None:
        seen.easel.look(1, seen.gaze)
        seen.easel.stand(1, 3)

    seen.on_batch = stand
    seen.train()
    assert len(found) >= 5 and all(np.array_equal(*pair) for pair in found)


def test_while_nobody_looks_a_run_is_asked_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "look_at", lambda run: pytest.fail("nobody looks"))
    seen = Visited(tmp_path / "run", iterations=16)
    seen.on_batch = lambda image: seen.easel.look(1, seen.gaze) or seen.easel.leave(1)  # type: ignore[func-returns-value]
    assert seen.train() and seen.said == ["The run is over: `clm view` shows its result."]
    began = time.perf_counter()
    for _ in range(10_000):
        assert not seen.visit.wanted
    assert (time.perf_counter() - began) / 10_000 < 1e-4


def test_a_pause_holds_the_run_while_pictures_and_saves_go_on_and_is_no_time_of_training(tmp_path: Path) -> None:
    seen = Visited(tmp_path / "run", iterations=24)
    done: list[int] = []

    def press(image: int) -> None:
        if image == 8:
            seen.easel.look(1, seen.gaze)
            seen.visit.pause(True)
            threading.Thread(target=while_paused).start()

    def while_paused() -> None:
        try:
            for k in range(6):
                seen.easel.look(1, replace(seen.gaze, position=seen.gaze.position * (1 + 0.01 * k)))
                time.sleep(0.1)
            done.extend([seen.visit.status.image, len(seen.shots)])
            seen.visit.save()
            time.sleep(0.2)
            done.extend(e.iteration for e in of_type(seen.events, CheckpointSaved))
        finally:
            seen.visit.pause(False)

    seen.on_batch = press
    began = time.perf_counter()
    assert seen.train()
    passed = time.perf_counter() - began
    assert done[0] == 8 and done[1] >= 5 and done[2:] == [8], done
    assert "Image 8 is saved." in seen.said
    assert "paused by a viewer at image 8" in seen.messages and "the pause at image 8 is over" in seen.messages
    assert seen.events[-1].seconds < passed - 0.7, "the pause is no time of training"  # type: ignore[attr-defined]


def test_stop_saves_and_ends_a_run_as_a_signal_does_also_in_a_pause(tmp_path: Path) -> None:
    for name, pausing in (("running", False), ("paused", True)):
        seen = Visited(tmp_path / name, iterations=40)

        def press(image: int, seen: Visited = seen, pausing: bool = pausing) -> None:
            if image == 8:
                seen.easel.look(1, seen.gaze)
                seen.visit.pause(pausing)
                threading.Timer(0.2 if pausing else 0.0, seen.visit.stop).start()
                time.sleep(0.05)

        seen.on_batch = press
        assert not seen.train()
        (saved,) = checkpoints(tmp_path / name / "checkpoints")
        assert 8 <= int(saved.name.removeprefix("step_")) < 40
        assert seen.said[-1].startswith("The run has stopped")


def test_a_pause_ends_when_nobody_looks_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visiting, "_ALONE", 0.2)
    seen = Visited(tmp_path / "run", iterations=16)

    def press(image: int) -> None:
        if image == 8:
            seen.easel.look(1, seen.gaze)
            seen.visit.pause(True)
            threading.Timer(0.1, lambda: seen.easel.leave(1)).start()

    seen.on_batch = press
    assert seen.train()


def test_whatever_fails_in_a_viewer_ends_the_visit_and_never_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Visited(tmp_path / "run", iterations=16)
    seen.on_batch = seen.fly

    def fail(viewer: int, shot: Shot) -> None:
        raise ValueError("a bug")

    seen.easel.show = fail
    assert seen.train()
    assert [m for m in seen.messages if "failed" in m] == [
        "the viewer failed and shows nothing more of the run, which goes on: a bug"
    ]


def test_a_checkpoint_that_cannot_be_written_is_said_and_the_run_goes_on(tmp_path: Path) -> None:
    seen = Visited(tmp_path / "run", iterations=16)
    serve = seen.visit.serve

    def press(run: Run) -> None:
        if run.schedule.image == 8:
            save = run.saver.save

            def full() -> None:
                raise ResourceError("No space left on the disk.", "Free some.")

            run.saver.save = full  # type: ignore[method-assign]
            seen.visit.save()
            serve(run)
            run.saver.save = save  # type: ignore[method-assign]
        else:
            serve(run)

    seen.visit.serve = press  # type: ignore[method-assign]
    seen.on_batch = seen.fly
    assert seen.train() and "Not saved: No space left on the disk. Free some." in seen.said


def test_a_view_that_the_budgets_have_no_room_for_is_refused_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "resident_bytes", lambda: 1 << 60)
    seen = Visited(tmp_path / "run", iterations=16)
    told: list[str] = []
    seen.easel.tell = lambda viewer, text: told.append(text)
    monkeypatch.setattr("clm.render.cpu.CpuRasterizer.host_bytes", 0)
    seen.on_batch = seen.fly
    assert seen.train() and seen.shots == []
    assert told and told[0].startswith("This view sees ") and "Look from nearer" in told[0]


def test_the_status_of_a_run_says_where_it_is_and_what_it_takes(tmp_path: Path) -> None:
    seen = Visited(tmp_path / "run", iterations=40, eval_every=16)
    seen.visit._seen = -1e9
    seen.on_batch = seen.fly
    assert seen.train()
    status = seen.visit.status
    assert (status.image, status.iterations, status.over) == (40, 40, True)
    assert status.device_bytes and 0 < status.device_bytes[0] <= status.device_bytes[1] and status.host_bytes
    assert status.psnr and status.loss and len(seen.visit.curves.series("loss")) == 10
    shown = status_html(replace(status, over=False, lanes={"compute": 0.5, "load": 0.25}, disk_bytes=1 << 20), True)
    for words in ("image 40 of 40", "paused", "device memory", "host memory", "lane compute", "50% busy", "1.0 MiB"):
        assert words in shown, words
