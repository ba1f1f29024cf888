"""Are exported files shown right by viewers that are not ours? Exports a model in all formats, opens each file in headless Chromium
in Spark, PlayCanvas, SuperSplat and three.js, and compares what the page shows with our own render of the same camera, and with the
same viewer's picture of the PLY.

    python scripts/show_in_viewers.py [RUN] --packages DIR -o OUT [--views 3] [--least 29] [--scale 1] [--viewers spark,playcanvas]

RUN: a trained run; left out, the bundled scene is trained first. DIR gets the viewers' npm packages (200 MB, outside of the
repository); node, npm and Chromium must be installed. OUT gets the files, all pictures, `report.md` and `sheet.jpg`. Prints the
table; exit code 1 where a file is not opened, or comes out less near than is required.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from bench_common import ROOT, header
from viewer_parts.browser import PACKAGES, chromium, drive, install, served
from viewer_parts.cases import (
    AS_TRAINED,
    EXPORT_OPTIONS,
    FILES,
    LEVEL,
    OFF_CENTRE,
    VIEWERS,
    Case,
    Shown,
    cases,
    mean,
    table,
)
from viewer_parts.pictures import psnr, read, write_sheet

from clm.errors import ClmError
from clm.files import atomic_write, write_json
from clm.formats.registry import open_rows
from clm.pictures import file_stems

_FAR = 1e6  # of a viewer's far plane to its near plane: more than float32 of GL bears would help nobody
_THUMBNAIL, _COLUMNS = 150, 8  # px and pictures in a row of the sheet
_OFF = 1 / 6  # of the width, and of the height, by which the principal point is moved

Views = dict[str, list[dict[str, Any]]]  # entries of cameras.json by the kind of cameras


def clm(*words: str | Path) -> None:
    """A command of ours, as users call it; ClmError where it fails."""
    done = subprocess.run([sys.executable, "-m", "clm", *map(str, words)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1].removeprefix("error: ")
        raise ClmError(f"clm {words[0]} failed: {last}")


def views_of(run: Path, count: int, scale: float) -> list[dict[str, Any]]:
    """Entries of cameras.json of held-out views, evenly chosen among those of the first one's size, each with a name for a file."""
    try:
        entries = json.loads((run / "cameras.json").read_text())
        held_out = set(json.loads((run / "split.json").read_text())["test"])
    except (OSError, ValueError, KeyError) as error:
        raise ClmError(f"{run} is no run: {error}.", "Pass the folder given to `clm train -o`.") from None
    found = [entry for entry in entries if entry["img_name"] in held_out] or entries
    found = [entry for entry in found if (entry["width"], entry["height"]) == (found[0]["width"], found[0]["height"])]
    chosen = [found[k] for k in np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).astype(int))]
    for entry, stem in zip(chosen, file_stems([entry["img_name"] for entry in chosen]), strict=True):
        width, height = (max(1, round(scale * entry[side])) for side in ("width", "height"))
        for key, factor in zip(
            ("fx", "cx", "fy", "cy"), [width / entry["width"]] * 2 + [height / entry["height"]] * 2, strict=True
        ):
            entry[key] *= factor
        entry |= {"img_name": stem, "width": width, "height": height}
    return chosen


def level(entry: dict[str, Any]) -> dict[str, Any]:
    """The view as a viewer sees it that knows neither roll nor principal points: the file's y points down."""
    ahead = np.array(entry["rotation"])[:, 2]
    right = np.cross([0.0, 1.0, 0.0], ahead)
    right /= np.linalg.norm(right)
    focal = entry["fx"] if entry["width"] >= entry["height"] else entry["fy"]
    rotation = np.column_stack([right, np.cross(ahead, right), ahead])
    middle = {"cx": entry["width"] / 2, "cy": entry["height"] / 2}
    return entry | middle | {"rotation": rotation.tolist(), "fx": focal, "fy": focal}


def off_centre(entry: dict[str, Any]) -> dict[str, Any]:
    """The view through another part of the lens."""
    return entry | {"cx": entry["cx"] + _OFF * entry["width"], "cy": entry["cy"] - _OFF * entry["height"]}


def sight(case: Case, views: Views, antialiased: bool, out: Path) -> dict[str, Any]:
    """What `drive.mjs` is told of a case."""
    folder = out / "shown" / case.id
    folder.mkdir(parents=True, exist_ok=True)
    looked = [
        entry | {"far": _FAR * entry["near"], "picture": str(folder / f"{entry['img_name']}.png")}
        for entry in views[case.cameras]
    ]
    return {
        "id": case.id,
        "viewer": case.viewer,
        "url": f"/files/{case.file}",
        "options": case.options(antialiased),
        "views": looked,
    }


def judged(case: Case, views: Views, out: Path, said: dict[str, Any]) -> Shown:
    """Pictures of a case against ours and against the PLY's."""
    if said["error"] is not None:
        return Shown(
            case, [], [], said["complaints"], " | ".join([f"not shown: {said['error']}", *said["complaints"][:2]])
        )
    names = [f"{entry['img_name']}.png" for entry in views[case.cameras]]
    theirs = [read(out / "shown" / case.id / name) for name in names]
    ours = [read(out / "ours" / case.cameras.replace(" ", "_") / name) for name in names]
    ply = [
        path
        for name in names
        if (path := out / "shown" / case.of_ply.id / name).is_file() and case.like_ply is not None
    ]
    like_ply = [psnr(a, read(path)) for a, path in zip(theirs, ply, strict=True)] if ply else []
    return Shown(case, [psnr(a, b) for a, b in zip(theirs, ours, strict=True)], like_ply, said["complaints"])


def show(
    run: Path, out: Path, modules: Path, browser: str, options: argparse.Namespace
) -> tuple[list[Shown], dict[str, int]]:
    """Export, render, look, compare."""
    files, wanted = out / "files", cases(options.viewers.split(","), options.least)
    for file in FILES:
        if any(case.file == file for case in wanted):
            clm("export", run, files / file, "-q", *EXPORT_OPTIONS.get(file, []))
    sizes = {file: _size(files / file) for file in FILES if (files / file).exists()}
    antialiased = open_rows(files / FILES[0]).antialiased
    trained = views_of(run, options.views, options.scale)
    views = {AS_TRAINED: trained, LEVEL: [level(v) for v in trained], OFF_CENTRE: [off_centre(v) for v in trained]}
    for kind in {case.cameras for case in wanted}:
        name = kind.replace(" ", "_")
        write_json(out / f"{name}.json", views[kind])
        clm("render", files / FILES[0], "--cameras", out / f"{name}.json", "-o", out / "ours" / name, "-q")
    shown: list[Shown] = []
    with served(modules, files) as base:
        job = {
            "base": base,
            "packages": str(modules.parent),
            "chromium": browser,
            "settle": options.settle,
            "angle": options.angle,
        }
        job["sights"] = [sight(case, views, antialiased, out) for case in wanted]
        for case, said in zip(wanted, drive(job), strict=True):
            shown.append(judged(case, views, out, said))
            print(
                f"{case.id:60} {mean(shown[-1].psnr):6.2f} dB  {said['seconds']:6.1f} s  {'; '.join(shown[-1].missed)}",
                flush=True,
            )
            for text in said["complaints"]:
                print(f"    the page said: {text}", flush=True)
    write_sheet(out / "sheet.jpg", _sheet(shown, views, out), _THUMBNAIL)
    return shown, sizes


def _size(path: Path) -> int:
    """Bytes of a file, or of the folder that an index stands in."""
    return sum(f.stat().st_size for f in (path.parent.rglob("*") if path.suffix == ".json" else [path]) if f.is_file())


def _sheet(shown: list[Shown], views: Views, out: Path) -> list[list[tuple[str, Path | None]]]:
    """Rows of the sheet, by the kind of cameras; the first picture is ours. Of each case the first view."""
    rows = []
    for kind in dict.fromkeys(each.case.cameras for each in shown):
        name = f"{views[kind][0]['img_name']}.png"
        cells: list[tuple[str, Path | None]] = [(f"clm render\n{kind}", out / "ours" / kind.replace(" ", "_") / name)]
        for each in shown:
            if each.case.cameras == kind:
                viewer = each.case.viewer + ", our footprint" * each.case.matched
                file = each.case.file.removeprefix("model") + ("" if each.case.level is None else f" {each.case.level}")
                reached = f"{each.psnr[0]:.1f} dB" if each.psnr else "not shown"
                cells.append((f"{viewer}\n{file}\n{reached}", out / "shown" / each.case.id / name))
        rows += [cells[first : first + _COLUMNS] for first in range(0, len(cells), _COLUMNS)]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN")
    parser.add_argument(
        "--packages", type=Path, required=True, metavar="DIR", help="folder for the viewers' npm packages"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    parser.add_argument("--views", type=int, default=3, help="held-out views that are looked at (3)")
    parser.add_argument(
        "--least", type=float, default=29.0, help="dB for PlayCanvas and SuperSplat against our render (29)"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="size of the pictures, as a factor of the cameras' own"
    )
    parser.add_argument("--viewers", default=",".join(VIEWERS), help=f"some of {','.join(VIEWERS)}")
    parser.add_argument("--chromium", help="the browser's program, where it is not found")
    parser.add_argument(
        "--angle", default="swiftshader", help="ANGLE's backend; gl-egl: the system's OpenGL, in software"
    )
    parser.add_argument("--settle", type=float, default=0.25, help="seconds between pictures that have to be equal")
    options = parser.parse_args()
    try:
        if unknown := set(options.viewers.split(",")) - set(VIEWERS):
            raise ClmError(f"No viewer is called {', '.join(sorted(unknown))}.", f"Known: {', '.join(VIEWERS)}.")
        browser, modules = chromium(options.chromium), install(options.packages)
        out = options.output.resolve()
        run = options.run or out / "run"
        if options.run is None and not (run / "metrics.json").exists():
            clm("train", ROOT / "data" / "demo", "-o", run, "--iterations", "3000", "-q")
        shown, sizes = show(run.resolve(), out, modules, browser, options)
    except ClmError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    said = subprocess.run([browser, "--version"], capture_output=True, text=True).stdout.strip()
    versions = ", ".join([said, *(f"{name} {version}" for name, version in PACKAGES.items())])
    report = f"{header()}\n{versions}\n\n{table(shown, sizes)}\n"
    with atomic_write(out / "report.md", "w") as file:
        file.write(report)
    print(report)
    sys.exit(int(any(each.missed for each in shown)))


if __name__ == "__main__":
    main()
