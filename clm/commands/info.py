"""`clm info`: what a run, a PLY or a scene contains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clm.errors import ClmError
from clm.gaussians.model import newest_ply
from clm.gaussians.ply import ply_header_summary
from clm.plan.budget import format_bytes


def describe(path: Path) -> dict[str, Any]:
    """Facts about a run directory, a .ply file or a COLMAP scene, as one JSON-ready dictionary."""
    if not path.exists():
        raise ClmError(f"No such file or directory: {path}.", "Pass a run directory, a .ply file or a COLMAP scene.")
    if path.is_file():
        return {"kind": "ply", "path": str(path), **ply_header_summary(path)}
    if (path / "config.yaml").exists() and (path / "cameras.json").exists():
        return _describe_run(path)
    return _describe_scene(path)


def _describe_run(run: Path) -> dict[str, Any]:
    from clm.train.checkpoint import checkpoints

    facts: dict[str, Any] = {"kind": "run", "path": str(run)}
    facts["checkpoints"] = [p.name for p in checkpoints(run / "checkpoints")]
    for name in ("metrics", "report"):
        if (run / f"{name}.json").exists():
            facts[name] = json.loads((run / f"{name}.json").read_text())
    try:
        ply = newest_ply(run)
        facts["ply"] = {"path": str(ply), **ply_header_summary(ply)}
    except ClmError:
        facts["ply"] = None  # training has not finished yet
    return facts


def _describe_scene(data: Path) -> dict[str, Any]:
    from clm.scene import load_scene

    scene = load_scene(data, require_images=False)
    sizes = sorted({(v.camera.width, v.camera.height) for v in scene.views})
    return {
        "kind": "scene",
        "path": str(data),
        "model": str(scene.model_path),
        "views": len(scene.views),
        "train": len(scene.train),
        "test": len(scene.test),
        "image_sizes": [f"{w}x{h}" for w, h in sizes],
        "points": len(scene.points),
        "scene_scale": scene.scale,
        "offset": [float(x) for x in scene.offset],
        "messages": list(scene.messages),
    }


def format_description(facts: dict[str, Any], as_json: bool) -> str:
    """Facts as JSON, or as `key: value` lines with the long parts left out."""
    if as_json:
        return json.dumps(facts, indent=2)
    lines = []
    for key, value in facts.items():
        if key == "metrics":
            value = _metrics_line(value)
        elif key == "report":
            peak = format_bytes(value["peak"]["device_bytes"])
            value = f"{value['images_per_second']:.1f} images/s, device peak {peak}, offload {value['offload']}"
        lines.append(f"{key}: {value}")
    return "\n".join(lines)


def _metrics_line(metrics: dict[str, Any]) -> str:
    """The figures of the held-out views, or of the training views where none were held out."""
    split = "test" if metrics["test"] else "train"
    figures = metrics[split]
    if figures["psnr"] is None:
        return f"no {split} view could be measured"
    return f"{split} PSNR {figures['psnr']:.2f} dB, SSIM {figures['ssim']:.4f}"
