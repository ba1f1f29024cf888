"""`report.html`: what a run reached, what it cost and how it went, on one page without any other file.

Nothing on it is fetched from anywhere (a policy in its head forbids it); pictures are data URIs of bounded size, curves have a
few hundred points, tables end after a few hundred rows. So its size does not follow the run's.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from clm.config import to_dict
from clm.files import atomic_write
from clm.report import sections
from clm.report.facts import Facts, changed, command, number, read_facts
from clm.report.views import held_out_views
from clm.run.bars import clock
from clm.scene import Scene

NAME = "report.html"
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_report(run: Path, scene: Scene | None, path: Path | None = None) -> Path:
    """Write the report of a run, finished or not, from its files; returns where it is. scene: its photos; None: it has none any
    more. Raises ClmError where `run` is no run directory or the disk refuses the file."""
    path = path or run / NAME
    text = make_page(read_facts(run), scene)
    with atomic_write(path, needed=len(text)) as file:
        file.write(text.encode())
    return path


def make_page(facts: Facts, scene: Scene | None) -> str:
    """The page as HTML."""
    here = Path(__file__).parent
    style, script = ((here / name).read_text() for name in ("page.css", "page.js"))
    title = f"{facts.run.resolve().name}: run report"
    parts = [
        _header(facts),
        sections.headline(facts),
        sections.progress(facts),
        sections.cost(facts),
        sections.lanes(facts),
        sections.views(held_out_views(facts, scene), facts, scene is not None),
        sections.figures(facts),
        _said(facts),
        _again(facts),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + f"\n</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _header(facts: Facts) -> str:
    """What was trained, and how far it came."""
    receipt, wanted = facts.receipt, facts.config.iterations if facts.config else None
    reached = number(receipt, "iterations") or max((x for x, _ in facts.curves.series("gaussians")), default=0)
    reached = min(reached, wanted or reached)
    words = f"{reached:,.0f} images" if wanted is None or reached >= wanted else f"{reached:,.0f} of {wanted:,} images"
    if (seconds := number(receipt, "seconds")) is not None:
        words += f" in {clock(seconds)}"
    if receipt.get("device"):
        words += f" on {receipt['device']}, offload {receipt.get('offload')}"
    data = facts.data if facts.data is not None else "a scene that its configuration does not name"
    return (
        '<header><div><p class="eyebrow">clm · run report</p>'
        f"<h1>{escape(facts.run.resolve().name)}</h1><p>{escape(str(data))}</p><p>{escape(words)}</p></div>"
        '<button id="theme" type="button">Dark or light</button></header>'
    )


def _said(facts: Facts) -> str:
    """Warnings, and how often the run was begun anew."""
    lines = [f"<li>{escape(text)}</li>" for text in dict.fromkeys(facts.curves.warnings)]
    for event in facts.curves.begun[1:]:
        lines.append(f"<li>went on at image {escape(format(event.get('iteration', 0), ','))}</li>")
    return f'<section><h2>What the run said</h2><ul class="said">{"".join(lines)}</ul></section>' if lines else ""


def _again(facts: Facts) -> str:
    """Configuration, machine, and the command that trains the same model again."""
    parts = []
    if facts.config is not None:
        words, file = command(facts)
        with_file = f"<p>with <code>FILE.yaml</code>:</p><pre>{escape(file)}</pre>" if file else ""
        copy = '<button class="copy" type="button">Copy</button>'
        parts.append(
            f'<h3>The same model again</h3><div class="command"><pre>{escape(words)}</pre>{copy}</div>{with_file}'
        )
        others = changed(facts.config)
        rows = [(name, sections.plain(value), name in others) for name, value in to_dict(facts.config).items()]
        parts.append(_table("Configuration", rows, "What differs from the defaults of a run of this length is bold."))
    machine = facts.receipt.get("machine")
    if isinstance(machine, dict):
        facts_of = {k: v for k, v in machine.items() if v is not None}
        rows = [
            (name.removesuffix("_bytes").replace("_", " "), sections.plain(v, name), False)
            for name, v in facts_of.items()
        ]
        parts.append(_table("Machine", rows, "", is_open=True))
    return f"<section><h2>Configuration and machine</h2>{''.join(parts)}</section>" if parts else ""


def _table(title: str, rows: Sequence[tuple[str, str, bool]], note: str, is_open: bool = False) -> str:
    lines = "".join(
        f"<tr{' class=strong' * strong}><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value, strong in rows
    )
    note = f"<p class=note>{escape(note)}</p>" if note else ""
    return f"<details{' open' * is_open}><summary>{escape(title)}</summary>{note}<table class=pairs>{lines}</table></details>"
