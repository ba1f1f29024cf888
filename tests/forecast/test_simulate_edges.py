"""Who waits for whom in the simulator is who waits for whom in the lanes: the same order on the same tasks of the same plan."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest

from clm.forecast.simulate import WORKERS
from clm.forecast.tasks import Graph
from clm.forecast.turns import Rates, add_batch, count_turn
from clm.optim.adam import Adam, Betas
from clm.plan.residency import Plan, make_plan
from clm.store.layout import CHUNK_ROWS
from clm.store.store import Store
from clm.stream.batch import Batch
from clm.stream.fetch import Fetch
from clm.stream.handover import HostLane, Outcome
from clm.stream.lanes import Lanes
from clm.stream.parking import ParkedGradients
from clm.stream.send_back import SendBack
from clm.stream.tiers import Tiers
from tests.device.fake_device import FakeDevice, FakeEvent, FakeStream
from tests.forecast.test_simulate import GPU

ROWS, PAGE_ROWS = 400, 8
PARCEL = 16  # rows; in the simulator so many that they come to a parcel of its own
SEEDS = range(40)
STREAMS = {"load": "copy in", "compute": "compute", "send_back": "copy out"}  # as the simulator calls them
NOT_COMPARED = (
    "hand over",
    "entries",
    "updated",
    "publish",
    "cull, order, plan",
)  # take no time, or are not the lanes'


class Key(NamedTuple):
    batch: int
    worker: str
    name: str
    turn: int
    number: int  # among its like


Order = dict[Key, frozenset[Key]]  # of each task, all that must have ended before it begins


class Recorder:
    """What has happened before what, in threads and streams, as far as something makes sure of it."""

    def __init__(self) -> None:
        self.order: dict[Key, frozenset[Key]] = {}
        self.batch = 0
        self._here = threading.local()
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._lock = threading.Lock()

    @property
    def known(self) -> frozenset[Key]:
        """What has happened before what this thread does next."""
        return getattr(self._here, "known", frozenset())

    def learn(self, more: frozenset[Key]) -> None:
        self._here.known = self.known | more

    @property
    def at(self) -> tuple[str, int]:
        """Name and turn of what this thread works at."""
        return self._here.at

    @contextmanager
    def working(self, name: str, turn: int) -> Iterator[None]:
        before, self._here.at = getattr(self._here, "at", ("", -1)), (name, turn)
        yield
        self._here.at = before

    def task(self, worker: str, name: str, before: frozenset[Key] = frozenset()) -> frozenset[Key]:
        """A task of this thread, or one that it hands over to a worker that comes from `before`; itself and all before it."""
        with self._lock:
            kind = self.batch, worker, name, self.at[1]
            key = Key(*kind, self._seen[kind])
            self._seen[kind] += 1
            self.order[key] = before = before | self.known
        return before | {key}

    def own_task(self, worker: str, name: str) -> None:
        self.learn(self.task(worker, name))


class RecordedEvent(FakeEvent):
    known: frozenset[Key]

    def synchronize(self, why: str) -> None:
        super().synchronize(why)
        self.stream.recorder.learn(self.known)


class RecordedStream(FakeStream):
    def __init__(self, device: RecordingDevice, name: str):
        super().__init__(device, name)
        self.name, self.recorder, self.known = STREAMS[name], device.recorder, frozenset[Key]()

    def wait(self, event: RecordedEvent, why: str) -> None:
        super().wait(event, why)
        self.known |= event.known

    def run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        name = "restore" if work == self.device.restore else self.recorder.at[0]
        self.known = self.recorder.task(self.name, name, self.known)
        return super().run(work, *arguments)

    def record(self) -> RecordedEvent:
        event = RecordedEvent(self, self.queued)
        event.known = self.known
        return event


class RecordingDevice(FakeDevice):
    def __init__(self, recorder: Recorder):
        super().__init__("eager")
        self.recorder = recorder

    def stream(self, name: str) -> RecordedStream:
        self.streams.append(RecordedStream(self, name))
        return self.streams[-1]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Records what threads hand each other, and what they do themselves."""
    recorder, outcomes, sent_back = Recorder(), {}, [frozenset[Key]()]
    settle, result, hand_over, span, host_span = (
        Outcome._settle, Outcome.result, HostLane.hand_over, Batch.span, Batch.host_span,
    )  # fmt: skip
    fetch, send_back, park, copy_to = Fetch.run, SendBack._run, ParkedGradients.park, ParkedGradients.copy_to

    def settled(outcome: Outcome, *with_what: Any) -> None:
        outcomes.setdefault(id(outcome), (outcome, recorder.known))
        settle(outcome, *with_what)

    def awaited(outcome: Outcome) -> Any:
        value = result(outcome)
        recorder.learn(outcomes[id(outcome)][1])
        return value

    def handed_over(lane: HostLane, work: Callable[[], None]) -> None:
        known = recorder.known

        def run() -> None:
            recorder.learn(known)
            work()

        hand_over(lane, run)

    @contextmanager
    def on_stream(batch: Batch, stream: Any, lane: str, name: str, i: int) -> Iterator[None]:
        with recorder.working(name, i), span(batch, stream, lane, name, i):
            yield

    @contextmanager
    def on_host(batch: Batch, lane: str, name: str, i: int) -> Iterator[None]:
        with recorder.working(name, i), host_span(batch, lane, name, i):
            yield
            recorder.own_task(lane, name)

    def fetched(lane: Fetch, batch: Batch, i: int) -> None:
        with recorder.working("load", i):
            fetch(lane, batch, i)

    def sent(lane: SendBack, batch: Batch, i: int) -> None:
        """One turn at a time, whichever thread it is in; the test sees to it that they come in order."""
        recorder.learn(sent_back[0])
        with recorder.working("send back", i):
            send_back(lane, batch, i)
        sent_back[0] = recorder.known

    def parked(*arguments: Any) -> None:
        recorder.own_task("send back", "park")
        park(*arguments)

    def brought_back(*arguments: Any) -> None:
        recorder.own_task("load", "bring back")
        copy_to(*arguments)

    for owner, name, replaced in (
        (Outcome, "_settle", settled), (Outcome, "result", awaited), (HostLane, "hand_over", handed_over),
        (Batch, "span", on_stream), (Batch, "host_span", on_host), (Fetch, "run", fetched), (SendBack, "_run", sent),
        (ParkedGradients, "park", parked), (ParkedGradients, "copy_to", brought_back),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, replaced)
    return recorder


def order_of_the_lanes(recorder: Recorder, plans: list[Plan], resident_pages: np.ndarray) -> Order:
    """Carry the plans out, one after the other; nothing is rendered."""
    rng, steps = np.random.default_rng(0), len(plans)
    store = Store(ROWS, page_rows=PAGE_ROWS)
    store.append(rng.normal(size=(ROWS, 12)).astype(np.float32), rng.normal(size=(ROWS, 48)).astype(np.float32))
    store.refresh(None)
    adam = Adam(np.full((6, steps + 1), 1e-3), Betas.for_batch(1))
    lanes = Lanes(Tiers(RecordingDevice(recorder), store, resident_pages, max(plan.capacity for plan in plans)), PARCEL)
    try:
        for recorder.batch, plan in enumerate(plans):
            lanes.begin(plan, adam.at(recorder.batch + 1), 3)
            for i in range(len(plan.turns)):
                with recorder.working("render", i):
                    lanes.compute(i, lambda slots: None)
                if i:
                    lanes._batch.turns[i - 1].released.wait()  # sees to the order, and knows of nothing by it
                lanes.send_back(i)
            lanes.finish()
            lanes.end()
    finally:
        lanes.close()
    return recorder.order


def order_of_the_simulator(plans: list[Plan], resident: np.ndarray) -> Order:
    graph, rates, begin = Graph(), Rates(GPU, 3), ()
    for k, plan in enumerate(plans):
        turns = [count_turn(turn, 1000, resident, CHUNK_ROWS / PARCEL) for turn in plan.turns]
        ends = add_batch(graph, rates, k, turns, turns, 0.0, begin)
        begin = (*ends.updates, ends.plan)
    keys: list[Key | None] = []
    reached: list[frozenset[Key]] = []
    seen: Counter[tuple[Any, ...]] = Counter()
    for task in graph.tasks:
        kind = task.batch, task.worker, task.name, task.turn
        keys.append(None if task.name in NOT_COMPARED else Key(*kind, seen[kind]))
        seen[kind] += 1
        before = frozenset[Key]().union(*(reached[k] | ({keys[k]} - {None}) for k in task.after))
        reached.append(before)
    return {key: before for key, before in zip(keys, reached, strict=True) if key is not None}


def random_plans(seed: int) -> tuple[list[Plan], np.ndarray]:
    """One batch, twice, and which pages are resident: windows of rows with holes, in an arena from roomy to one in which views
    go in pieces."""
    rng, sets = np.random.default_rng(seed), []
    for first in rng.integers(0, ROWS // 2, size=rng.integers(3, 9)):
        window = np.arange(first, first + rng.integers(1, ROWS // 2))
        sets.append(window[rng.random(len(window)) < rng.choice([0.2, 0.8])].astype(np.int32))
    capacity = max(2, int(max(map(len, sets)) * rng.choice([0.4, 0.7, 1.0, 1.3, 3.0])))
    plan = make_plan(list(range(len(sets))), sets, capacity, PAGE_ROWS)
    return [plan, plan], rng.random(ROWS // PAGE_ROWS) < rng.choice([0.0, 0.3, 0.7, 1.0])


def test_the_plans_have_pieces_evictions_and_residents() -> None:
    drawn = [random_plans(seed) for seed in SEEDS]
    pieces = [len(plans[0].turns) > len(plans[0].views) for plans, _ in drawn]
    evictions = [plans[0].traffic.loaded_partial > 0 for plans, _ in drawn]
    some = [bool(pages.any() and not pages.all()) for _, pages in drawn]
    for wanted in (pieces, evictions, some, [a and b and c for a, b, c in zip(pieces, evictions, some, strict=True)]):
        assert 5 < sum(wanted) < len(drawn)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_simulator_has_the_waits_of_the_lanes_and_no_others(recorder: Recorder, seed: int) -> None:
    plans, resident_pages = random_plans(seed)
    real = order_of_the_lanes(recorder, plans, resident_pages)
    simulated = order_of_the_simulator(plans, np.repeat(resident_pages, PAGE_ROWS))
    assert set(real) == set(simulated), "the same work"
    assert {key.worker for key in real} <= set(WORKERS)
    for key, before in real.items():
        assert not before - simulated[key], f"{key} does not wait in the simulator"
        assert not simulated[key] - before, f"{key} waits in the simulator only"
