"""The contract of the command line: files of a run, keys of its JSON, what render, eval, export and info do with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from plyfile import PlyData

from clm.plan.budget import RESIDENT_ROW_BYTES, SLOT_BYTES
from clm.plan.residency import make_plan
from tests.conftest import scene_path
from tests.demo_run import (
    DEMO,
    FIXED,
    assert_same_model,
    clm,
    clm_process,
    environment,
    files_under,
    read_events,
    read_json,
    run_demo,
    write_survey_scene,
)

REPORT = {
    "seconds": None,
    "iterations": None,
    "images_per_second": None,
    "num_gaussians": None,
    "device": None,
    "offload": None,
    "peak": {"device_bytes", "host_bytes", "disk_bytes", "rss_bytes"},
    "traffic": {
        "rows_loaded",
        "bytes_loaded",
        "bytes_sent_back",
        "rows_loaded_no_reuse",
        "rows_loaded_consecutive_reuse",
        "rows_lower_bound",
    },
    "lanes": {"load", "compute", "send_back", "update", "hidden_fraction"},
    "rebuilds": {"count", "seconds", "rows_changed"},
    "in_core_bytes": None,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract") / "run"
    options = ["--iterations", "120", "--batch-size", "8", "--downscale", "2", "--offload", "host"]
    result = clm("train", DEMO, "-o", folder, *options)
    assert result.returncode == 0, result.stderr
    return folder


def test_the_run_directory_is_the_inria_layout_plus_ours(run: Path) -> None:
    expected = {"config.yaml", "cfg_args", "cameras.json", "input.ply", "events.jsonl", "metrics.json", "report.json"}
    files = files_under(run)
    assert expected <= files
    assert "point_cloud/iteration_120/point_cloud.ply" in files
    assert "checkpoints/step_120/state.json" in files and "eval/step_120/metrics.json" in files
    assert not [name for name in files if ".tmp" in name]


def test_cfg_args_is_what_inria_tools_evaluate(run: Path) -> None:
    arguments = eval((run / "cfg_args").read_text(), {"Namespace": Namespace})
    assert arguments.sh_degree == 3 and arguments.source_path.endswith("demo") and arguments.eval


def test_report_and_metrics_have_the_keys_of_the_contract(run: Path) -> None:
    report, metrics = read_json(run / "report.json"), read_json(run / "metrics.json")
    for key, inner in REPORT.items():
        assert key in report
        if inner:
            assert inner <= report[key].keys()
    assert report["iterations"] == 120 and report["offload"] == "host" and report["device"] == "cpu"
    assert 0 <= report["lanes"]["hidden_fraction"] <= 1
    assert metrics["iteration"] == 120 and metrics["num_gaussians"] == report["num_gaussians"]
    for split in ("test", "train"):
        values = [view["psnr"] for view in metrics[split]["per_view"].values()]
        assert metrics[split]["psnr"] == pytest.approx(np.mean(values))
        assert metrics[split]["median"]["psnr"] == pytest.approx(np.median(values))
        assert metrics[split]["worst"][0]["psnr"] == min(values)
        assert metrics[split]["psnr_colour_corrected"] >= metrics[split]["psnr"]
    assert len(metrics["test"]["per_view"]) == 5


def test_rows_loaded_equal_the_lower_bound_when_the_union_fits_and_beat_consecutive_reuse(run: Path) -> None:
    traffic = read_json(run / "report.json")["traffic"]
    assert traffic["rows_loaded"] == traffic["rows_lower_bound"]
    assert traffic["rows_loaded"] <= traffic["rows_loaded_consecutive_reuse"] <= traffic["rows_loaded_no_reuse"]
    predicted = sum(event["rows_loaded"] for event in read_events(run) if event["type"] == "batch_done")
    assert traffic["rows_loaded"] == predicted


@pytest.mark.parametrize(("colour_bus", "colour_bytes"), [("f32", 4), ("bf16", 2)])
def test_the_receipt_adds_up_what_the_plans_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colour_bus: str, colour_bytes: int
) -> None:
    """A tight arena: rows are evicted, partial gradients travel, and every byte of it is in the plans."""
    plans = []

    def watched(*arguments: Any, **options: Any) -> Any:
        plans.append(make_plan(*arguments, **options))
        return plans[-1]

    monkeypatch.setattr("clm.plan.batch.make_plan", watched)
    options: dict[str, Any] = {"data": write_survey_scene(tmp_path / "survey"), "downscale": "1", "batch_size": 12}
    options |= {"iterations": 48, "sh_interval": 12, "offload": "host", "colour_bus": colour_bus, **FIXED}
    run_demo(tmp_path / "run", gpu_memory=str(1000 * SLOT_BYTES), **options)
    report, moved = read_json(tmp_path / "run" / "report.json"), [plan.traffic for plan in plans]
    traffic = report["traffic"]
    assert sum(t.loaded_partial for t in moved) > 0, "nothing was evicted before its last use"
    assert traffic["rows_loaded"] == sum(t.loaded for t in moved)
    assert traffic["rows_lower_bound"] == sum(t.lower_bound for t in moved) < traffic["rows_loaded"]
    assert traffic["rows_loaded_no_reuse"] == sum(t.no_reuse for t in moved)
    assert traffic["rows_loaded_consecutive_reuse"] == sum(t.consecutive_reuse for t in moved)
    colour = [3 * (degree + 1) ** 2 for degree in range(4)]  # columns in use: one SH degree more every batch
    row = [48 + colour_bytes * columns for columns in colour]
    gradient = [4 * (16 + columns) for columns in colour]
    loads = [t.loaded * r + t.loaded_partial * g for t, r, g in zip(moved, row, gradient, strict=True)]
    assert traffic["bytes_loaded"] == sum(loads)
    assert traffic["bytes_sent_back"] == sum(t.sent_back * g for t, g in zip(moved, gradient, strict=True))
    assert report["peak"]["device_bytes"] == 1000 * SLOT_BYTES
    assert report["in_core_bytes"] == 3000 * RESIDENT_ROW_BYTES + 3000 * SLOT_BYTES


def test_nothing_crosses_the_bus_when_everything_is_on_the_device(tmp_path: Path) -> None:
    run_demo(tmp_path / "run", iterations=8, offload="none")
    report = read_json(tmp_path / "run" / "report.json")
    assert report["traffic"]["bytes_loaded"] == report["traffic"]["bytes_sent_back"] == 0
    assert report["peak"]["device_bytes"] == report["in_core_bytes"]


def test_the_configuration_of_a_run_starts_the_same_run_again(run: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((run / "config.yaml").read_text())
    assert Path(values.pop("data")) == DEMO and values["batch_size"] == 8 and values["densify_every"] is not None
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(values))
    assert clm("train", DEMO, "-o", tmp_path / "run", "--config", tmp_path / "again.yaml", "-q").returncode == 0
    assert_same_model(run, tmp_path / "run")


def test_cameras_json_has_what_viewers_read(run: Path) -> None:
    cameras = read_json(run / "cameras.json")
    assert len(cameras) == 40 and [c["id"] for c in cameras] == list(range(40))
    keys = {"id", "img_name", "width", "height", "position", "rotation", "fx", "fy"}
    assert all(keys <= camera.keys() and (camera["width"], camera["height"]) == (160, 120) for camera in cameras)
    rotation = np.array(cameras[7]["rotation"])
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)


def test_events_name_their_type_first_and_count_every_image(run: Path) -> None:
    lines = (run / "events.jsonl").read_text().splitlines()
    assert all(line.startswith('{"type": ') for line in lines)
    done = [e for e in read_events(run) if e["type"] == "batch_done"]
    assert [e["iteration"] for e in done] == list(range(8, 121, 8))


def test_rendering_the_run_gives_the_pictures_that_were_evaluated(run: Path, tmp_path: Path) -> None:
    assert clm("render", run, "-o", tmp_path, "--gpu-memory", "8MiB").returncode == 0
    evaluated = sorted((run / "eval" / "step_120").glob("*.png"))
    assert len(evaluated) == 5
    for picture in evaluated:
        ours = np.asarray(Image.open(tmp_path / picture.name)).astype(int)
        difference = np.abs(ours - np.asarray(Image.open(picture)))
        assert difference.max() <= 1  # the PLY normalises quaternions: float32 rounding


@pytest.mark.parametrize(("which", "count"), [("test", 5), ("train", 35), ("all", 40), ("FILE.json", 2)])
def test_cameras_of_a_split_or_a_file_are_rendered(run: Path, tmp_path: Path, which: str, count: int) -> None:
    if which == "FILE.json":
        which = str(tmp_path / "two.json")
        Path(which).write_text(json.dumps(read_json(run / "cameras.json")[3:5]))
    result = clm("render", run, "-o", tmp_path / "out", "--cameras", which)
    assert result.returncode == 0 and result.stdout.startswith(f"{count} images in ")
    assert len(files_under(tmp_path / "out")) == count
    for name in files_under(tmp_path / "out"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.size == (160, 120)


def test_paths_depth_and_video(run: Path, tmp_path: Path) -> None:
    result = clm("render", run, "--path", "ellipse", "--frames", 3, "--depth", "--video", "-o", tmp_path)
    assert result.returncode == 0, result.stderr
    files = files_under(tmp_path)
    assert {"frame_00000.png", "frame_00002.png", "frame_00001.depth.npy", "frame_00001.depth.png"} <= files
    assert {"video.mp4", "video.depth.mp4", "depth.json"} <= files
    depth = np.load(tmp_path / "frame_00001.depth.npy")
    assert np.isfinite(depth).all() and depth.max() > 0
    assert clm("render", run, "--path", "interp", "--frames", 2, "-o", tmp_path / "b").returncode == 0


def test_eval_agrees_with_the_metrics_of_training(run: Path) -> None:
    before = read_json(run / "metrics.json")["test"]["psnr"]
    result = clm("eval", run)
    assert result.returncode == 0 and f"{before:.1f}" in result.stdout and "worst views" in result.stdout
    measured = read_json(run / "eval" / "step_120" / "test.json")["test"]["psnr"]
    assert measured == pytest.approx(before, abs=0.01)


def test_export_trims_spherical_harmonics(run: Path, tmp_path: Path) -> None:
    assert clm("export", run, tmp_path / "small.ply", "--sh", 1).returncode == 0
    vertices = PlyData.read(tmp_path / "small.ply")["vertex"]
    header = (tmp_path / "small.ply").read_bytes().index(b"end_header\n") + len(b"end_header\n")
    assert (tmp_path / "small.ply").stat().st_size - header == 104 * vertices.count
    assert len([p for p in vertices.properties if p.name.startswith("f_rest_")]) == 9
    assert vertices.count == read_json(run / "metrics.json")["num_gaussians"]


@pytest.mark.parametrize("ending", [".compressed.ply", ".spz", ".splat", ".glb"])
def test_a_model_of_any_format_is_described_rendered_exported_and_started_from(
    run: Path, tmp_path: Path, ending: str
) -> None:
    model = tmp_path / f"model{ending}"
    assert clm("export", run, model).returncode == 0
    rows = read_json(run / "metrics.json")["num_gaussians"]
    facts = json.loads(clm("info", model, "--json").stdout)
    assert facts["kind"] == ending[1:] and facts["gaussians"] == rows and not facts["unusable"]
    cameras = tmp_path / "cameras.json"
    cameras.write_text(json.dumps(read_json(run / "cameras.json")[:1]))
    pictures = []
    for source, out in ((run, "whole"), (model, "packed")):
        assert clm("render", source, "--cameras", cameras, "-o", tmp_path / out).returncode == 0
        [path] = (tmp_path / out).glob("*.png")
        pictures.append(np.asarray(Image.open(path)).astype(float))
    assert 10 * np.log10(255**2 / ((pictures[0] - pictures[1]) ** 2).mean()) > 30
    assert clm("export", model, tmp_path / "back.ply").returncode == 0
    assert PlyData.read(tmp_path / "back.ply")["vertex"].count == rows
    again = clm("train", DEMO, "-o", tmp_path / "again", "--init-ply", model, "--iterations", 4, "--downscale", 8, "-q")
    assert again.returncode == 0, again.stderr
    assert read_json(tmp_path / "again" / "metrics.json")["num_gaussians"] == rows


def test_info_describes_runs_models_and_scenes(run: Path) -> None:
    kinds = {"run": run, "ply": run / "input.ply", "scene": DEMO}
    for kind, path in kinds.items():
        facts = json.loads(clm("info", path, "--json").stdout)
        assert facts["kind"] == kind
        assert facts["kind"] in clm("info", path).stdout


def test_a_model_of_another_tool_renders_within_a_bounded_arena(run: Path, tmp_path: Path) -> None:
    ply = scene_path("ply") / "playbot_lod3.ply"
    bounds = PlyData.read(ply)["vertex"]
    centre = np.array([np.median(bounds[axis]) for axis in "xyz"])
    size = float(np.ptp(bounds["x"]) + np.ptp(bounds["y"]) + np.ptp(bounds["z"])) / 3
    position = centre + np.array([0.0, 0.0, -1.5 * size])
    camera = {"id": 0, "img_name": "front", "width": 160, "height": 120, "fx": 150.0, "fy": 150.0}
    camera |= {"position": position.tolist(), "rotation": np.eye(3).tolist()}
    (tmp_path / "cameras.json").write_text(json.dumps([camera]))
    arguments = ("render", ply, "--cameras", tmp_path / "cameras.json", "-o", tmp_path)
    assert clm(*arguments).returncode == 0
    assert np.asarray(Image.open(tmp_path / "front.png")).std() > 10, "nothing is in the picture"
    refused = clm(*arguments, "--gpu-memory", "64KiB")
    assert refused.returncode == 3 and "--gpu-memory" in refused.stderr


def test_json_prints_lines_and_quiet_prints_nothing(tmp_path: Path) -> None:
    options = ["--iterations", "8", "--downscale", "8"]
    spoken = clm("train", DEMO, "-o", tmp_path / "a", *options, "--json")
    types = [json.loads(line)["type"] for line in spoken.stdout.splitlines()]
    assert {"started", "batch_done", "evaluated", "finished"} <= set(types)
    assert spoken.stderr == "" and spoken.stdout.startswith('{"type": ')
    silent = clm_process("train", DEMO, "-o", tmp_path / "b", *options, "-q")
    assert silent.returncode == 0 and silent.stdout == silent.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--help"], ["torch", "pycolmap", "gsplat", "numpy"]),
        (["train", "--help"], ["torch", "pycolmap", "gsplat"]),
        (["train", str(DEMO), "-q", "--iterations", "4", "--downscale", "8", "-o"], ["torch", "gsplat"]),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(tmp_path: Path, arguments: list[str], absent: list[str]) -> None:
    if arguments[-1] == "-o":
        arguments = [*arguments, str(tmp_path / "run")]
    code = (
        f"import sys; sys.argv = ['clm', *{arguments!r}]\n"
        "from clm.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        f"print([name for name in {absent!r} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert result.stderr.strip().splitlines()[-1] == "[]", result.stderr


def test_ctrl_c_while_the_program_is_loaded_ends_it_without_a_traceback() -> None:
    code = (
        "import runpy, sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "sys.argv = ['clm', 'info', 'run']\n"
        "runpy.run_module('clm', run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert (result.returncode, result.stderr) == (130, "")


def test_masked_pixels_neither_train_nor_count(tmp_path: Path) -> None:
    """Whatever the ignored half of every photo shows, the model and its metrics are the same, bit for bit."""
    keep = np.zeros((240, 320), np.uint8)
    keep[:, 160:] = 255
    for name, paint in (("plain", None), ("painted", (255, 0, 255))):
        data = tmp_path / name
        shutil.copytree(DEMO, data)
        (data / "masks").mkdir()
        for path in sorted((data / "images").iterdir()):
            pixels = np.array(Image.open(path))
            if paint:
                pixels[:, :160] = paint
            Image.fromarray(pixels).save(path, format="PNG")  # lossless, whatever its name says
            Image.fromarray(keep).save(data / "masks" / f"{path.stem}.png")
        options = ["--iterations", "24", "--masks", str(data / "masks")]
        result = clm("train", data, "-o", tmp_path / f"{name}_run", *options)
        assert result.returncode == 0, result.stderr
    assert_same_model(tmp_path / "plain_run", tmp_path / "painted_run")
    plain, painted = (read_json(tmp_path / f"{name}_run" / "metrics.json") for name in ("plain", "painted"))
    assert plain == painted


def test_a_trace_shows_every_lane_of_every_batch_and_its_sums_are_those_of_the_receipt(tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": write_survey_scene(tmp_path / "survey"), "downscale": "1", "batch_size": 12}
    trace = tmp_path / "trace.json"
    run_demo(tmp_path / "run", iterations=36, offload="host", trace=str(trace), **options, **FIXED)
    events = read_json(trace)["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    spans = [e for e in events if e["ph"] == "X"]
    assert all(e["dur"] >= 0 and e["ts"] >= 0 for e in spans)
    lanes = read_json(tmp_path / "run" / "report.json")["lanes"]
    for tid, name in names.items():
        seconds = sum(e["dur"] for e in spans if e["tid"] == tid) / 1e6
        key = name.replace(" ", "_")
        assert seconds > 0, f"nothing of {name}"
        if key != "update":  # publishing cull entries is update's, after the batch
            assert seconds == pytest.approx(lanes[key], rel=1e-6)
    assert sum(e["name"] == "render" for e in spans) == 36
    assert sum(e["name"] == "cull, order, plan" for e in spans) == 3
