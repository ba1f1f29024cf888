"""The training loop: cull, fetch, render, send back, update. Everything occasional is one line that calls a component."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from clm.config import Config
from clm.errors import ClmError, OutOfDeviceMemory
from clm.kernels.rows import colour_columns
from clm.optim.schedules import crossed, sh_degree_at
from clm.plan.residency import Plan, Traffic
from clm.run.evaluate import evaluate
from clm.run.events import BatchDone, Emit, Finished, Started
from clm.run.grow import rebuild, rebuild_due
from clm.run.run_files import finish_run, start_run
from clm.run.session import Session
from clm.scene import CorruptImage, Scene
from clm.stream.lanes import Lanes
from clm.stream.spans import LaneSeconds, Span


def train(
    scene: Scene,
    config: Config,
    run: Path,
    emit: Emit,
    *,
    resume: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    saving: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> bool:
    """Train until `config.iterations` images are processed or `stop()` says so; returns whether it reached the end.

    Writes the run directory (docs/design.md). Raises ClmError for bad input, ResourceError when a budget is impossible;
    in both cases a checkpoint of the last consistent state is kept.
    """
    with Session(scene, config, run, emit, resume) as session:
        start_run(session)
        scene = session.scene  # with the views held out that the run began with
        session.begin_clock(saving)
        progress = session.progress
        views = len(scene.train), len(scene.test)
        device, offload = session.device.kind, session.placement.offload
        emit(Started(progress.iteration, config.iterations, session.store.rows, *views, device, offload))
        while progress.iteration < config.iterations and not stop():
            before = progress.iteration
            train_batch(session)
            if rebuild_due(config, before, progress.iteration):
                rebuild(session, before)
            if crossed(config.eval_every, before, progress.iteration):
                evaluate(session)
            if session.save_due(before):
                session.save()
        interrupted = progress.iteration < config.iterations
        session.save()
        session.count_seconds()
        if session.trace is not None:
            session.trace.write()
        if not interrupted:
            finish_run(session)
        emit(Finished(progress.iteration, interrupted, session.totals.seconds, session.store.rows))
    return not interrupted


def train_batch(session: Session) -> None:
    """One optimizer step over `batch_size` views."""
    config, progress, began = session.config, session.progress, time.perf_counter()
    first, count = progress.iteration, session.batch_size(progress.iteration)
    degree = sh_degree_at(config, first)

    planned = session.next_plan()  # cull, order, plan
    plan = planned.plan
    assert plan is not None, "the plan that the lanes run has its sets cut without a margin"
    plan_exposed = time.perf_counter() - began
    lanes = session.lanes
    progress.next_order = None
    lanes.begin(plan, session.training_step(count), colour_columns(degree))  # fetch
    if first + count < config.iterations and not rebuild_due(config, first, first + count):
        session.plans.request(first + count, session.next_reach(), after=lanes.first_view)

    losses = compute_views(session, plan, degree)  # render, send back, update

    moved, seconds, spans = lanes.finish()
    waited = time.perf_counter()
    ahead = session.plans.ready()  # it reads the cull entries that are written next
    seconds.plan, seconds.plan_exposed = planned.seconds, plan_exposed + time.perf_counter() - waited
    lanes.end()
    progress.iteration, progress.step = first + count, progress.step + 1
    progress.next_order = ahead.views if ahead else None
    if session.trace is not None:
        session.trace.add(
            [Span("plan", "cull, order, plan", 0, planned.began, planned.began + planned.seconds), *spans]
        )
    views = [turn.view for turn in plan.turns]
    _account(session, moved, seconds, views, losses, time.perf_counter() - began, degree)


def compute_views(session: Session, plan: Plan, degree: int) -> list[Any]:
    """Render, loss, backward for each view, whose gradients are then sent back; returns the losses, None where there is no
    photo. A view for which the device has no memory is repeated in a smaller arena; where that is impossible the batch goes
    on without it, and the error takes the place of its loss."""
    lanes, earlier = session.lanes, 0  # earlier: views done before the plan was replaced
    losses: list[Any] = []
    while (i := len(losses) - earlier) < len(plan.turns):
        loss = attempt(
            lanes, i, view_loss(session, plan.turns[i].view, degree, session.progress.iteration + len(losses))
        )
        if isinstance(loss, OutOfDeviceMemory):
            rest = session.shrink_arena(plan, i)
            if rest is not None:
                plan, earlier = rest, len(losses)
                continue
            loss = lanes.compute(i, partial(_instead, loss))
        losses.append(loss)
        lanes.send_back(i)  # and update
    return losses


def _instead(error: OutOfDeviceMemory, slots: Any) -> OutOfDeviceMemory:
    """What a view that the device has no memory for comes to."""
    return error


def attempt(lanes: Lanes, i: int, work: Callable[[Any], Any]) -> Any:
    """The loss of step i, or OutOfDeviceMemory as a value: of the failed view nothing stays, neither `work` nor the frames of
    a traceback, because they hold the arena whose memory the next try needs."""
    try:
        return lanes.compute(i, work)
    except OutOfDeviceMemory as error:
        return error.with_traceback(None)


def view_loss(session: Session, view_id: int, degree: int, image: int) -> Callable[[Any], Any]:
    """What the device does for one view, given its slots: render, compare with the photo, add gradients, return the loss
    (None: the photo could not be read)."""
    view = session.scene.views[view_id]
    try:
        photo, mask = session.images.get(view_id), session.images.mask(view_id)
    except CorruptImage as error:
        if session.config.strict:
            raise
        session.see_unreadable(view_id, error)
        return lambda slots: None
    return partial(
        session.rasterizer.loss_and_gradients,
        session.tiers.arena,
        camera=view.camera,
        sh_degree=degree,
        background=session.image_background(image),
        photo=photo,
        mask=mask,
        ssim_weight=session.config.ssim_weight,
    )


def _account(
    session: Session,
    traffic: Traffic,
    seconds: LaneSeconds,
    views: Sequence[int],
    losses: Sequence[Any],
    elapsed: float,
    degree: int,
) -> None:
    """Add the batch to the totals, tell the consumers, and stop on a loss that is not finite."""
    totals, progress = session.totals, session.progress
    failed = [loss for loss in losses if isinstance(loss, OutOfDeviceMemory)]
    losses = [None if isinstance(loss, OutOfDeviceMemory) else loss for loss in losses]
    values = [(view, float(loss)) for view, loss in zip(views, losses, strict=True) if loss is not None]
    bad = [(view, value) for view, value in values if not math.isfinite(value)]
    totals.add_traffic(traffic, colour_columns(degree), session.config.colour_bus)
    totals.lanes.add(seconds)
    totals.batch_seconds += elapsed
    totals.images += len(losses)
    session.see_peak()
    finite = [value for _, value in values if math.isfinite(value)]
    mean = sum(finite) / len(finite) if finite else math.nan
    session.emit(
        BatchDone(
            progress.step, progress.iteration, mean, session.store.rows, elapsed, traffic.loaded,
            totals.device_bytes, seconds.hidden_fraction,
        )
    )  # fmt: skip
    if failed:
        session.save()
        raise failed[0]
    session.refuse_vanished()
    if bad:
        view, value = bad[0]
        session.save()
        raise ClmError(
            f"The loss is {value} at step {progress.step}, image {session.scene.views[view].name}.",
            f"The state without that image is saved in {session.run / 'checkpoints'}; lower the learning rates or remove "
            "the image, then run again with --resume.",
        )
