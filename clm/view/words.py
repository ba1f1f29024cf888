"""What the panel says about a run, as HTML in the browser's own colours."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from clm.run.bars import clock
from clm.units import format_bytes
from clm.view.visit import LANES, Status

_COLOURS = ("#3d8bfd", "#fd7e14", "#20c997", "#d63384", "#6f42c1", "#ffc107")


def status_html(status: Status, paused: bool) -> str:
    """Where a run is, what memory it takes of what it may, and how busy its lanes are."""
    share = status.image / status.iterations if status.iterations else 0.0
    facts = [f"{status.gaussians:,} Gaussians"]
    if status.loss is not None:
        facts.append(f"loss {status.loss:.4f}")
    if status.psnr is not None:
        facts.append(f"PSNR {status.psnr:.2f} dB")
    if status.rate:
        facts.append(f"{status.rate:.1f} images/s")
    left = ""
    if status.over:
        left = "over"
    elif paused:
        left = "paused"
    elif status.doing:
        left = status.doing
    elif status.rate:
        left = f"{clock((status.iterations - status.image) / status.rate)} left"
    parts = [
        _line(f"image {status.image:,} of {status.iterations:,}", left),
        _bar(share, _COLOURS[0]),
        f'<div style="margin:0.3em 0 0.6em">{escape(", ".join(facts))}</div>',
    ]
    for name, pair in (("device", status.device_bytes), ("host", status.host_bytes)):
        if pair is not None:
            now, budget = pair
            parts += [
                _line(f"{name} memory", f"{format_bytes(now)} of {format_bytes(budget)}"),
                _bar(now / budget if budget else 1.0, _COLOURS[2]),
            ]
    if status.disk_bytes:
        parts.append(_line("disk", format_bytes(status.disk_bytes)))
    lanes = [(lane, status.lanes[lane]) for lane in LANES if status.lanes.get(lane, 0.0) > 0]
    for (lane, busy), colour in zip(lanes, _COLOURS, strict=False):
        parts += [_line(f"lane {lane.replace('_', ' ')}", f"{busy:.0%} busy"), _bar(busy, colour)]
    return _box("".join(parts))


def model_html(lines: Sequence[tuple[str, str]]) -> str:
    """Facts of a finished model: (name, value)."""
    return _box("".join(_line(name, value) for name, value in lines))


def _box(inner: str) -> str:
    return f'<div style="font-size:0.8em;line-height:1.5;padding:0 0.8em">{inner}</div>'


def _line(left: str, right: str) -> str:
    return (
        '<div style="display:flex;justify-content:space-between;gap:1em">'
        f'<span>{escape(left)}</span><span style="opacity:0.75;text-align:right">{escape(right)}</span></div>'
    )


def _bar(share: float, colour: str) -> str:
    width = 100 * min(max(share, 0.0), 1.0)
    return (
        '<div style="height:0.35em;border-radius:0.2em;background:rgba(128,128,128,0.25);overflow:hidden;margin-bottom:0.25em">'
        f'<div style="height:100%;width:{width:.1f}%;background:{colour}"></div></div>'
    )
