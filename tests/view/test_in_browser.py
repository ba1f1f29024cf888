"""The viewer in a browser: what it shows is what `clm render` renders, its panel does what it says, and nothing complains."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clm.camera import Camera
from clm.commands import view as command_view
from clm.run.stopping import StopRequest
from clm.run.viewing import Budgets
from clm.view.easel import Easel
from clm.view.frame import inside, rectangle
from tests.browser import Page, browser_page
from tests.demo_run import DEMO, clm, command, environment, read_events, run_demo

pytest.importorskip("viser", reason="viser is not installed (pip install 'clm[view]')")

WIDTH, HEIGHT = 960, 540
KNOWN = (
    "computeBoundingSphere",
    "THREE.Clock",
)  # viser's own: lines that it has not drawn yet, and what it is built with
CANVAS = """(() => { const b = [...document.querySelectorAll('canvas')].map((c) => c.getBoundingClientRect())
  .sort((p, q) => q.width * q.height - p.width * p.height)[0]; return [b.left, b.top, b.width, b.height]; })()"""
# Panel elements that lie over others; a box and what belongs to it may.
OVERLAPS = """(() => {
  const found = [], whole = '.mantine-InputWrapper-root, .mantine-Checkbox-root, .mantine-Slider-root';
  const all = [...document.querySelectorAll('button, input, label, .u-wrap')]
    .map((e) => [e, e.getBoundingClientRect()]).filter(([, b]) => b.width > 1 && b.height > 1);
  for (const [i, [a, p]] of all.entries()) for (const [b, q] of all.slice(i + 1)) {
    const box = a.closest(whole);
    if (a.contains(b) || b.contains(a) || (box && box === b.closest(whole))) continue;
    const x = Math.min(p.right, q.right) - Math.max(p.left, q.left);
    const y = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
    if (x > 2 && y > 2) found.push(a.outerHTML.slice(0, 80) + ' over ' + b.outerHTML.slice(0, 80));
  }
  return found;
})()"""
SLIDER = """(() => { const b = document.querySelector('[role=slider]').getBoundingClientRect();
  return [b.left + b.width / 2, b.top + b.height / 2]; })()"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view") / "run"
    run_demo(folder, iterations=60, downscale="4")
    return folder


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with browser_page(webgl=True) as page:
        yield page


class Served:
    """`clm view` of a run, in this process; `easel`: the one that it made."""

    def __init__(self, run: Path, monkeypatch: pytest.MonkeyPatch):
        made: list[Easel] = []

        class Kept(Easel):
            def __init__(self, *arguments: Any, **options: Any):
                super().__init__(*arguments, **options)
                made.append(self)

        monkeypatch.setattr(command_view, "Easel", Kept)
        self.stop, ready, ports = StopRequest(), threading.Event(), list[int]()
        self.errors: list[BaseException] = []

        def serve() -> None:
            try:
                command_view.view_model(
                    run,
                    Budgets(),
                    host="127.0.0.1",
                    stop=self.stop,
                    ready=lambda port: (ports.append(port), ready.set()),
                )
            except BaseException as error:
                self.errors.append(error)
                ready.set()

        self.thread = threading.Thread(target=serve, daemon=True)
        self.thread.start()
        assert ready.wait(60) and not self.errors, self.errors
        self.port, self.easel = ports[0], made[0]

    def close(self) -> None:
        self.stop.requested = True
        self.easel.wake()
        self.thread.join(20)
        assert not self.thread.is_alive() and not self.errors

    def camera(self) -> Camera:
        """Of what the only viewer is shown at rest."""
        (viewer,) = self.easel._viewers.values()
        gaze = viewer.gaze
        if viewer.place is not None:
            return inside(self.easel.places[viewer.place], gaze.width, gaze.height)
        return self.easel.frame.camera(gaze, gaze.width, gaze.height)

    def rests(self) -> bool:
        """Whether every viewer has its whole picture."""
        viewers = list(self.easel._viewers.values())
        return bool(viewers) and all(v.whole == v.version and v.arrived for v in viewers) and not self.easel.moving


@pytest.fixture
def served(run: Path, page: Page, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    served = Served(run, monkeypatch)
    yield served
    page.open("about:blank")  # else it looks for the server that is gone
    served.close()


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.05)


def canvas(page: Page) -> np.ndarray:
    """What the canvas shows [H, W, 3], once notes that lie over it are closed."""
    page.run("document.querySelectorAll('.mantine-Notification-closeButton').forEach((b) => b.click())")
    left, top, width, height = page.run(CANVAS)
    clip = {"x": left, "y": top, "width": width, "height": height, "scale": 1}
    data = page.call("Page.captureScreenshot", format="png", clip=clip)["data"]
    import base64

    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.asarray(image.convert("RGB"))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(max(1e-12, ((a.astype(float) - b) ** 2).mean() / 255**2)))


def rendered(run: Path, camera: Camera, folder: Path) -> np.ndarray:
    """By `clm render`, from a file of cameras."""
    pose = camera.world_to_camera
    entry = {"id": 0, "img_name": "seen", "width": camera.width, "height": camera.height, "position": camera.position.tolist(),
             "rotation": pose[:3, :3].T.tolist(), "fx": camera.fx, "fy": camera.fy, "cx": camera.cx, "cy": camera.cy,
             "near": camera.near, "far": camera.far}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.json").write_text(json.dumps([entry]))
    done = clm("render", run, "--cameras", folder / "cameras.json", "-o", folder, "-q")
    assert done.returncode == 0, done.stderr
    with Image.open(folder / "seen.png") as image:
        return np.asarray(image)


def same(page: Page, expected: np.ndarray, least: float = 40.0, seconds: float = 60.0) -> None:
    """The canvas comes to show what is expected."""
    deadline, found = time.monotonic() + seconds, 0.0
    while time.monotonic() < deadline:
        seen = canvas(page)
        found = psnr(seen, expected) if seen.shape == expected.shape else -1.0
        if found >= least:
            return
        time.sleep(0.1)
    pytest.fail(f"{found:.1f} dB, expected {least}: {seen.shape}, {expected.shape}")


def shown(page: Page, served: Served, run: Path, folder: Path) -> np.ndarray:
    """What `clm render` renders for the only viewer's camera, once the page shows it: a slow browser moves on after a rest."""
    for k in range(20):
        wait_for(served.rests)
        camera = served.camera()
        expected, deadline = rendered(run, camera, folder / str(k)), time.monotonic() + 5
        while time.monotonic() < deadline:
            seen = canvas(page)
            if seen.shape == expected.shape and psnr(seen, expected) >= 40:
                return expected
            time.sleep(0.1)
    pytest.fail("the page never shows what clm renders")


def press(page: Page, label: str) -> None:
    page.until(f"[...document.querySelectorAll('button, label')].some((b) => b.textContent.trim() === {label!r})")
    page.run(f"[...document.querySelectorAll('button, label')].find((b) => b.textContent.trim() === {label!r}).click()")


def choose(page: Page, now: str, then: str) -> None:
    """In the dropdown that shows `now`."""
    page.run(f"[...document.querySelectorAll('input')].find((i) => i.value === {now!r}).click()")
    option = f"[...document.querySelectorAll('[role=option]')].find((o) => o.textContent.trim() === {then!r})"
    page.until(f"!!{option}")
    page.run(f"{option}.click()")


def complaints(page: Page) -> list[str]:
    return [error for error in page.errors if not any(known in error for known in KNOWN)]


def test_a_finished_run_is_flown_through_and_compared_with_its_photos(
    page: Page, served: Served, run: Path, tmp_path: Path
) -> None:
    page.errors.clear()
    page.open(f"http://127.0.0.1:{served.port}/?fixedDpr=1", WIDTH, HEIGHT)
    first = shown(page, served, run, tmp_path / "first")
    assert page.run(OVERLAPS) == [] and first.std() > 20, "not empty"

    left, top, width, height = page.run(CANVAS)
    x, y = left + width / 2, top + height / 2
    page.mouse(
        ("pressed", x, y), *(("moved", x + 8 * k, y + 2 * k) for k in range(1, 12)), ("released", x + 88, y + 22)
    )
    wait_for(lambda: next(iter(served.easel._viewers.values())).place is None)
    turned = shown(page, served, run, tmp_path / "turned")
    assert psnr(first, turned) < 35, "another picture"

    press(page, "next")
    wait_for(lambda: next(iter(served.easel._viewers.values())).place is not None)
    model = shown(page, served, run, tmp_path / "jumped")
    place = next(iter(served.easel._viewers.values())).place

    choose(page, "model", "slider")
    box = rectangle(served.easel.places[place], round(width), round(height))
    half = (box[0] + box[2]) // 2

    def only_left() -> bool:
        """The photo is left of the middle, and nothing of it right."""
        seen = canvas(page)
        left, right = slice(box[0], half - 4), slice(half + 4, None)
        return psnr(seen[:, right], model[:, right]) > 40 and psnr(seen[:, left], model[:, left]) < 35

    wait_for(only_left)
    slider = page.run(SLIDER)
    page.mouse(
        ("pressed", *slider),
        ("moved", slider[0] - 20, slider[1]),
        ("moved", slider[0] - 400, slider[1]),
        ("released", slider[0] - 400, slider[1]),
    )
    same(page, model)  # nothing of the photo any more
    choose(page, "slider", "error")
    wait_for(lambda: psnr(canvas(page), model) < 20)
    choose(page, "error", "model")
    same(page, model)
    assert complaints(page) == []


def test_a_second_viewer_and_tabs_that_close_disturb_nobody(page: Page, served: Served) -> None:
    page.errors.clear()
    page.open(f"http://127.0.0.1:{served.port}/?fixedDpr=1", WIDTH, HEIGHT)
    wait_for(served.rests)
    with browser_page(webgl=True) as other:
        other.open(f"http://127.0.0.1:{served.port}/?fixedDpr=1", 700, 500)
        wait_for(lambda: len(served.easel._viewers) == 2 and served.rests())
        press(other, "next")
        wait_for(lambda: len({viewer.place for viewer in served.easel._viewers.values()}) == 2)  # each its own
        wait_for(served.rests)
    wait_for(lambda: len(served.easel._viewers) == 1)
    page.open("about:blank")
    wait_for(lambda: not served.easel.looked_at)
    assert complaints(page) == []


def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def test_a_run_that_trains_is_paused_resumed_saved_and_stopped_from_its_page(page: Page, tmp_path: Path) -> None:
    run, port = tmp_path / "run", free()
    options = ["--iterations", "100000", "--downscale", "4", "--save-every", "0", "--seed", "1"]
    words = command("train", DEMO, "-o", run, *options, "--viewer", "--port", str(port), "-q")
    process = subprocess.Popen(words, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: (run / "events.jsonl").exists() or process.poll() is not None, 60)
        assert process.poll() is None, process.stderr.read()
        page.errors.clear()
        page.open(f"http://127.0.0.1:{port}/?fixedDpr=1", WIDTH, HEIGHT)
        page.until("document.body.innerText.includes('of 100,000')")
        wait_for(lambda: canvas(page).std() > 15)
        page.until(
            "document.body.innerText.includes('lane compute') && document.body.innerText.includes('host memory')"
        )

        def images() -> int:
            return max((e["iteration"] for e in read_events(run) if e["type"] == "batch_done"), default=0)

        press(page, "Pause")
        page.until("document.body.innerText.includes('paused')")
        wait_for(lambda: any(e["type"] == "message" and "paused by a viewer" in e["text"] for e in read_events(run)))
        held = images()
        left, top, width, height = page.run(CANVAS)
        before, (x, y) = canvas(page), (left + width / 2, top + height / 2)
        page.mouse(("pressed", x, y), *(("moved", x + 10 * k, y) for k in range(1, 10)), ("released", x + 90, y))
        wait_for(lambda: psnr(canvas(page), before) < 35)
        press(page, "Save a checkpoint")
        wait_for(lambda: (run / "checkpoints" / f"step_{held}").exists())
        assert images() == held, "the pause holds"
        page.shot(tmp_path / "paused.png", whole=False)
        assert page.run(OVERLAPS) == []
        press(page, "Resume")
        wait_for(lambda: images() > held)
        press(page, "Stop and save")
        assert process.wait(30) == 130
        assert complaints(page) == [] or all("WebSocket" in error for error in complaints(page)), complaints(page)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
