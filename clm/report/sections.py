"""The sections of the page, each a string of HTML; '' where the run has nothing to say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from clm.report.charts import (
    Bar,
    Line,
    bars,
    format_count,
    format_seconds,
    line_chart,
    smoothed,
    stack,
    timeline,
)
from clm.report.facts import Facts, dig, number
from clm.report.views import LARGEST_ERROR, ViewPictures
from clm.units import format_bytes

_MOST_ROWS = 300  # of the table of views
_UNITS = {"psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}
_LANES = (
    ("plan", "cull, order, plan", "s6"),
    ("disk", "disk", "s5"),
    ("load", "load", "s1"),
    ("compute", "compute", "s3"),
    ("network", "network", "s5"),
    ("send_back", "send back", "s2"),
    ("update", "update", "s4"),
)


def plain(value: Any, name: str = "") -> str:
    """A value of a file in words."""
    if name.endswith("bytes") and isinstance(value, int):
        return format_bytes(value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def figure_name(key: str) -> str:
    """`psnr_colour_corrected` -> `PSNR, colour corrected`."""
    first, _, rest = key.partition("_")
    return _UNITS.get(first, first) + (f", {rest.replace('_', ' ')}" if rest else "")


def figure_words(key: str, value: float) -> str:
    return f"{value:.2f} dB" if key.startswith("psnr") else f"{value:.4f}"


def _figures_of(split: Any) -> dict[str, float]:
    """The numbers of a split or of a view, by name."""
    keys = split if isinstance(split, Mapping) else {}
    return {str(key): value for key in keys if (value := number(split, key)) is not None}


# ---- what it reached ----


def headline(facts: Facts) -> str:
    """The few numbers that a run is judged by."""
    tiles: list[tuple[str, str, str]] = []
    split = "test" if dig(facts.metrics, "test") else "train"
    views = len(dig(facts.metrics, split, "per_view") or ())
    where = f"mean of {views} {'held-out' if split == 'test' else 'training'} views"
    for key in ("psnr", "ssim", "lpips"):
        if (value := number(facts.metrics, split, key)) is not None:
            median = number(facts.metrics, split, "median", key)
            tiles.append((_UNITS[key], figure_words(key, value), where + (f", median {median:.4g}" if median else "")))
    if (rows := number(facts.receipt, "num_gaussians") or number(facts.metrics, "num_gaussians")) is not None:
        tiles.append(("Gaussians", format_count(rows), f"{rows:,.0f}"))
    if (rate := number(facts.receipt, "images_per_second")) is not None:
        tiles.append(("Images per second", f"{rate:.3g}", "of batches alone: no evaluation, saving, growth"))
    peak, in_core = number(facts.receipt, "peak", "device_bytes"), number(facts.receipt, "in_core_bytes")
    if peak and in_core:
        tiles.append(("Device memory", format_bytes(int(peak)), f"all on the device: {format_bytes(int(in_core))}"))
    lines = "".join(
        f'<div class="tile"><p>{escape(name)}</p><b>{escape(value)}</b><p>{escape(note)}</p></div>'
        for name, value, note in tiles
    )
    return f'<section class="tiles">{lines}</section>' if lines else ""


def progress(facts: Facts) -> str:
    """Curves over training images."""
    curves, last = facts.curves, float(facts.config.iterations if facts.config else 0)
    last = last if facts.receipt else 0.0
    loss, rate = curves.series("loss"), curves.series("rate")
    psnr = []
    for name, key, colour in (("held out", "test", "s1"), ("training views", "train", "s2")):
        points = [(float(at), v) for at, m in facts.evaluations if (v := number(m, key, "psnr")) is not None]
        psnr.append(Line(name, colour, points, dots=True))
    if not any(line.points for line in psnr):
        psnr = [Line("PSNR", "s1", [(float(at), v) for at, v in curves.evaluations], dots=True)]
    once = max((len(line.points) for line in psnr), default=0) == 1
    shown = [
        line_chart(
            "Loss", "L1 and SSIM, mean of the batches",
            [Line("loss", "s1", loss, faint=True), Line("loss", "s1", smoothed(loss))], lambda v: f"{v:.3g}", last=last,
        ),
        line_chart(
            "PSNR", "measured once: --eval-every N draws a curve" if once else "higher is better", psnr,
            lambda v: f"{v:.4g} dB", zero=False, last=last,
        ),
        line_chart(
            "Gaussians", growth_in_words(facts), [Line("Gaussians", "s3", curves.series("gaussians"))], format_count, last=last
        ),
        line_chart(
            "Speed", "images per second of batch time",
            [Line("images/s", "s4", rate, faint=True), Line("images/s", "s4", smoothed(rate))], lambda v: f"{v:.3g}", last=last,
        ),
    ]  # fmt: skip
    charts = "".join(shown)
    return f'<section><h2>How it went</h2><div class="grid2">{charts}</div></section>' if charts else ""


def growth_in_words(facts: Facts) -> str:
    grown = {key: value for key, value in facts.curves.grown.items() if value}
    return (
        ", ".join(f"{format_count(value)} {key.replace('_', ' ')}" for key, value in grown.items())
        or "over training images"
    )


# ---- what it cost ----


def cost(facts: Facts) -> str:
    """Memory against its budgets, traffic against other policies, and where the time went."""
    cards = [memory(facts.receipt), traffic(facts.receipt), seconds(facts.receipt)]
    inner = "".join(card for card in cards if card)
    return f'<section><h2>What it cost</h2><div class="flow">{inner}</div></section>' if inner else ""


def _card(title: str, note: str, inner: str) -> str:
    return f'<div class="card"><h3>{escape(title)}</h3><p class="note">{escape(note)}</p>{inner}</div>'


def memory(receipt: dict[str, Any]) -> str:
    """Peaks and budgets, in bytes."""
    if not number(receipt, "peak", "device_bytes"):
        return ""
    groups = []
    for name, rows in (
        ("Device", (("device_bytes", "peak", "s1"), ("in_core", "all on the device", "s6"))),
        ("Host", (("host_bytes", "rows, staging, photos", "s1"), ("rss_bytes", "whole process", "s2"))),
    ):
        values = {key: number(receipt, "peak", key) for key, _, _ in rows} | {
            "in_core": number(receipt, "in_core_bytes")
        }
        drawn = [Bar(what, colour, v, format_bytes(int(v))) for key, what, colour in rows if (v := values[key])]
        budget = number(receipt, "budget", f"{name.lower()}_bytes")
        mark = (budget, f"budget {format_bytes(int(budget))}") if budget else None
        if mark and drawn and mark[0] > 20 * max(bar.value for bar in drawn):  # off the scale: said only
            groups.append(f"<h4>{name}</h4>{bars(drawn)}<p class=note>{escape(mark[1])}: far more than was used</p>")
        else:
            groups.append(f"<h4>{name}</h4>{bars(drawn, mark)}")
    if disk := number(receipt, "peak", "disk_bytes"):
        groups.append(f"<h4>Disk</h4>{bars([Bar('scratch file', 's5', disk, format_bytes(int(disk)))])}")
    return _card("Memory", "the largest amounts that were held", "".join(groups))


def traffic(receipt: dict[str, Any]) -> str:
    """Rows that crossed to the device, against what other policies would have moved."""
    moved = dig(receipt, "traffic")
    none = number(moved, "rows_loaded_no_reuse")
    if not none:
        return ""
    ours, bound = number(moved, "rows_loaded") or 0.0, number(moved, "rows_lower_bound") or 0.0
    rows = [
        ("every view loads its rows", "s6", none),
        ("what consecutive views share stays (CLM)", "s2", number(moved, "rows_loaded_consecutive_reuse") or 0.0),
        ("this run: next use decides", "s1", ours),
        ("lower bound: each row once a batch", "s3", bound),
    ]
    drawn = [Bar(name, colour, v, f"{format_count(v)} rows, {v / none:.1%}") for name, colour, v in rows]
    loaded, back = number(moved, "bytes_loaded") or 0.0, number(moved, "bytes_sent_back") or 0.0
    note = f"{format_bytes(int(loaded))} loaded, {format_bytes(int(back))} of gradients sent back"
    if not ours:
        note = "everything was on the device: nothing crossed"
        drawn = [bar for bar in drawn if bar.value]
    elif dig(receipt, "offload") == "auto" or bound < 0.98 * ours:
        note += "; rows that stay on the device are not counted as loaded"
    disk = dig(receipt, "disk")
    if isinstance(disk, dict):
        read, written = (format_bytes(int(number(disk, key) or 0)) for key in ("bytes_read", "bytes_written"))
        note += f"; disk: {read} read, {written} written, {number(disk, 'hit_rate') or 0:.0%} of the pages in memory"
    return _card("Traffic to the device", note, bars(drawn))


def seconds(receipt: dict[str, Any]) -> str:
    """Where the time went, and what the lanes did beside it."""
    lanes, total = dig(receipt, "lanes"), number(receipt, "seconds")
    if not total or not isinstance(lanes, dict):
        return ""
    compute, exposed = number(lanes, "compute") or 0.0, number(lanes, "exposed") or 0.0
    rebuilds = number(receipt, "rebuilds", "seconds") or 0.0
    parts = [
        ("computing", "s3", compute),
        ("waiting for lanes", "s2", exposed),
        ("growing", "s4", rebuilds),
        ("evaluating, saving, planning", "s6", max(0.0, total - compute - exposed - rebuilds)),
    ]
    whole = stack([Bar(name, colour, value, format_seconds(value)) for name, colour, value in parts])
    names = {key: (name, colour) for key, name, colour in _LANES}
    work = [
        Bar(names[key][0], names[key][1], v, format_seconds(v))
        for key in ("load", "send_back", "update", "plan")
        if (v := number(lanes, key))
    ]
    hidden = number(lanes, "hidden_fraction")
    title = f"<h4>Lanes beside the computation{f': {hidden:.0%} hidden' if hidden is not None else ''}</h4>"
    return _card("Time", f"{format_seconds(total)} in all", whole + (title + bars(work) if work else ""))


def lanes(facts: Facts) -> str:
    """The timeline of a batch near the end."""
    sampled = facts.curves.lanes
    try:
        spans = [[str(s[0]), str(s[1]), int(s[2]), float(s[3]), float(s[4])] for s in (sampled or {})["spans"]]
        taken, image = float((sampled or {})["seconds"]), int((sampled or {})["iteration"])
    except (KeyError, TypeError, ValueError, IndexError):
        return ""
    note = f"what each lane did in the batch that ended at image {image:,}, {format_seconds(taken)}; point at a span for its name"
    drawn = timeline(spans, _LANES, taken)
    return f'<section><h2>One batch</h2><div class="card"><p class="note">{escape(note)}</p>{drawn}</div></section>'


# ---- views ----


def views(pictures: Sequence[ViewPictures], facts: Facts, has_scene: bool) -> str:
    """Held-out views: render against photo, and where they differ."""
    if not pictures:
        return ""
    drawn = "".join(_view(k, picture) for k, picture in enumerate(pictures))
    lost = "" if has_scene else " The scene is not where the run found it, so there are no photos to compare with."
    ranked = "the worst first, then the best" if pictures[0].rank else "the worst first"
    scale = f"black: no difference, lightest: {LARGEST_ERROR:.0%} of full scale or more"
    note = f"Held-out views, {ranked}. Error maps: {scale}.{lost}" if has_scene else f"Held-out views, {ranked}.{lost}"
    return (
        f'<section><h2>Held-out views</h2><p class="note">{escape(note)}</p><div class="views">{drawn}</div></section>'
    )


def _view(k: int, view: ViewPictures) -> str:
    shape = f'style="--shape:{view.width}/{view.height};--ratio:{view.width / view.height:.4f}"'
    words = [f"{figure_name(key)} {figure_words(key, value)}" for key, value in _figures_of(view.figures).items()]
    rank = f'<span class="rank {view.rank}">{view.rank}</span> ' if view.rank else ""
    head = f"<figcaption><h3>{rank}{escape(view.name)}</h3><p>{escape(' · '.join(words))}</p></figcaption>"
    if view.photo is None or view.error is None:
        inner = f'<div class="picture" {shape}><img alt="render of {escape(view.name)}" src="{view.render}"></div>'
        return f'<figure class="card view">{head}<div class="pair">{inner}</div></figure>'
    name = escape(view.name)
    compare = (
        f'<div class="picture compare" {shape}><img alt="render of {name}" src="{view.render}">'
        f'<img class="over" alt="photo of {name}" src="{view.photo}"><i class="cut"></i>'
        f'<span class="tag left">photo</span><span class="tag right">render</span>'
        f'<input type="range" min="0" max="100" value="50" step="0.1" aria-label="how much of the photo of {name} is shown" '
        f'id="slider{k}"></div>'
    )
    error = f'<div class="picture" {shape}><img alt="error of {name}" src="{view.error}"><span class="tag left">error</span></div>'
    return f'<figure class="card view">{head}<div class="pair">{compare}{error}</div></figure>'


def figures(facts: Facts) -> str:
    """All figures of both splits, and a table of the views."""
    parts = [_split_table(facts), *(_view_table(facts, split) for split in ("test", "train"))]
    inner = "".join(part for part in parts if part)
    return f"<section><h2>Figures</h2>{inner}</section>" if inner else ""


def _split_table(facts: Facts) -> str:
    columns = []
    for split, name in (("test", "held out"), ("train", "training views")):
        of = dig(facts.metrics, split)
        for what, values in (("mean", _figures_of(of)), ("median", _figures_of(dig(of, "median")))):
            if values:
                columns.append((f"{name}, {what}", values))
    keys = list(dict.fromkeys(key for _, values in columns for key in values))
    if not keys:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name, _ in columns)
    rows = "".join(
        f"<tr><th>{escape(figure_name(key))}</th>"
        + "".join(f"<td>{escape(figure_words(key, v[key])) if key in v else ''}</td>" for _, v in columns)
        + "</tr>"
        for key in keys
    )
    return f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _view_table(facts: Facts, split: str) -> str:
    per_view = dig(facts.metrics, split, "per_view")
    if not isinstance(per_view, dict) or not per_view:
        return ""
    listed = sorted(
        ((str(name), _figures_of(view)) for name, view in per_view.items()), key=lambda item: item[1].get("psnr", 0.0)
    )
    keys = list(dict.fromkeys(key for _, values in listed for key in values))
    left_out = len(listed) - _MOST_ROWS
    head = "".join(f"<th>{escape(figure_name(key))}</th>" for key in keys)
    rows = "".join(
        f"<tr><th>{escape(name)}</th>"
        + "".join(f"<td>{escape(figure_words(key, v[key])) if key in v else ''}</td>" for key in keys)
        + "</tr>"
        for name, v in listed[:_MOST_ROWS]
    )
    note = f"<p class=note>and {left_out:,} better ones: metrics.json has all</p>" if left_out > 0 else ""
    title = f"Each of the {len(listed):,} {'held-out' if split == 'test' else 'measured training'} views"
    table = f"<table><thead><tr><th>view</th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<details><summary>{escape(title)}</summary><div class="scroll">{table}</div>{note}</details>'
