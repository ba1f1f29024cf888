"""The simulator keeps to the executor's rules, to arithmetic, and to what the plans say."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clm.forecast.machine import Machine
from clm.forecast.simulate import WORKERS, Span, Timeline, bus_bytes, simulate
from clm.forecast.tasks import Task, run
from clm.forecast.turns import count_turn
from clm.plan.budget import GRADIENT_BYTES, PARAMETER_BYTES, TURNS_UNDER_WAY
from clm.plan.residency import Plan, make_plan

PAGE_ROWS = 4
GPU = Machine(
    name="test", device="gpu", device_memory=1, host_memory=1, disk=0, cores=4, host_gather_gb_s=1, host_adam_gb_s=1,
    bus_in_gb_s=1, bus_out_gb_s=1, device_gb_s=10, plan_ns_per_row=10, hand_over_us=1, render_ms_per_view=0.01,
    render_ns_per_row=100, render_ns_per_pixel=10,
)  # fmt: skip
CPU = replace(GPU, device="cpu", compute_cores=4)

sets = st.lists(st.sets(st.integers(0, 40), min_size=1, max_size=20), min_size=1, max_size=7)
batches = st.lists(st.tuples(sets, st.integers(0, 25)), min_size=1, max_size=3)
RATES = ("host_gather_gb_s", "host_adam_gb_s", "bus_in_gb_s", "bus_out_gb_s", "device_gb_s")
TIMES = ("plan_ns_per_row", "hand_over_us", "render_ms_per_view", "render_ns_per_row", "render_ns_per_pixel")


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    rates = {name: draw(st.floats(0.01, 100)) for name in RATES}
    fixed = {"hand_over_us": draw(st.sampled_from([0.0, 1.0, 20.0])), "plan_ns_per_row": draw(st.floats(0, 1000))}
    return replace(draw(st.sampled_from([CPU, GPU])), **rates, **fixed)


def plans_of(drawn: list[tuple[list[set[int]], int]]) -> list[Plan]:
    plans = []
    for views, room in drawn:
        rows = [np.array(sorted(view), np.int32) for view in views]
        plans.append(make_plan(range(len(rows)), rows, max(1, max(map(len, rows)) // 3 + room), PAGE_ROWS))
    return plans


def simulated(drawn: list[tuple[list[set[int]], int]], machine: Machine, **options: object) -> Timeline:
    return simulate(plans_of(drawn), machine, [1000] * 7, **options)  # type: ignore[arg-type]


def spans(timeline: Timeline, batch: int, turn: int, *names: str) -> list[Span]:
    return [s for s in timeline.spans if (s.batch, s.turn) == (batch, turn) and s.name in names]


def ended(found: list[Span], otherwise: float) -> float:
    return max([otherwise, *(span.end for span in found)])


@settings(max_examples=150, deadline=None)
@given(batches, machines())
def test_a_run_takes_at_least_the_work_of_each_resource_and_at_most_all_work_in_a_row(drawn, machine) -> None:
    timeline = simulated(drawn, machine)
    assert all(timeline.seconds >= work * (1 - 1e-9) for work in timeline.resources.values())
    share = min(1.0, machine.compute_cores / machine.cores) if machine.on_cpu else 1.0
    alone = sum(timeline.resources.values()) / min(share, 1 / machine.cores)
    assert timeline.seconds <= alone * (1 + 1e-9)
    assert 0 <= timeline.hidden_fraction <= 1
    assert timeline.exposed >= 0 and timeline.plan_exposed >= -1e-12
    total = timeline.exposed + timeline.plan_exposed + timeline.lanes["compute"]
    assert timeline.seconds == pytest.approx(total), "a batch is compute, waiting for lanes, waiting for the plan"


@settings(max_examples=150, deadline=None)
@given(batches, machines(), st.floats(1.01, 50))
def test_a_machine_that_does_everything_faster_takes_that_much_less(drawn, machine, factor) -> None:
    faster = {name: getattr(machine, name) * factor for name in RATES}
    faster |= {name: getattr(machine, name) / factor for name in TIMES}
    slow, fast = simulated(drawn, machine), simulated(drawn, replace(machine, **faster))
    assert fast.seconds == pytest.approx(slow.seconds / factor)


@settings(max_examples=150, deadline=None)
@given(batches, machines(), st.data())
def test_rows_that_live_on_the_device_never_make_a_gpu_slower_when_its_memory_is_quick(drawn, machine, data) -> None:
    machine = replace(machine, device="gpu", compute_cores=0, device_gb_s=1e9, hand_over_us=0, plan_ns_per_row=0)
    blocks = np.array(data.draw(st.lists(st.booleans(), min_size=11, max_size=11)))
    resident = np.repeat(blocks, PAGE_ROWS)
    with_all, with_none = simulated(drawn, machine, resident=resident), simulated(drawn, machine)
    # Sharing the host can cost the lane that matters a little, so the bound is the work, not each schedule.
    assert with_all.resources["host"] <= with_none.resources["host"] * (1 + 1e-9)
    assert with_all.bytes_loaded <= with_none.bytes_loaded and with_all.bytes_sent_back <= with_none.bytes_sent_back
    everything = simulated(drawn, machine, resident=np.ones(44, bool))
    parked = sum(plan.traffic.loaded_partial for plan in plans_of(drawn))
    assert everything.bytes_loaded == everything.bytes_sent_back == parked * 256, "only partial gradients travel"
    assert everything.seconds <= with_all.seconds * (1 + 1e-6)


@settings(max_examples=100, deadline=None)
@given(batches, machines(), st.floats(1.1, 20))
def test_a_quicker_bus_never_makes_a_run_slower(drawn, machine, factor) -> None:
    """Exact where lanes do not contend for the host: the bus is then the only thing that changes."""
    machine = replace(
        machine, device="gpu", compute_cores=0, host_gather_gb_s=1e9, host_adam_gb_s=1e9, device_gb_s=1e9,
        hand_over_us=0, plan_ns_per_row=0,
    )  # fmt: skip
    quicker = replace(machine, bus_in_gb_s=machine.bus_in_gb_s * factor, bus_out_gb_s=machine.bus_out_gb_s * factor)
    assert simulated(drawn, quicker).seconds <= simulated(drawn, machine).seconds * (1 + 1e-6)


@settings(max_examples=200, deadline=None)
@given(batches, machines(), st.lists(st.booleans(), min_size=11, max_size=11))
def test_every_turn_keeps_the_rules_of_the_executor(drawn, machine, blocks) -> None:
    plans, tiny, before = plans_of(drawn), 1e-12, 0.0
    timeline = simulated(drawn, machine, resident=np.repeat(blocks, PAGE_ROWS))
    for batch, plan in enumerate(plans):
        render = [spans(timeline, batch, i, "render")[0] for i in range(len(plan.turns))]
        gathers, copies, collects, reads = [], [], [], []  # of all parcels so far
        released, updated = [], []  # when, per turn
        for i, turn in enumerate(plan.turns):
            places, returns = spans(timeline, batch, i, "place", "restore"), spans(timeline, batch, i, "bring back")
            loads = spans(timeline, batch, i, "gather"), spans(timeline, batch, i, "copy in")
            arrivals = [*loads[0], *loads[1], *places, *returns]
            assert all(before - tiny <= span.start and span.end <= render[i].start + tiny for span in arrivals)
            assert i == 0 or render[i].start >= render[i - 1].end - tiny
            gathers, copies = gathers + loads[0], copies + loads[1]
            if i >= TURNS_UNDER_WAY:
                assert all(span.start >= updated[i - TURNS_UNDER_WAY] - tiny for span in loads[0]), (
                    "few turns are routed"
                )
            if i >= 2 and places:
                assert min(span.start for span in places) >= released[i - 2] - tiny, "early slots"
            if i >= 1 and turn.load_early < len(turn.load_rows):
                assert max(span.start for span in places) >= released[i - 1] - tiny, "late slots"
            if i >= 2 and returns:
                parked = ended(spans(timeline, batch, i - 2, "park"), before)
                assert max(span.start for span in returns) >= parked - tiny, "what comes back was parked"
            sends = spans(timeline, batch, i, "collect", "device adam", "copy out", "park")
            assert all(span.start >= render[i].end - tiny for span in sends)
            steps = spans(timeline, batch, i, "host adam")
            collects, reads = collects + spans(timeline, batch, i, "collect"), reads + steps
            reads = reads + spans(timeline, batch, i, "park")
            on_device = spans(timeline, batch, i, "collect", "device adam", "copy out")
            released.append(ended(on_device, render[i].end))
            updated.append(ended(sends + steps, render[i].end))
        assert len(gathers) == len(copies) or machine.on_cpu
        assert all(span.start >= copy.end - tiny for copy, span in zip(copies, gathers[2:], strict=False)), (
            "its buffer is free"
        )
        assert len(collects) == len(reads)
        assert all(span.start >= collect.end - tiny for collect, span in zip(collects, reads, strict=True))
        assert all(span.start >= read.end - tiny for read, span in zip(reads, collects[2:], strict=False)), (
            "its buffer is free"
        )
        planning = [s.end for s in timeline.spans if s.batch == batch and s.worker == "plan"]
        before = max(render[-1].end, *planning, *updated)
        assert all(s.end <= before + tiny for s in timeline.spans if s.batch == batch)
    for worker in WORKERS:
        own = [s for s in timeline.spans if s.worker == worker]
        assert all(a.end <= b.start + tiny for a, b in pairwise(own)), "a worker does one thing at a time"


def test_when_nothing_overlaps_the_time_is_the_sum() -> None:
    """One view: load, compute, send back and update run one after the other, publishing and the plan beside them."""
    rows = np.arange(1000, dtype=np.int32)
    machine = replace(GPU, hand_over_us=0, plan_ns_per_row=0)
    timeline = simulate([make_plan([0], [rows], 1000)], machine, [1000])
    load = 1000 * (4 * 240 + 4) / 1e9 + 1000 * 240 / 1e9 + 1000 * (2 * 240 + 256) / 10e9
    compute = 1e-5 + 1000 * 100e-9 + 1000 * 10e-9
    back = 1000 * 2 * 256 / 10e9 + 1000 * 256 / 1e9
    update = 1000 * (2 * (240 + 480 + 20) + 256 + 16) / 1e9
    assert timeline.seconds == pytest.approx(load + compute + back + update)
    assert timeline.exposed == pytest.approx(load + back + update)
    publish = 1000 * 80 / 1e9
    assert timeline.lanes["update"] == pytest.approx(update + publish), "the last batch's entries are written"
    assert timeline.hidden_fraction == pytest.approx(publish / (load + back + update + publish)), (
        "and nothing else hides"
    )


def test_loads_of_the_next_view_hide_behind_compute() -> None:
    """Two views without a common row: what is exposed is the first load and the last update, not the second load."""
    rows = np.arange(1000, dtype=np.int32)
    machine = replace(GPU, hand_over_us=0, plan_ns_per_row=0, render_ms_per_view=50)
    timeline = simulate([make_plan([0, 1], [rows, rows + 1000], 4000)], machine, [0, 0])
    assert timeline.hidden_fraction == pytest.approx(0.52, abs=0.01), "the entries of the last batch are hidden, too"
    alone = 2 * (0.05 + 1000 * 100e-9)
    assert alone < timeline.lanes["compute"] < 1.01 * alone, (
        "gathering gradients takes the device from compute for a moment"
    )


def test_on_a_cpu_lanes_take_the_cores_from_compute() -> None:
    """The same work in the same order: hidden behind compute on a GPU, paid for on a CPU whose cores compute fills."""
    rows = [np.arange(k * 1000, k * 1000 + 2000, dtype=np.int32) for k in range(4)]
    plans = [make_plan(range(4), rows, 8000)] * 2
    quiet = {"hand_over_us": 0.0, "plan_ns_per_row": 0.0}
    cpu = simulate(plans, replace(CPU, **quiet), [10**6] * 4)
    gpu = simulate(plans, replace(GPU, **quiet), [10**6] * 4)
    assert cpu.seconds == pytest.approx(cpu.resources["host"]), "the cores are busy all the time"
    assert gpu.seconds < 0.9 * sum(gpu.resources.values())


@settings(max_examples=150, deadline=None)
@given(batches, st.sampled_from([3, 12, 27, 48]), st.sampled_from(["f32", "bf16"]))
def test_bytes_are_those_of_the_plans(drawn, columns, colour_bus) -> None:
    plans, value = plans_of(drawn), {"f32": 4, "bf16": 2}[colour_bus]
    counts = [count_turn(turn, 0, None, 1.0) for plan in plans for turn in plan.turns]
    row, gradient = PARAMETER_BYTES - 4 * 48 + value * columns, GRADIENT_BYTES - 4 * (48 - columns)
    loaded = sum(plan.traffic.loaded * row + plan.traffic.loaded_partial * gradient for plan in plans)
    sent = sum(plan.traffic.sent_back * gradient for plan in plans)
    assert bus_bytes(counts, columns, colour_bus) == (loaded, sent)
    timeline = simulate(plans, GPU, [0] * 7, columns=columns, colour_bus=colour_bus)
    assert (timeline.bytes_loaded, timeline.bytes_sent_back) == (loaded, sent)
    tenfold = simulate(plans, GPU, [0] * 7, columns=columns, colour_bus=colour_bus, scale=10.0)
    assert (tenfold.bytes_loaded, tenfold.bytes_sent_back) == (10 * loaded, 10 * sent)


@settings(max_examples=50, deadline=None)
@given(batches, machines(), st.booleans())
def test_rows_that_stand_for_ten_take_ten_times_as_long(drawn, machine, resident) -> None:
    by_rows = replace(machine, hand_over_us=0, render_ms_per_view=0, render_ns_per_pixel=1e-12)
    options = {"resident": np.full(44, resident)}
    one, ten = (simulated(drawn, by_rows, scale=scale, **options) for scale in (1.0, 10.0))
    assert ten.seconds == pytest.approx(10 * one.seconds)
    for name, work in one.resources.items():
        assert ten.resources[name] == pytest.approx(10 * work)


def test_tasks_share_a_resource_evenly_but_none_gets_more_than_it_can_use() -> None:
    thread = Task("plan", "plan", "plan", 0, -1, "host", 1.0, share=0.25)
    kernel = Task("load", "load", "load", 0, 0, "host", 1.0)
    other = Task("update", "update", "update", 0, 0, "host", 1.0)
    assert run([thread])[1].tolist() == [1.0]
    assert run([kernel, other])[1].tolist() == [2.0, 2.0]
    start, end = run([thread, kernel, other])
    assert start.tolist() == [0.0, 0.0, 0.0]
    assert end == pytest.approx([1.0, 2.25, 2.25]), (
        "a quarter for the thread, three eighths for each kernel, then halves"
    )
    later = Task("load", "load", "load", 0, 1, "bus_in", 0.5, after=(0, 1))
    assert run([thread, kernel, later])[0][2] == pytest.approx(run([thread, kernel])[1].max())


def test_nothing_to_simulate_is_said() -> None:
    with pytest.raises(ValueError, match="no plan"):
        simulate([], GPU, [])
