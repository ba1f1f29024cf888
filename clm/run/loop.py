"""The training loop: cull, fetch, render, send back, update. Everything occasional is one line that calls a component."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from clm.config import Config
from clm.kernels.rows import colour_columns
from clm.ranks import ALONE, Ranks
from clm.run.batches import NextBatch
from clm.run.events import BatchDone, Emit, Finished, Started
from clm.run.open import Run, open_run
from clm.scene import Scene


class Visitor(Protocol):
    """Somebody who looks at a run while it trains. He is asked between two batches, when the lanes are idle and the store is
    consistent; he may read everything, save, and take his time, which is no time of training."""

    @property
    def wanted(self) -> bool:
        """Whether he wants anything now: all that a run costs while nobody looks."""

    def serve(self, run: Run) -> None: ...


def train(
    scene: Scene,
    config: Config,
    folder: Path,
    emit: Emit,
    *,
    resume: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    saving: Callable[[], AbstractContextManager[None]] = nullcontext,
    ranks: Ranks = ALONE,
    visitor: Visitor | None = None,
) -> bool:
    """Train until `config.iterations` images are processed or `stop()` says so; returns whether it reached the end.

    Writes the run directory (docs/design.md). Raises ClmError for bad input, ResourceError when a budget is impossible;
    in both cases a checkpoint of the last consistent state is kept. The scene's points are forgotten. ranks: of which this is one
    (clm.ranks); every one of them calls this. visitor: who looks at a run of one rank.
    """
    with open_run(scene, config, folder, emit, resume, keep_points=False, ranks=ranks) as run:
        run.begin(saving)
        emit(_started(run))
        for batch in run.batches.until(stop):  # cull, order, plan
            emit(train_batch(run, batch))
            run.saver.stop_for(run.views.why_to_stop())
            if run.growth.due:
                with run.saver.kept_when_refused():
                    run.accounts.rebuilt(run.growth.rebuild)
            if run.evaluation.due:
                run.evaluation.run()
            if run.saver.due:
                run.saver.save()
            if visitor is not None and visitor.wanted:
                with run.accounts.uncounted():
                    visitor.serve(run)
        run.saver.save()
        run.accounts.close()
        if run.schedule.over:
            run.files.finish()
        emit(Finished(run.schedule.image, not run.schedule.over, run.accounts.totals.seconds, run.residence.rows))
        return run.schedule.over


def train_batch(run: Run, batch: NextBatch) -> BatchDone:
    """One optimizer step over the views of `batch`."""
    schedule, lanes = run.schedule, run.residence.lanes
    with run.accounts.batch(batch) as account:
        lanes.begin(batch.plan, schedule.training_step(), colour_columns(schedule.sh_degree), batch.coming)  # fetch
        run.batches.plan_ahead(batch, after=lanes.first_view)  # cull, order, plan: the next batch
        losses = run.views.compute(batch)  # render, send back, update
        account.moved, account.seconds, account.spans = lanes.finish()
        with account.waiting_for_plan():
            ahead = run.batches.settled()  # it reads the cull entries that are written next
        lanes.end()
    run.exposures.step(schedule)
    schedule.advance(batch.views, ahead.views if ahead else None)
    return account.done(schedule, losses.mean)


def _started(run: Run) -> Started:
    views = len(run.scene.train), len(run.scene.test)
    device, offload = run.residence.device.kind, run.residence.placement.offload
    return Started(run.schedule.image, run.schedule.config.iterations, run.residence.rows, *views, device, offload)
