"""Exported files in viewers that are not ours: what is asked of whom, how pictures are judged; one viewer where it is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.browser import chromium
from tests.demo_run import REPOSITORY, environment, run_demo

sys.path.insert(0, str(REPOSITORY / "scripts"))

from show_in_viewers import level, off_centre, views_of
from viewer_parts.browser import PACKAGES, install, served
from viewer_parts.cases import AS_TRAINED, FILES, OFF_CENTRE, PLY, VIEWERS, Case, Shown, cases, table
from viewer_parts.pictures import MOST_BYTES, psnr, write_sheet

from clm.errors import ClmError
from clm.formats.registry import FORMATS, format_of

SCRIPT = REPOSITORY / "scripts" / "show_in_viewers.py"


def test_every_format_is_shown_by_somebody_and_no_file_is_compared_with_itself() -> None:
    wanted = cases(VIEWERS, 29.0)
    assert {format_of(Path(case.file)).ending for case in wanted} == {f.ending for f in FORMATS} - {
        "meta.json",
        "manifest.json",
    }
    assert {case.file for case in wanted} == set(FILES) and len({case.id for case in wanted}) == len(wanted)
    for k, case in enumerate(wanted):
        assert case.like_ply is None or case.of_ply.id in {earlier.id for earlier in wanted[:k]}, (
            "the PLY is looked at before"
        )
    required = {
        (case.viewer, case.file): case.least
        for case in wanted
        if case.cameras != OFF_CENTRE and case.level != 1 and not case.matched
    }
    assert {case.least for case in wanted if case.matched} == {38}, "with our footprint they come as near as Spark"
    assert (
        required["spark", "model.sog"] == 38
        and required["spark", "model.spz"] == 35
        and required["spark", "fine.spz"] == 38
    )
    assert required["playcanvas", "model.glb"] == required["supersplat", PLY] == 29
    assert {case.viewer for case in cases(["three"], 29.0)} == {"three"}


def test_what_is_required_and_not_reached_is_said() -> None:
    case = Case("spark", "model.sog", least=38.0, like_ply=38.0)
    assert Shown(case, [39.0, 37.5], [40.0, 41.0]).missed == [], "the mean counts"
    assert Shown(case, [36.0, 39.0], [40.0]).missed == ["37.5 dB against our render, 38 required"]
    assert Shown(case, [39.0], []).missed == ["nan dB against its PLY, 38 required"], (
        "no picture to compare with is a miss"
    )
    assert Shown(case, [], [], error="not shown: 404").missed == ["not shown: 404"]
    assert Shown(Case("three", "model.glb"), [20.0], []).missed == []
    lines = table([Shown(case, [39.0, 38.0], [40.0, 41.0])], {"model.sog": 1_500_000}).splitlines()
    assert lines[-1] == f"| spark | model.sog | 1.5 | {AS_TRAINED} | 38 | 38.5 (38.0) | 38 | 40.5 (40.0) | ok |"
    assert len({line.count("|") for line in lines}) == 1


def test_pictures_are_as_near_as_their_squared_difference_and_a_sheet_is_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (60, 80, 3)).astype(np.float32)
    assert psnr(one, one) > 100 and psnr(one, np.clip(one, 1, 255)) > 40
    assert psnr(one * 0, one * 0 + 255) == 0
    with pytest.raises(ValueError, match="80x60 and 60x80 px"):
        psnr(one, one.transpose(1, 0, 2))
    Image.fromarray(one.astype(np.uint8)).save(tmp_path / "a.png")
    rows = [
        [(f"viewer {k}\n30 dB", tmp_path / "a.png") for k in range(9)],
        [("nobody\nnot shown", tmp_path / "nothing.png")],
    ]
    write_sheet(tmp_path / "sheet.jpg", rows, 130)
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.width > 9 * 130
    assert (tmp_path / "sheet.jpg").stat().st_size <= MOST_BYTES


def test_cameras_without_roll_look_the_same_way_and_the_moved_point_is_off_the_middle(tmp_path: Path) -> None:
    run_demo(tmp_path / "run", iterations=4)
    views = views_of(tmp_path / "run", 3, 2.0)
    assert [view["img_name"] for view in views] == ["view_00", "view_16", "view_32"]
    entries = json.loads((tmp_path / "run" / "cameras.json").read_text())
    assert views[0]["width"] == 2 * entries[0]["width"] and views[0]["fx"] == pytest.approx(2 * entries[0]["fx"])
    rolled = {**views[1], "cx": 10.0, "rotation": (np.array(views[1]["rotation"]) @ _roll(0.3)).tolist()}
    flat, before = level(rolled), np.array(rolled["rotation"])
    rotation = np.array(flat["rotation"])
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(rotation[:, 2], before[:, 2])
    assert np.linalg.det(rotation) > 0 and abs(rotation[1, 0]) < 1e-12 and flat["cx"] == flat["width"] / 2
    moved = off_centre(views[0])
    assert abs(moved["cx"] - moved["width"] / 2) > moved["width"] / 8


def _roll(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def test_packages_never_go_into_the_repository_and_the_server_shows_three_folders(tmp_path: Path) -> None:
    with pytest.raises(ClmError, match="is in the repository"):
        install(REPOSITORY / "build" / "npm")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.ply").write_text("ply")
    (tmp_path / "secret").write_text("secret")
    with served(tmp_path / "npm", tmp_path / "files") as base:
        assert base.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{base}/files/a.ply") as answer:
            assert answer.read() == b"ply"
        with urllib.request.urlopen(f"{base}/parts/camera.mjs") as answer:
            assert answer.headers["Content-Type"] == "text/javascript" and answer.headers["Cache-Control"] == "no-store"
        for path in ("/secret", "/files/../secret", "/files/%2e%2e/secret", "/"):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(base + path)


def test_what_is_asked_for_in_vain_ends_in_one_sentence(tmp_path: Path) -> None:
    options = ["--packages", str(tmp_path / "npm"), "-o", str(tmp_path / "out")]
    for more, said in (
        (["--viewers", "sparc"], "error: No viewer is called sparc. Known: spark,"),
        (["--chromium", "nosuchbrowser"], "error: nosuchbrowser is not installed"),
    ):
        done = subprocess.run(
            [sys.executable, SCRIPT, *options, *more], capture_output=True, text=True, env=environment()
        )
        assert done.returncode == 2 and done.stderr.startswith(said) and len(done.stderr.splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())


def test_spark_shows_a_ply_and_a_splat_as_we_render_them(tmp_path: Path) -> None:
    packages = Path(os.environ.get("CLM_VIEWER_PACKAGES", "/nowhere"))
    for name in ("puppeteer-core", "three", "@sparkjsdev/spark"):
        if not (packages / "node_modules" / name).is_dir():
            pytest.skip(f"{name} is not in CLM_VIEWER_PACKAGES (scripts/show_in_viewers.py --packages DIR fetches it)")
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    program = chromium()
    run_demo(tmp_path / "run", iterations=40)
    command = [
        sys.executable,
        str(SCRIPT),
        str(tmp_path / "run"),
        "--packages",
        str(packages),
        "-o",
        str(tmp_path / "out"),
    ]
    command += ["--viewers", "spark", "--views", "1", "--scale", "2", "--chromium", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the page said" not in done.stdout
    assert (tmp_path / "out" / "report.md").read_text().count("| ok |") == 7
    assert all(f"{name} {version}" in done.stdout for name, version in PACKAGES.items())
