"""`clm info`: what a run, a model or a scene contains, as facts for programs and in words for people."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from clm.errors import ClmError
from clm.formats.model import ModelFile, image_of_ply, newest_ply, open_model
from clm.formats.registry import format_of, open_rows
from clm.progress import Report, unseen
from clm.run.bars import clock
from clm.store.layout import MEANS
from clm.units import format_bytes

_MANY_VIEWS = 200  # scenes of more cameras are usually flown, and each sees little
_DENSE_POINTS = 5_000  # for each view: more than features give


def describe(path: Path, report: Report = unseen) -> dict[str, Any]:
    """Facts about a run directory, a model of any format or a COLMAP scene, as one JSON-ready dictionary."""
    if not path.exists():
        raise ClmError(f"No such file or directory: {path}.", "Pass a run directory, a model or a COLMAP scene.")
    if path.is_file():
        opened = open_model(path)
        return {"kind": _kind(path), "path": str(path), **opened.rows.facts(), **_values(opened, report)}
    if (path / "config.yaml").exists() and (path / "cameras.json").exists():
        return _describe_run(path)
    return _describe_scene(path, report)


def _kind(path: Path) -> str:
    """A model's format by its file's name: `ply`, `spz`."""
    try:
        return format_of(path).ending.removeprefix(".")
    except ClmError:
        return "ply"  # which needs no name


def _values(opened: ModelFile, report: Report) -> dict[str, Any]:
    """What only the rows of a model tell, which are read in a stream: where they are, and how many are of no use."""
    low, high, usable = np.full(3, np.inf), np.full(3, -np.inf), 0
    for geometry, _ in opened.chunks(f"reading {opened.ply.name}", report):
        means = geometry[:, MEANS]
        low, high, usable = np.minimum(low, means.min(axis=0)), np.maximum(high, means.max(axis=0)), usable + len(means)
    bounds = [low.tolist(), high.tolist()] if usable else None
    return {"bounds": bounds, "unusable": opened.rows.count - usable}


def _describe_run(run: Path) -> dict[str, Any]:
    from clm.run.checkpoint import checkpoints, image_of_checkpoint

    saved = checkpoints(run / "checkpoints")
    facts: dict[str, Any] = {"kind": "run", "path": str(run), **_plan_of(run)}
    facts["checkpoints"] = [p.name for p in saved]
    for name in ("metrics", "report"):
        if (value := _read_json(run / f"{name}.json")) is not None:
            facts[name] = value
    reached = [image_of_checkpoint(p) for p in saved]
    try:
        ply = newest_ply(run)
        facts["ply"] = {"path": str(ply), **open_rows(ply).facts()}
        reached.append(image_of_ply(ply))
    except ClmError:
        facts["ply"] = None  # training has not finished yet
    facts["iteration"] = max(reached, default=0)
    return facts


def _plan_of(run: Path) -> dict[str, Any]:
    """What the run was asked for: its scene, and how many images it was to be trained on."""
    import yaml

    try:
        values = yaml.safe_load((run / "config.yaml").read_text())
        return {"data": str(values["data"]), "iterations": int(values["iterations"])}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return {"data": None, "iterations": None}  # damaged; the rest can still be described


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _describe_scene(data: Path, report: Report) -> dict[str, Any]:
    from clm.scene import load_scene
    from clm.scene.colmap import read_model

    colmap = read_model(data, report=report)
    scene = load_scene(data, require_images=False, colmap=colmap)
    sizes = sorted({(v.camera.width, v.camera.height) for v in scene.views})
    cameras = Counter(f"{i.camera.colmap_model} {i.camera.width}x{i.camera.height}" for i in colmap.images)
    folder = data / "images"
    present = sum((folder / view.name).is_file() for view in scene.views) if folder.is_dir() else None
    return {
        "kind": "scene",
        "path": str(data),
        "model": str(scene.model_path),
        "views": len(scene.views),
        "train": len(scene.train),
        "test": len(scene.test),
        "image_sizes": [f"{w}x{h}" for w, h in sizes],
        "cameras": dict(cameras.most_common()),
        "photos": present,
        "points": len(scene.points),
        "scene_scale": scene.scale,
        "offset": [float(x) for x in scene.offset],
        "messages": list(scene.messages),
    }


# ---- in words ----


def format_description(facts: dict[str, Any], as_json: bool) -> str:
    """Facts as JSON, or as sentences."""
    if as_json:
        return json.dumps(facts, indent=2)
    title, lines = {"run": _run_in_words, "scene": _scene_in_words}.get(facts["kind"], _model_in_words)(facts)
    return "\n".join([f"{facts['path']}: {title}", *(f"  {line}" for line in lines)])


def _run_in_words(facts: dict[str, Any]) -> tuple[str, list[str]]:
    reached, wanted, report = facts["iteration"], facts["iterations"], facts.get("report")
    finished = report is not None and (wanted is None or reached >= wanted)
    state = f"{reached:,} of {wanted:,} images" if wanted is not None else f"{reached:,} images"
    lines = [f"finished: {state}" if finished else f"not finished: {state}"]
    if finished:
        assert report is not None
        lines[0] += f" in {clock(report['seconds'])} on {report['device']}, {report['images_per_second']:.1f} images/s"
        peak, in_core = format_bytes(report["peak"]["device_bytes"]), format_bytes(report["in_core_bytes"])
        lines.append(f"offload {report['offload']}: device peak {peak}; everything on the device: {in_core}")
        if disk := report.get("disk"):
            read, written = format_bytes(disk["bytes_read"]), format_bytes(disk["bytes_written"])
            lines.append(
                f"disk: {format_bytes(report['peak']['disk_bytes'])}, {read} read, {written} written, {disk['hit_rate']:.0%} of "
                f"the pages in memory, {disk['hidden_fraction']:.0%} hidden"
            )
    lines += _quality_in_words(facts.get("metrics"))
    ply = facts["ply"]
    if ply is not None:
        lines.append(f"{_gaussians_in_words(ply)}: {ply['path']}")
    lines.append(f"checkpoints: {', '.join(facts['checkpoints']) or 'none'}")
    run = shlex.quote(facts["path"])
    if finished and ply is not None:
        lines.append("open that PLY in any Gaussian splatting viewer, or render it: " + f"clm render {run} -o out")
    elif facts["checkpoints"]:
        data = "" if facts["data"] else "DATA "  # a run whose config.yaml is damaged does not know its scene
        lines.append(f"go on with: clm train {data}--resume -o {run}")
    else:
        lines.append("nothing was saved: train again into another folder")
    return f"a run on {facts['data']}" if facts["data"] else "a run", lines


def _quality_in_words(metrics: dict[str, Any] | None) -> list[str]:
    """One line per split that was measured."""
    lines = []
    for split in ("test", "train"):
        figures = (metrics or {}).get(split)
        if figures and figures["psnr"] is not None:
            views = f"over {len(figures['per_view'])} views at image {metrics['iteration']:,}"  # type: ignore[index]
            lpips = f", LPIPS {figures['lpips']:.4f}" if figures.get("lpips") is not None else ""
            lines.append(f"{split} PSNR {figures['psnr']:.2f} dB, SSIM {figures['ssim']:.4f}{lpips} {views}")
        elif figures:
            lines.append(f"no {split} view could be measured")
    return lines


def _gaussians_in_words(ply: dict[str, Any]) -> str:
    antialiased = ", antialiased" if ply["antialiased"] else ""
    return f"{ply['gaussians']:,} Gaussians, SH degree {ply['sh_degree']}{antialiased}, {format_bytes(ply['bytes'])}"


def _model_in_words(facts: dict[str, Any]) -> tuple[str, list[str]]:
    lines = [_gaussians_in_words(facts), f"format {facts['format']}"]
    if facts["bounds"] is not None:
        low, high = (", ".join(f"{v:.4g}" for v in corner) for corner in facts["bounds"])
        lines.append(f"centres from ({low}) to ({high})")
    if facts["unusable"]:
        lines.append(f"{facts['unusable']:,} Gaussians are not finite or have no rotation: they are left out")
    if facts["extra_properties"]:
        lines.append(f"properties that are not used: {', '.join(facts['extra_properties'])}")
    lines += [f"comment: {comment}" for comment in facts["comments"]]
    return f"a Gaussian {facts['kind']}", lines


def _scene_in_words(facts: dict[str, Any]) -> tuple[str, list[str]]:
    views, photos = facts["views"], facts["photos"]
    cameras = ", ".join(f"{count:,} x {name}" for name, count in facts["cameras"].items())
    lines = [
        f"{views:,} views: {facts['train']:,} to train on, {facts['test']:,} held out",
        f"cameras: {cameras}",
        f"trained at {', '.join(facts['image_sizes'][:6])}{' ...' if len(facts['image_sizes']) > 6 else ''}",
        f"{facts['points']:,} points, scene scale {facts['scene_scale']:.4g}",
    ]
    if photos is None:
        lines.append("no folder `images`: name the photos' folder with --images")
    else:
        lines.append(f"photos: {photos:,} of {views:,} are in images/" if photos < views else "photos: all are there")
    lines += facts["messages"]
    preset = suggested_preset(views, facts["points"])
    command = f"clm train {shlex.quote(facts['path'])}{preset and f' --preset {preset}'}"
    lines.append(f"train it: {command} (a first look in minutes: --preset quick)")
    return f"a COLMAP scene, its model in {facts['model']}", lines


def suggested_preset(views: int, points: int) -> str:
    """The preset for a scene of so many views and points; "" for none."""
    if views <= _MANY_VIEWS:
        return ""
    return "city" if points >= _DENSE_POINTS * views else "aerial"
