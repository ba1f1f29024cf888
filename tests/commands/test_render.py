"""`clm render`: sizes, chosen cameras, paths, depth and videos; and one sentence for each thing that cannot be."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from clm.pictures import DepthScale
from clm.render import Render
from clm.run.viewing import model_renderer
from tests.demo_run import clm, files_under, read_json, run_demo


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("render") / "run"
    run_demo(run, iterations=8, downscale="8")
    return run


def render(run: Path, out: Path, *options: str | Path | int | float) -> str:
    done = clm("render", run, "-o", out, *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def video_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ((), (40, 30)),
        (("--width", 80), (80, 60)),
        (("--height", 15), (20, 15)),
        (("--scale", 1.5), (60, 45)),
        (("--width", 64, "--height", 36), (64, 36)),
    ],
)
def test_pictures_have_the_size_that_is_asked_for(run: Path, tmp_path: Path, options: tuple, size: tuple) -> None:
    render(run, tmp_path, "--views", "view_08", *options)
    assert files_under(tmp_path) == {"view_08.png"} and size_of(tmp_path / "view_08.png") == size


def test_a_larger_picture_shows_the_same(run: Path, tmp_path: Path) -> None:
    render(run, tmp_path / "a", "--views", "view_08")
    render(run, tmp_path / "b", "--views", "view_08", "--scale", 4)
    with Image.open(tmp_path / "a" / "view_08.png") as small, Image.open(tmp_path / "b" / "view_08.png") as large:
        shrunk = np.asarray(large.resize(small.size, Image.Resampling.BOX)).astype(float)
        assert np.abs(shrunk - np.asarray(small)).mean() < 6


def test_chosen_cameras_are_rendered_and_a_path_goes_through_them_in_their_order(run: Path, tmp_path: Path) -> None:
    out = render(run, tmp_path / "a", "--cameras", "all", "--views", "view_1*, view_03.jpg")
    assert out.startswith("11 images in ")
    ends = ("view_13", "view_02")
    render(run, tmp_path / "path", "--path", "interp", "--views", ",".join(ends), "--frames", 9)
    render(run, tmp_path / "ends", "--cameras", "all", "--views", ",".join(ends))
    for name, frame in zip(ends, (0, 8), strict=True):
        ours, theirs = tmp_path / "path" / f"frame_{frame:05d}.png", tmp_path / "ends" / f"{name}.png"
        assert np.abs(np.asarray(Image.open(ours)).astype(int) - np.asarray(Image.open(theirs))).max() <= 1


def test_normals_face_the_viewer_and_need_no_depth_files(run: Path, tmp_path: Path) -> None:
    render(run, tmp_path, "--views", "view_08", "--normals", "--scale", 4)
    assert files_under(tmp_path) == {"view_08.png", "view_08.normals.png"}
    with Image.open(tmp_path / "view_08.normals.png") as picture:
        normals = np.asarray(picture).astype(float).reshape(-1, 3)
    drawn = normals[normals.any(axis=1)] / 127.5 - 1
    assert len(drawn) > len(normals) / 2 and np.abs(np.linalg.norm(drawn, axis=1) - 1).max() < 0.03
    assert (drawn[:, 2] > 0).mean() > 0.8
    done = clm("render", run, "-o", tmp_path / "a.mp4", "--normals", "--path", "ellipse")
    assert done.returncode == 2 and "--normals are pictures" in done.stderr


def test_a_video_alone_has_the_frames_of_the_path_at_the_rate_of_its_file(run: Path, tmp_path: Path) -> None:
    out = render(run, tmp_path / "a.mp4", "--path", "ellipse", "--frames", 7, "--depth", "--fps", 12.5)
    assert out == f"7 images in {tmp_path / 'a.mp4'}\n" and files_under(tmp_path) == {"a.mp4", "a.depth.mp4"}
    for name in files_under(tmp_path):
        assert video_frames(tmp_path / name) == 7
        with av.open(str(tmp_path / name)) as container:
            assert container.streams.video[0].average_rate == 12.5
    pose = np.diag([1.0, -1, -1, 1]).flatten().tolist()
    path = {
        "render_width": 32,
        "render_height": 24,
        "fps": 10,
        "camera_path": [{"camera_to_world": pose, "fov": 50}] * 3,
    }
    (tmp_path / "path.json").write_text(json.dumps(path))
    render(run, tmp_path / "b.mp4", "--cameras", tmp_path / "path.json")
    with av.open(str(tmp_path / "b.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.width, stream.height, stream.frames) == (10, 32, 24, 3)


def test_a_video_shows_the_pictures_beside_it(run: Path, tmp_path: Path) -> None:
    render(run, tmp_path, "--path", "interp", "--frames", 4, "--video", "--scale", 2)
    with av.open(str(tmp_path / "video.mp4")) as container:
        names = {"src_colorspace": "ITU709", "src_color_range": "MPEG", "dst_color_range": "JPEG"}
        shown = [f.reformat(format="rgb24", **names).to_ndarray() for f in container.decode(video=0)]
    for k, frame in enumerate(shown):
        picture = np.asarray(Image.open(tmp_path / f"frame_{k:05d}.png")).astype(float)
        assert np.abs(picture - frame).mean() < 6


def test_depth_pictures_state_their_scale_and_agree_with_the_exact_depth(run: Path, tmp_path: Path) -> None:
    render(run, tmp_path, "--depth")
    stated = read_json(tmp_path / "depth.json")
    for exact in sorted(tmp_path.glob("*.depth.npy")):
        depth = np.load(exact)
        with Image.open(exact.with_suffix(".png")) as picture:
            steps, text = np.asarray(picture).astype(np.float64), picture.info["Depth"]
        assert f"{stated['depth_step']:g}" in text and "world units" in text
        inside = (depth > 0) & (steps < 65535)
        assert inside.mean() > 0.9 and (steps[depth == 0] == 0).all() and steps[depth > 0].min() >= 1
        np.testing.assert_allclose(steps[inside] * stated["depth_step"], depth[inside], atol=stated["depth_step"])


def test_a_scale_of_depth_holds_what_is_seen_whatever_the_unit() -> None:
    depths = np.random.default_rng(0).uniform(2, 7, 1000)
    for unit in (1e-3, 1.0, 1e5):
        scale = DepthScale.of(unit * depths)
        assert 65535 * scale.step > unit * 7 and scale.step < unit * 1e-3
        picture = scale.colours(np.array([[0.0, unit * 2.5, unit * 6.5]], np.float32))
        assert (picture[0, 0] == 0).all() and picture[0, 1].sum() > picture[0, 2].sum() > 0, "near is light"
        odd = scale.steps(np.array([[0.0, np.nan, np.inf, 1e-9 * unit]], np.float32))
        assert odd.tolist() == [[0, 0, 65535, 1]]
    assert DepthScale.of(np.zeros(0)).step > 0


REFUSED = [
    (("--path", "interp", "--fps", "24"), "--fps is of a video"),
    (("--video", "--fps", "0"), "--fps is 0"),
    (("--frames", "8"), "--frames is of a camera path"),
    (("--path", "ellipse", "--frames", "0"), "--frames is 0"),
    (("--path", "ellipse", "--frames", "9999999999"), "A path has 1 to 1,000,000 frames"),
    (("--background", "pinkish"), "`background` is `pinkish`"),
    (("--path", "spiral"), "--path is `spiral`"),
    (("--width", "0"), "--width is 0"),
    (("--height", "-3"), "--height is -3"),
    (("--scale", "0"), "--scale is 0"),
    (("--scale", "2", "--width", "100"), "--scale and --width"),
    (("--scale", "30000"), "too large"),
    (("--width", "60000"), "too large"),
    (("--views", "view_0x"), "Did you mean view_0"),
    (("--views", "zzzzzzz"), "The first one is called view_00.jpg"),
    (("--views", " , "), "--views names no camera"),
    (("--cameras", "nosuch"), "No such file: nosuch"),
    (("--cameras", "EMPTY"), "No COLMAP model"),
    (("--cameras", "MIXED", "--video"), "one size"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED, ids=[" ".join(o) for o, _ in REFUSED])
def test_what_cannot_be_rendered_is_refused_in_one_sentence(
    run: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    mixed = read_json(run / "cameras.json")[:2]
    mixed[1]["width"] += 2
    (tmp_path / "mixed.json").write_text(json.dumps(mixed))
    places = {"EMPTY": str(tmp_path / "empty"), "MIXED": str(tmp_path / "mixed.json")}
    done = clm("render", run, "-o", tmp_path / "out", "-q", *(places.get(word, word) for word in options))
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0], done.stderr
    assert done.stdout == "" and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("file", "file is no folder"),
        ("file/out", "file is no folder"),
        ("file/out.mp4", "file is no folder"),
        ("out.avi", "out.avi cannot be written: videos are .mp4"),
    ],
)
def test_a_place_that_takes_no_pictures_is_refused_before_any_is_rendered(
    run: Path, tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "file").write_text("mine")
    done = clm("render", run, "-o", tmp_path / name)
    [line] = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: ") and said in line
    assert files_under(tmp_path) == {"file"} and (tmp_path / "file").read_text() == "mine"


def test_cameras_of_several_sizes_make_a_video_of_one(run: Path, tmp_path: Path) -> None:
    mixed = read_json(run / "cameras.json")[:2]
    mixed[1]["width"] += 10
    (tmp_path / "mixed.json").write_text(json.dumps(mixed))
    render(run, tmp_path / "a.mp4", "--cameras", tmp_path / "mixed.json", "--width", 48, "--height", 32)
    assert video_frames(tmp_path / "a.mp4") == 2


def test_a_video_without_av_is_refused_before_anything_is_read(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    for output, options in ((tmp_path / "out", ["--video"]), (tmp_path / "a.mp4", [])):
        done = clm("render", run, "-o", output, *options)
        assert done.returncode == 2 and "`pip install av`" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_files_of_others_are_never_overwritten(run: Path, tmp_path: Path) -> None:
    for name, options in (("view_00.png", []), ("depth.json", ["--depth"]), ("video.mp4", ["--video"])):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("[]")
        done = clm("render", run, "-o", folder, *options)
        assert done.returncode == 2 and f"{name} is there already" in done.stderr
        assert files_under(folder) == {name} and (folder / name).read_text() == "[]"
    for _ in range(2):
        render(run, tmp_path / "ours", "--depth", "--video", "--views", "view_00")
        left = tmp_path / "ours" / ".video.mp4.999999999.clm.tmp"  # of a process that was killed
        left.touch()
    render(run, tmp_path / "ours" / "video.mp4", "--views", "view_00")
    assert not left.exists()


@pytest.mark.parametrize(("signals", "kept"), [(1, True), (2, False)])
def test_ctrl_c_keeps_what_is_done_as_a_shorter_video_and_a_second_one_abandons_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: int, kept: bool
) -> None:
    """The signals come while the sixth frame is rendered."""
    rendered: list[Render] = []

    def interrupting(*arguments: Any) -> Any:
        real = model_renderer(*arguments)

        def render(*one: Any, **options: Any) -> Render:
            rendered.append(real(*one, **options))
            for _ in range(signals if len(rendered) == 6 else 0):
                signal.raise_signal(signal.SIGINT)
            return rendered[-1]

        return render

    monkeypatch.setattr("clm.commands.render.model_renderer", interrupting)
    done = clm("render", run, "-o", tmp_path, "--path", "interp", "--frames", 20, "--video")
    assert done.returncode == 130 and len(list(tmp_path.glob("frame_*.png"))) == (6 if kept else 5)
    assert (tmp_path / "video.mp4").exists() == kept and not list(tmp_path.glob(".*"))
    if kept:
        assert done.stdout == f"6 images of 20, stopped before the others, in {tmp_path}\n"
        assert video_frames(tmp_path / "video.mp4") == 6
