"""The short form says what a run needs and moves; the drawn timeline shows who works when."""

from __future__ import annotations

import numpy as np

from clm.plan.budget import choose_placement
from clm.plan.describe import draw_timeline, short_plan
from clm.plan.machine import load_machine
from clm.plan.residency import Traffic, make_plan
from clm.plan.simulate import simulate

GIB = 2**30


def test_the_short_form_names_needs_budgets_reason_rows_and_bytes() -> None:
    placement = choose_placement(18_000_000, 5_000_000, 2_000_000, 8 * GIB, 64 * GIB)
    traffic = Traffic(4_000_000, 0, 4_000_000, 8_000_000, 5_000_000, 4_000_000)
    needs, moves = short_plan(placement, traffic, 4, 48, 8 * GIB, 64 * GIB).splitlines()
    assert needs.startswith("needs 8.0 GiB of 8.0 GiB device memory, 6.8 GiB of 64.0 GiB host memory; offload: host, ")
    assert placement.reason in needs
    assert moves == (
        "first batch: 1,000,000 rows loaded per image (228.9 MiB in, 244.1 MiB back), "
        "80% of what keeping only the last view's would load"
    )
    fewer = short_plan(placement, traffic, 4, 3, 8 * GIB, 64 * GIB).splitlines()[1]
    assert "(57.2 MiB in, 72.5 MiB back)" in fewer, "three colour columns instead of 48"


def test_the_short_form_says_when_nothing_moves() -> None:
    placement = choose_placement(1000, 300, 100, GIB, GIB)
    text = short_plan(placement, Traffic(0, 0, 0, 300, 300, 0), 1, 48, GIB, GIB)
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
