"""Options that several commands have, and those that are fields of the configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from clm.config import field_type, fields
from clm.settings import presets
from clm.values import flag_of


def _choices(metavar: str | None) -> Callable[[str], list[str]] | None:
    """Shell completion of an option whose metavar lists its values: `auto|none|host`."""
    values = [value for value in (metavar or "").split("|") if value == value.lower()]
    return (lambda incomplete: [v for v in values if v.startswith(incomplete)]) if len(values) > 1 else None


def _complete_preset(incomplete: str) -> list[tuple[str, str]]:
    return [(name, purpose) for name, purpose in presets().items() if name.startswith(incomplete)]


_PRESETS = "A named set of options. " + " ".join(f"[bold]{name}[/bold]: {text}" for name, text in presets().items())
Preset = Annotated[str | None, typer.Option(help=_PRESETS, metavar="NAME", autocompletion=_complete_preset)]
ConfigFile = Annotated[Path | None, typer.Option(help="YAML file of options.", metavar="FILE")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
DataOfRun = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="The scene: of a PLY; of a run if it is not where that found it."),
]
Downscale = Annotated[
    str | None, typer.Option(metavar="auto|1|2|4|8", help="Of a PLY: divide the photos' size.", show_default=False)
]
TestEvery = Annotated[
    int | None, typer.Option(metavar="N", help="Of a PLY: every Nth view is held out.", show_default=False)
]
Device = Annotated[str, typer.Option("--gpu-memory", help="Device budget for the arena; auto: what is free.")]
Host = Annotated[str, typer.Option("--host-memory", help="Budget of host memory; auto: 80% of what is free.")]
Scratch = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder for rows that host memory does not hold; default: the model's."),
]


def config_options(planned: bool = False) -> list[inspect.Parameter]:
    """One option per flag of Config (or of those that a plan depends on); its help is the field's help, its default is left to the
    configuration."""
    options, section = [], ""
    annotated: Any = Annotated  # of types that are only known here
    for f in fields():
        section = f.metadata["section"] or section
        want = str if f.metadata["kind"] == "count" else field_type(f.name)
        if not f.metadata["flag"] or (planned and not f.metadata["planned"]):
            continue
        metavar = f.metadata["metavar"] or {int: "N", bool: ""}.get(want, "TEXT")
        shown = f.default is not None and want is not bool
        default = rf" [dim]\[default: {f.default}][/dim]" if shown else ""
        annotation = annotated[
            want | None,
            typer.Option(
                flag_of(f.name),
                help=f.metadata["help"] + default,
                metavar=metavar,
                show_default=False,
                rich_help_panel=section,
                autocompletion=_choices(metavar),
            ),
        ]
        options.append(inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    return options


def with_flags(function: Any, options: list[inspect.Parameter]) -> Any:
    """The function, for a command whose **flags are these options."""
    fixed = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in fixed] + options
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return function
