"""Plans in words: the short form that a run begins with, and a timeline drawn in text. Pure functions."""

from __future__ import annotations

import numpy as np

from clm.forecast.simulate import WORKERS, Timeline, bus_bytes
from clm.forecast.turns import count_turn
from clm.plan.placement import Placement
from clm.plan.residency import Plan
from clm.units import format_bytes

_IDLE = "."


def short_plan(
    placement: Placement,
    first: Plan,
    resident: np.ndarray | None,
    columns: int,
    device_budget: int,
    host_budget: int,
    colour_bus: str = "f32",
) -> str:
    """Two lines before step 0: needs against budgets with placement and reason, and what the first batch moves.

    first: plan of the first batch; resident [rows] bool: rows that live on the device (None: no row does); columns: active
    colour columns of that batch; budgets in bytes; colour_bus: how colours are loaded.
    """
    device = f"{format_bytes(placement.device_bytes)} of {format_bytes(device_budget)} device memory"
    host = f"{format_bytes(placement.host_bytes)} of {format_bytes(host_budget)} host memory"
    needs = f"needs {device}, {host}; {placement.reason}"
    counts, images = [count_turn(turn, 0, resident, 1.0) for turn in first.turns], len(first.views)
    rows = sum(part.rows for turn in counts for part in turn.loads)
    loaded, sent = bus_bytes(counts, columns, colour_bus)
    if not loaded + sent:
        return f"{needs}\nfirst batch: nothing crosses the bus"
    moved = f"{format_bytes(loaded // images)} in, {format_bytes(sent // images)} back"
    share = rows / max(1, first.traffic.consecutive_reuse)
    return (
        f"{needs}\nfirst batch: {rows / images:,.0f} rows loaded per image ({moved}), {share:.0%} of what keeping only "
        "the last view's would load"
    )


def draw_timeline(timeline: Timeline, batch: int, width: int = 72) -> list[str]:
    """One line per thread or stream that works in `batch`: each column is a slice of the batch's time, a digit the view
    (modulo 10) whose work took most of that slice, `*` work of the whole batch."""
    spans = [span for span in timeline.spans if span.batch == batch]
    if not spans:
        return []
    begin, end = min(span.start for span in spans), max(span.end for span in spans)
    lines = []
    for worker in WORKERS:
        cells = [(0.0, _IDLE)] * width
        for span in (span for span in spans if span.worker == worker):
            first, last = ((t - begin) / (end - begin) * width for t in (span.start, span.end))
            for cell in range(int(first), min(width, int(last) + 1)):
                covered = min(last, cell + 1) - max(first, cell)
                if covered > max(cells[cell][0], 0.05):
                    cells[cell] = covered, "*" if span.turn < 0 else str(span.turn % 10)
        if any(mark != _IDLE for _, mark in cells):
            lines.append(f"{worker:9} |{''.join(mark for _, mark in cells)}|")
    return lines
