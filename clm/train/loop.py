"""The training loop: cull, fetch, render, send back, update. Everything occasional is one line that calls a component."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from clm.config import Config
from clm.errors import ClmError, ResourceError
from clm.kernels.rows import colour_columns
from clm.optim.schedules import sh_degree_at
from clm.plan.residency import Step
from clm.render import l1_ssim
from clm.scene import CorruptImage, Scene
from clm.train.evaluate import evaluate
from clm.train.events import BatchDone, Emit, Finished, Message, Started
from clm.train.grow import crossed, rebuild, rebuild_due
from clm.train.run_files import finish_run, start_run
from clm.train.session import Session


def train(
    scene: Scene,
    config: Config,
    run: Path,
    emit: Emit,
    *,
    resume: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train until `config.iterations` images are processed or `stop()` says so; returns whether it reached the end.

    Writes the run directory (docs/design.md). Raises ClmError for bad input, ResourceError when a budget is impossible;
    in both cases a checkpoint of the last consistent state is kept.
    """
    with Session(scene, config, run, emit, resume) as session:
        start_run(session)
        progress, began = session.progress, time.perf_counter()
        views = len(scene.train), len(scene.test)
        emit(
            Started(progress.iteration, config.iterations, session.store.rows, *views, "cpu", session.placement.offload)
        )
        while progress.iteration < config.iterations and not stop():
            before = progress.iteration
            try:
                train_batch(session)
            except ResourceError:
                session.save()  # raised before the batch began: the state is that of the last one
                raise
            if rebuild_due(config, before, progress.iteration):
                rebuild(session, before)
            if crossed(config.eval_every, before, progress.iteration):
                evaluate(session)
            if crossed(config.save_every, before, progress.iteration):
                session.save()
        interrupted = progress.iteration < config.iterations
        session.totals.seconds += time.perf_counter() - began
        session.save()
        if not interrupted:
            finish_run(session)
        emit(Finished(progress.iteration, interrupted, session.totals.seconds, session.store.rows))
    return not interrupted


def train_batch(session: Session) -> None:
    """One optimizer step over `batch_size` views."""
    config, progress, lanes, began = session.config, session.progress, session.lanes, time.perf_counter()
    first, count = progress.iteration, session.batch_size(progress.iteration)
    degree = sh_degree_at(config, first)

    planned = session.next_plan()  # cull, order, plan
    progress.next_order = None
    lanes.begin(planned.plan, session.adam.at(progress.step + 1, count), colour_columns(degree))  # fetch
    plan_exposed = time.perf_counter() - began
    if first + count < config.iterations and not rebuild_due(config, first, first + count):
        session.plans.request(first + count, session.adam.reach(progress.step + 1))

    losses, compute = [], 0.0
    for i, step in enumerate(planned.plan.steps):
        lanes.wait_loaded(i)
        started = time.perf_counter()
        losses.append(compute_view(session, step, degree, first + i))  # render, loss, backward
        compute += time.perf_counter() - started
        lanes.send_back(i)  # send back, then update

    seconds = lanes.finish()
    waited = time.perf_counter()
    ahead = session.plans.ready()  # it reads the cull entries that are published next
    lanes.publish_entries()
    seconds.plan_exposed = plan_exposed + time.perf_counter() - waited
    seconds.plan, seconds.compute = planned.seconds, compute
    progress.iteration, progress.step = first + count, progress.step + 1
    progress.next_order = ahead.views if ahead else None
    _account(session, planned.plan.traffic, seconds, losses, time.perf_counter() - began, degree)


def compute_view(session: Session, step: Step, degree: int, image: int) -> float:
    """Render one view from the arena, add its gradients there, return its loss (nan: the photo could not be read)."""
    view, arena = session.scene.views[step.view], session.arena
    try:
        photo, mask = session.images.get(step.view), session.images.mask(step.view)
    except CorruptImage as error:
        if session.config.strict:
            raise
        session.emit(Message(f"{error} Skipping it.", "warning"))
        return math.nan
    background = session.image_background(image)
    render = session.rasterizer.forward(arena.geometry, arena.colour, step.slots, view.camera, degree, background)
    loss = l1_ssim(render.rgb, photo, session.config.ssim_weight, mask)
    if not math.isfinite(loss.total):
        session.bad_loss = f"The loss is {loss.total} at step {session.progress.step + 1}, image {view.name}."
        return math.nan
    session.rasterizer.backward(loss.v_rgb, arena.grad_geometry, arena.grad_colour)
    return loss.total


def _account(session: Session, traffic, seconds, losses: list[float], elapsed: float, degree: int) -> None:
    """Add the batch to the totals, tell the consumers, and stop on a loss that is not finite."""
    totals, progress = session.totals, session.progress
    resident = session.placement.offload == "none"
    totals.add_traffic(traffic, colour_columns(degree), crosses_bus=not resident)
    totals.lanes.add(seconds)
    totals.batch_seconds += elapsed
    totals.images += len(losses)
    session.see_peak()
    finite = [loss for loss in losses if math.isfinite(loss)]
    mean = sum(finite) / len(finite) if finite else math.nan
    session.emit(
        BatchDone(
            progress.step, progress.iteration, mean, session.store.rows, elapsed, traffic.loaded,
            totals.device_bytes, seconds.hidden_fraction,
        )
    )  # fmt: skip
    if session.bad_loss:
        session.save()
        raise ClmError(
            session.bad_loss, f"The state without that image is saved in {session.run / 'checkpoints'}; lower the learning "
            "rates or remove the image, then run again with --resume.",
        )  # fmt: skip
