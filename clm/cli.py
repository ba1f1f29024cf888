"""The command line: parses, calls `clm.commands`, and `clm.exits` turns what went wrong into one sentence and an exit code.

Nothing heavy is imported before a command runs: `clm --help` must be quick and needs neither torch nor pycolmap.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from clm.cli_options import (
    ConfigFile,
    DataOfRun,
    Device,
    Downscale,
    Host,
    Preset,
    Quiet,
    Scratch,
    TestEvery,
    config_options,
    with_flags,
)
from clm.exits import run

app = typer.Typer(
    name="clm",
    help="Train 3D Gaussian Splatting scenes that do not fit in GPU memory.",
    pretty_exceptions_enable=False,
)


@contextmanager
def console(quiet: bool) -> Iterator[Any]:
    """Who is told what happens while a command works (a person, on stderr), or nobody."""
    from clm.run.console import Console

    console = Console()
    try:
        yield (lambda event: None) if quiet else console
    finally:
        console.close()


def train(
    data: Annotated[
        Path | None,
        typer.Argument(
            metavar="DATA",
            help="COLMAP scene: images/ and sparse/0 (or sparse/, or flat). A resumed run finds its own.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Run directory (default: runs/NAME).")] = None,
    preset: Preset = None,
    config: ConfigFile = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's newest checkpoint.")] = False,
    viewer: Annotated[
        bool, typer.Option("--viewer", help="Show the run in the browser while it trains (needs the package viser).")
    ] = False,
    port: Annotated[
        int | None, typer.Option(metavar="N", help="Of the viewer; default: the first free one from 8080 on.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print events as JSON lines on stdout.")] = False,
    quiet: Quiet = False,
    **flags: Any,
) -> None:
    """Train a scene; out of core when it does not fit the device budget."""
    from clm.commands.train import run_training

    finished = run_training(
        data, output, flags, preset, config, resume=resume, as_json=as_json, quiet=quiet, viewer=viewer, port=port
    )
    if not finished:
        raise typer.Exit(130)


def plan(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="COLMAP scene; its photos are not read.")],
    machine: Annotated[
        str, typer.Option(metavar="FILE|NAME|this", help="Rates to predict with: a YAML file, or measured here.")
    ] = "this",
    ranks: Annotated[
        int, typer.Option(min=1, max=4096, metavar="N", help="How many ranks torchrun would start on such machines.")
    ] = 1,
    preset: Preset = None,
    config: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    **flags: Any,
) -> None:
    """Say what a run needs, where its Gaussians would live, what it moves and how fast it would be; starts nothing."""
    from clm.commands.plan import format_forecast, plan_run

    forecast = plan_run(data, flags, preset, config, machine, ranks)
    typer.echo(format_forecast(forecast, as_json))
    if forecast.refused is not None:
        raise forecast.refused


app.command()(with_flags(train, config_options()))
app.command()(with_flags(plan, config_options(planned=True)))


@app.command()
def render(
    model: Annotated[Path, typer.Argument(metavar="RUN|PLY", help="A run directory or a PLY of any tool.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR|OUT.mp4", help="Folder to write to, or a video alone.")
    ],
    cameras: Annotated[
        str,
        typer.Option(
            metavar="test|train|all|FILE.json",
            help="Which cameras: of the run; of a cameras.json, a camera path of nerfstudio, a transforms.json; or a folder "
            "with a COLMAP model.",
        ),
    ] = "test",
    views: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Of these cameras some: names or patterns, with commas between.")
    ] = None,
    path: Annotated[
        str | None,
        typer.Option(
            metavar="interp|ellipse", help="A smooth path through the cameras, or an ellipse, instead of them."
        ),
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a path; default: 120.", show_default=False)] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; default: the cameras' own.", show_default=False)] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; default: follows --width.", show_default=False)] = None,
    scale: Annotated[
        float | None, typer.Option(help="Size as a factor of the cameras' own.", show_default=False)
    ] = None,
    video: Annotated[
        bool, typer.Option("--video", help="Also write video.mp4 of the frames (needs the package av).")
    ] = False,
    fps: Annotated[
        float | None, typer.Option(help="Frames per second; default: the camera file's, or 30.", show_default=False)
    ] = None,
    depth: Annotated[
        bool,
        typer.Option("--depth", help="Also write depth: .npy in world units, 16-bit PNG (scale in depth.json), video."),
    ] = False,
    normals: Annotated[bool, typer.Option("--normals", help="Also write normals, as PNG: from depth.")] = False,
    background: Annotated[str, typer.Option(help="black, white, or r,g,b in 0..1.")] = "black",
    gpu_memory: Device = "auto",
    host_memory: Host = "auto",
    scratch: Scratch = None,
    quiet: Quiet = False,
) -> None:
    """Render views, camera paths and videos of a run or a PLY without loading the whole model on the device."""
    from clm.commands.render import Wanted, render_model
    from clm.run.viewing import Budgets

    wanted = Wanted(cameras, views, path, frames, width, height, scale, video, fps, depth, normals, background)
    with console(quiet) as emit:
        done = render_model(model, output, wanted, Budgets(gpu_memory, host_memory, scratch), emit)
    if not quiet:
        typer.echo(f"{done} in {output}")
    if done.stopped:
        raise typer.Exit(130)


@app.command("eval")
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="RUN|PLY", help="A run directory, or a model of any tool.")],
    split: Annotated[str, typer.Option(metavar="test|train", help="Which views.")] = "test",
    data: DataOfRun = None,
    downscale: Downscale = None,
    test_every: TestEvery = None,
    config: ConfigFile = None,
    gpu_memory: Device = "auto",
    host_memory: Host = "auto",
    scratch: Scratch = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the keys of metrics.json.")] = False,
    quiet: Quiet = False,
) -> None:
    """Measure PSNR and SSIM of a run from its PLY, or of any PLY on a scene."""
    from clm.commands.evaluate import evaluate_model, format_figures
    from clm.run.viewing import Budgets

    flags, budgets = {"downscale": downscale, "test_every": test_every}, Budgets(gpu_memory, host_memory, scratch)
    with console(quiet) as emit:
        figures = evaluate_model(model, split, budgets, emit, data, flags, config)
    if as_json or not quiet:
        typer.echo(format_figures(figures, split, as_json))


@app.command()
def export(
    model: Annotated[Path, typer.Argument(metavar="RUN|FILE", help="A run directory, or a model of any format below.")],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="The file to write; its ending says the format: .ply, .compressed.ply, .sog, .spz, .splat, .glb; "
            "or FOLDER/lod-meta.json (streamed SOG), FOLDER/meta.json (a SOG's files).",
        ),
    ],
    sh: Annotated[
        int | None, typer.Option(min=0, max=3, metavar="N", help="Highest SH degree to keep, 0 to 3.")
    ] = None,
    min_opacity: Annotated[
        float, typer.Option(metavar="X", help="Leave out Gaussians of less opacity (0 to 1).")
    ] = 0.0,
    crop: Annotated[
        str | None,
        typer.Option(metavar="x0,y0,z0,x1,y1,z1", help="Leave out Gaussians whose centre is outside this box."),
    ] = None,
    nan: Annotated[
        str, typer.Option(metavar="drop|refuse", help="Gaussians that are not finite: leave out, or write nothing.")
    ] = "drop",
    sh_bits: Annotated[
        str | None,
        typer.Option(metavar="8|5,4", help=".spz: bits of the first SH degree and of the others; default 6,5."),
    ] = None,
    tile: Annotated[
        float | None,
        typer.Option(metavar="SIZE", help="Several files: one for each cube of a grid with edges of so many units."),
    ] = None,
    max_per_file: Annotated[
        str | None, typer.Option(metavar="N", help="Several files: so many Gaussians in each at most, such as 2M.")
    ] = None,
    lod: Annotated[
        int | None,
        typer.Option(metavar="K", help="Levels of detail, each of a quarter of the Gaussians of the one before."),
    ] = None,
    spz_axes: Annotated[
        str | None, typer.Option(metavar="rdf|rub", help="Axes of an .spz that is read: rub if its writer turned it.")
    ] = None,
    host_memory: Host = "auto",
    scratch: Scratch = None,
    quiet: Quiet = False,
) -> None:
    """Write a model in a format that viewers open, streamed."""
    # Products of small matrices are shared out over threads by us (clm.formats.palette); read when numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from clm.commands.export import export_model
    from clm.formats.options import Filters, Options, parse_box
    from clm.formats.split import Split
    from clm.run.viewing import Budgets
    from clm.units import parse_count

    most = None if max_per_file is None else parse_count(max_per_file, "--max-per-file")
    filters = Filters(sh, min_opacity, parse_box(crop) if crop is not None else None, nan)
    options, budgets = Options(sh_bits=sh_bits), Budgets("auto", host_memory, scratch)
    with console(quiet) as emit:
        count = export_model(
            model, out, filters, options, budgets, emit, spz_axes=spz_axes, split=Split(tile, most, lod)
        )
    if not quiet:
        typer.echo(f"{count:,} Gaussians in {out}")


@app.command()
def view(
    model: Annotated[Path, typer.Argument(metavar="RUN|PLY", help="A run directory, or a model of any format.")],
    port: Annotated[
        int | None, typer.Option(metavar="N", help="Default: the first free one from 8080 on.", show_default=False)
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Who may look: this machine alone, or 0.0.0.0 for every network.")
    ] = "127.0.0.1",
    data: DataOfRun = None,
    background: Annotated[
        str | None, typer.Option(help="black, white, or r,g,b in 0..1; default: the run's.", show_default=False)
    ] = None,
    gpu_memory: Device = "auto",
    host_memory: Host = "auto",
    scratch: Scratch = None,
    quiet: Quiet = False,
) -> None:
    """Look at a model in the browser, rendered here: exact, however large it is (needs the package viser)."""
    from clm.commands.view import view_model
    from clm.run.viewing import Budgets

    budgets = Budgets(gpu_memory, host_memory, scratch)
    with console(quiet) as emit:
        view_model(model, budgets, emit, host=host, port=port, background=background, data=data)


@app.command()
def info(
    path: Annotated[Path, typer.Argument(metavar="RUN|PLY|DATA", help="A run directory, a PLY, or a COLMAP scene.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a run, a PLY or a scene contains."""
    from clm.commands.info import describe, format_description
    from clm.run.events import reporter

    with console(as_json) as emit:
        facts = describe(path, reporter(emit))
    typer.echo(format_description(facts, as_json))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, finished or not.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Default: RUN/report.html.", show_default=False),
    ] = None,
    data: DataOfRun = None,
    quiet: Quiet = False,
) -> None:
    """Write a run's report anew: one page with its curves, costs, views and settings."""
    from clm.commands.report import report_run

    with console(quiet) as emit:
        path = report_run(run, output, data, emit)
    if not quiet:
        typer.echo(str(path))


def _version(show: bool) -> None:
    if show:
        from clm import __version__

        typer.echo(f"clm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """What `clm.__main__` runs."""
    run(app)


if __name__ == "__main__":
    main()
