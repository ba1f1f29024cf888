"""What a run has cost so far: clocks, traffic, peaks and spans, counted batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from clm.calendar import crossed
from clm.kernels.rows import colour_columns
from clm.plan.residency import Traffic
from clm.run.batches import NextBatch
from clm.run.disk_account import DiskMeter, DiskTotals
from clm.run.events import BatchDone, Emit, LanesSampled
from clm.run.photos import Photos
from clm.run.residence import Residence
from clm.run.schedule import Schedule
from clm.run.totals import Totals
from clm.stream.spans import LaneSeconds, Span, Trace

_SAMPLES, _MOST_SPANS = 10, 2000  # batches of a run whose lanes are told, and spans of one


@dataclass
class BatchAccount:
    """One batch: filled in while it runs."""

    batch: NextBatch
    degree: int  # of spherical harmonics
    totals: Totals
    rows: int
    began: float = field(default_factory=time.perf_counter)
    moved: Traffic | None = None
    seconds: LaneSeconds = field(default_factory=LaneSeconds)
    spans: list[Span] = field(default_factory=list)
    elapsed: float = 0.0
    disk: DiskTotals | None = None  # what the disk tier did since the batch before

    @contextmanager
    def waiting_for_plan(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds.plan = self.batch.planned.seconds
        self.seconds.plan_exposed = self.batch.exposed + time.perf_counter() - began

    def done(self, schedule: Schedule, loss: float) -> BatchDone:
        """The event of a batch that is over. loss: the mean of its finite ones, NaN where there is none."""
        assert self.moved is not None
        return BatchDone(
            schedule.step, schedule.image, loss, self.rows, self.elapsed, self.moved.loaded,
            self.totals.device_bytes, self.seconds.hidden_fraction, self.disk.hit_rate if self.disk else None,
        )  # fmt: skip


class Accounts:
    """Totals over the batches of a run, across resumes; the clock of its seconds; its trace, where one is asked for."""

    def __init__(
        self,
        schedule: Schedule,
        residence: Residence,
        photos: Photos,
        totals: Totals,
        emit: Emit,
        trace: Path | None = None,
    ):
        self.totals = totals
        self._emit = emit
        self.trace = Trace(trace) if trace else None
        self._schedule, self._residence, self._photos = schedule, residence, photos
        self._counted, self._disk = time.perf_counter(), DiskMeter()
        self._standing = False  # whether the clock stands

    def begin(self) -> None:
        """Training begins now."""
        self._counted = time.perf_counter()

    def count_seconds(self) -> None:
        """Add the time since the last call to the totals: what is saved knows how long it took."""
        now = time.perf_counter()
        self.totals.seconds += 0.0 if self._standing else now - self._counted
        self._counted = now

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """The time inside is no time of training: somebody looks, or a pause."""
        self.count_seconds()
        self._standing = True  # also for a save inside
        try:
            yield
        finally:
            self._standing, self._counted = False, time.perf_counter()

    def close(self) -> None:
        """Training is over."""
        self.count_seconds()
        if self.trace is not None:
            self.trace.write()

    @contextmanager
    def batch(self, batch: NextBatch) -> Iterator[BatchAccount]:
        """Counts what is done inside as `batch`, once what it moved is filled in."""
        account = BatchAccount(batch, self._schedule.sh_degree, self.totals, self._residence.rows)
        yield account
        account.elapsed = batch.exposed + time.perf_counter() - account.began
        self._add(account)

    def rebuilt(self, rebuild: Callable[[], int]) -> None:
        """Have the rows rebuilt; `rebuild` returns how many changed."""
        began = time.perf_counter()
        self.totals.rows_changed += rebuild()
        self.totals.rebuilds += 1
        self.totals.rebuild_seconds += time.perf_counter() - began

    def _add(self, account: BatchAccount) -> None:
        totals, residence, planned = self.totals, self._residence, account.batch.planned
        assert account.moved is not None, "a batch that is over has moved something"
        self._sample(account)
        if self.trace is not None:
            plan = Span("plan", "cull, order, plan", 0, planned.began, planned.began + planned.seconds)
            self.trace.add([plan, *account.spans])
        totals.add_traffic(account.moved, colour_columns(account.degree), self._schedule.config.colour_bus)
        totals.lanes.add(account.seconds)
        totals.batch_seconds += account.elapsed
        totals.images += account.batch.views
        account.disk = self._disk.since(getattr(residence.tiers.store, "disk", None))
        totals.add_disk(account.disk)
        device, host, in_core = residence.held_bytes()
        totals.see_peak(device, host + self._photos.bytes, in_core, residence.see_held())

    def _sample(self, account: BatchAccount) -> None:
        """Tell what the lanes did in some batches: a tenth of the run apart."""
        batch, iterations = account.batch, self._schedule.config.iterations
        if crossed(max(1, iterations // _SAMPLES), batch.first, batch.first + batch.views):
            began = account.began
            spans = sorted(
                (s for s in account.spans if s.start >= began), key=lambda span: span.start
            )  # of this batch alone
            told = [[s.lane, s.name, s.turn, round(s.start - began, 6), round(s.end - began, 6)] for s in spans]
            self._emit(LanesSampled(batch.first + batch.views, account.elapsed, told[:_MOST_SPANS]))
