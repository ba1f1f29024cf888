"""Drawings of the page, as HTML with inline SVG. Lines are drawn in a box that stretches (their width does not), words are text
beside it, so that both stay readable on a telephone. Colours are names of the style sheet: s1 to s6.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

Points = Sequence[tuple[float, float]]
Words = Callable[[float], str]
_W, _H = 1000, 400  # of the box, before it is stretched


class Line(NamedTuple):
    """A curve: its name, its colour in the style sheet, its points (x ascending); dots: also mark each."""

    name: str
    colour: str
    points: Points
    dots: bool = False
    faint: bool = False


def line_chart(
    title: str, note: str, lines: Sequence[Line], words: Words, *, zero: bool = True, last: float = 0.0
) -> str:
    """Curves over training images. words: a value as text. zero: whether the axis begins there. last: x at its end, at least."""
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs, ys = [x for line in lines for x, _ in line.points], [y for line in lines for _, y in line.points]
    right = max(*xs, last, 1.0) if len(xs) > 1 else max(xs[0], last, 1.0)
    ticks = nice_ticks(0.0 if zero else min(ys), max(ys))
    low, high = ticks[0], ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return round(_W * x / right, 1), round(_H * (high - y) / (high - low), 1)

    drawn, shown = [], []
    for tick in ticks:
        _, y = place(0, tick)
        drawn.append(f'<path class="grid" d="M0 {y}H{_W}"/>')
        shown.append(f'<span class="y" style="top:{100 * y / _H:.2f}%">{escape(words(tick))}</span>')
    for x, at in x_ticks(right):
        edge = " first" if x == 0 else " last" if at > 0.93 else ""
        shown.append(f'<span class="x{edge}" style="left:{100 * at:.2f}%">{format_count(x)}</span>')
    for line in lines:
        places = [place(x, y) for x, y in line.points]
        path = "M" + "L".join(f"{x} {y}" for x, y in places)
        drawn.append(f'<path class="line {line.colour}{" faint" * line.faint}" d="{path}"/>')
        if line.dots or len(places) == 1:
            dots = "".join(f"M{x} {y}h0" for x, y in places)
            drawn.append(f'<path class="dot {line.colour}" d="{dots}"/>')
    named = [line for line in lines if not line.faint]
    legend = "".join(f'<li class="{line.colour}">{escape(line.name)}</li>' for line in named) if len(named) > 1 else ""
    data = [[line.name, line.colour, [[x, words(y), *place(x, y)] for x, y in line.points]] for line in named]
    return (
        f'<figure class="card chart"><figcaption><h3>{escape(title)}</h3><p>{escape(note)}</p></figcaption>'
        + (f"<ul class=legend>{legend}</ul>" if legend else "")
        + f'<div class="plot" data-lines="{escape(json.dumps(data))}" data-right="{right:g}">'
        f'<svg viewBox="0 0 {_W} {_H}" preserveAspectRatio="none" role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'
        f"{''.join(shown)}</div></figure>"
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """3 to 6 round numbers around low..high."""
    if not high > low:
        low, high = (low - abs(low) / 10 - 0.5, high + abs(high) / 10 + 0.5) if high != 0 else (0.0, 1.0)
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next((k * step for k in (1, 2, 5, 10) if (high - low) / (k * step) <= 4.5), 10 * step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.9g}") for k in range(first, last + 1)]


def x_ticks(right: float) -> list[tuple[float, float]]:
    """(images, share of the axis) of 3 to 5 labels; far enough from each other for a narrow screen."""
    step = nice_ticks(0, right)[1]
    step = step if right / step <= 4 else 2 * step
    return [(k * step, k * step / right) for k in range(int(right / step + 1e-9) + 1)]


def smoothed(points: Points, share: float = 0.03) -> list[tuple[float, float]]:
    """An exponential mean over about `share` of the points, to both sides."""
    keep = math.exp(-1 / max(1e-3, share * len(points)))
    sums: list[list[tuple[float, float]]] = []
    for values in ([y for _, y in points], [y for _, y in reversed(points)]):
        weight = total = 0.0
        sums.append([])
        for y in values:
            weight, total = keep * weight + 1, keep * total + y
            sums[-1].append((weight, total))
    pairs = zip(points, sums[0], reversed(sums[1]), strict=True)
    return [(x, (t + u - y) / (v + w - 1)) for (x, y), (v, t), (w, u) in pairs]


class Bar(NamedTuple):
    """One horizontal bar: its name, its colour, its length, and its value in words."""

    name: str
    colour: str
    value: float
    words: str


def bars(rows: Sequence[Bar], mark: tuple[float, str] | None = None) -> str:
    """Bars on one scale; mark: a value that is drawn across them, with its name."""
    top = max([*(bar.value for bar in rows), mark[0] if mark else 0.0, 1e-300])
    lines = []
    for bar in rows:
        line = f'<i class="mark" style="left:{100 * mark[0] / top:.2f}%"></i>' if mark else ""
        lines.append(
            f'<div class="bar"><span>{escape(bar.name)}</span><b>{escape(bar.words)}</b>'
            f'<div class="track"><div class="fill {bar.colour}" style="width:{100 * bar.value / top:.2f}%"></div>{line}</div></div>'
        )
    note = f'<p class="note"><i class="mark"></i> {escape(mark[1])}</p>' if mark else ""
    return f'<div class="bars">{"".join(lines)}</div>{note}'


def stack(parts: Sequence[Bar]) -> str:
    """One bar of several parts, with a legend."""
    total = sum(part.value for part in parts) or 1.0
    pieces = "".join(
        f'<div class="fill {p.colour}" style="width:{100 * p.value / total:.2f}%" title="{escape(p.name)}"></div>'
        for p in parts
        if p.value > 0
    )
    legend = "".join(
        f'<li class="{p.colour}">{escape(p.name)} <b>{escape(p.words)}</b> {p.value / total:.0%}</li>'
        for p in parts
        if p.value > 0
    )
    return f'<div class="track stack">{pieces}</div><ul class="legend">{legend}</ul>'


def timeline(spans: Sequence[Sequence[Any]], lanes: Sequence[tuple[str, str, str]], seconds: float) -> str:
    """What lanes did. spans: [lane, name, turn, start, end] (seconds); lanes: (key, name, colour) in their order."""
    end = max([seconds, *(float(span[4]) for span in spans)]) or 1.0
    rows = []
    for key, name, colour in lanes:
        mine = [span for span in spans if span[0] == key]
        if not mine:
            continue
        drawn = "".join(
            f'<rect x="{_W * float(s) / end:.2f}" width="{_width(_W * (float(e) - float(s)) / end):.2f}" y="0" height="20">'
            f"<title>{escape(str(what))}, turn {escape(str(turn))}: {format_seconds(float(e) - float(s))}</title></rect>"
            for _, what, turn, s, e in mine
        )
        box = f'viewBox="0 0 {_W} 20" preserveAspectRatio="none" role="img" aria-label="{escape(name)}"'
        rows.append(f'<div class="lane"><span>{escape(name)}</span><svg {box} class="{colour}">{drawn}</svg></div>')
    ticks = ""
    for t, at in x_ticks(end):
        edge = "last" if at > 0.93 else "first" if t == 0 else ""
        ticks += f'<span class="{edge}" style="left:{100 * at:.2f}%">{format_seconds(t)}</span>'
    return f'<div class="timeline">{"".join(rows)}<div class="lane"><span></span><div class="times">{ticks}</div></div></div>'


def _width(width: float) -> float:
    """Of a span: a gap is left behind wide ones, narrow ones are seen."""
    return width - 1 if width > 5 else max(1.2, width)


def format_count(value: float) -> str:
    """`950`, `12k`, `1.5M`."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def format_seconds(value: float) -> str:
    """`0`, `250 µs`, `12 ms`, `3.4 s`, `2:05 min`."""
    if value >= 100:
        minutes, rest = divmod(round(value), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{rest:02d} h" if hours else f"{minutes}:{rest:02d} min"
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return "0"
