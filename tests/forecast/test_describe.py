"""The short form says what a run needs and moves; the drawn timeline shows who works when."""

from __future__ import annotations

import numpy as np

from clm.forecast.describe import draw_timeline, short_plan
from clm.forecast.machine import load_machine
from clm.forecast.simulate import simulate
from clm.plan.placement import choose_placement
from clm.plan.residency import make_plan

GIB = 2**30


def test_the_short_form_names_needs_budgets_reason_rows_and_bytes() -> None:
    placement = choose_placement(18_000_000, 5_000_000, 2_000_000, 8 * GIB, 64 * GIB)
    rows = np.arange(200_000, dtype=np.int32)
    plan = make_plan([0, 1, 2], [rows, rows + 100_000, rows], 400_000)  # consecutive reuse loads 400,000, ours 300,000
    needs, moves = short_plan(placement, plan, None, 48, 8 * GIB, 64 * GIB).splitlines()
    assert needs.startswith("needs 8.0 GiB of 8.0 GiB device memory, 7.1 GiB of 64.0 GiB host memory; offload: host, ")
    assert placement.reason in needs
    assert moves == (
        "first batch: 100,000 rows loaded per image (22.9 MiB in, 24.4 MiB back), "
        "75% of what keeping only the last view's would load"
    )
    fewer = short_plan(placement, plan, None, 3, 8 * GIB, 64 * GIB).splitlines()[1]
    assert "(5.7 MiB in, 7.2 MiB back)" in fewer, "three colour columns instead of 48"
    half = np.arange(300_000) < 150_000
    assert "50,000 rows loaded per image" in short_plan(placement, plan, half, 48, 8 * GIB, 64 * GIB)


def test_the_short_form_says_when_nothing_moves() -> None:
    placement = choose_placement(1000, 300, 100, GIB, GIB)
    plan = make_plan([0], [np.arange(100, dtype=np.int32)], 300)
    text = short_plan(placement, plan, np.ones(1000, bool), 48, GIB, GIB)
    assert text.endswith("first batch: nothing crosses the bus") and placement.reason in text


def test_the_timeline_shows_each_view_in_its_lane() -> None:
    rows = np.arange(500_000, dtype=np.int32)
    plan = make_plan([0, 1], [rows, rows + 500_000], 2_000_000)
    lines = draw_timeline(simulate([plan, plan], load_machine("laptop-8gb"), [10**6] * 2), 1, width=60)
    lanes = {line[:9].strip(): line[11:-1] for line in lines}
    assert list(lanes) == ["load", "copy in", "compute", "copy out", "update", "plan"]
    assert all(len(cells) == 60 for cells in lanes.values())
    compute = lanes["compute"]
    assert compute.index("0") < compute.index("1") and compute.count("0") > 5
    assert lanes["load"].index("0") < compute.index("0"), "rows are loaded before they are rendered"
    assert lanes["update"].rindex("1") > compute.rindex("1"), "and updated afterwards"
    assert draw_timeline(simulate([plan], load_machine("laptop-8gb"), [10**6] * 2), 5) == []
