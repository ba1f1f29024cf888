"""Whole runs: where rows live does not matter, a run resumes, and one that meets the end of the device's memory goes on."""

from __future__ import annotations

from typing import Any

import numpy as np

from clm.config import Config
from clm.plan.budget import RESIDENT_ROW_BYTES, arena_bytes
from clm.plan.sightings import sightings
from clm.run.checkpoint import latest_checkpoint
from clm.run.events import BatchDone, Message
from clm.run.open import Run
from clm.scene import Scene
from clm.store.layout import LOG_SCALES, LOGIT_OPACITIES, MEANS
from gpu_parts.check import Check, Findings, advance, unlike
from gpu_parts.synthetic import open_flat, small_scene, small_store

CLOSE, FAR_SHARE = 1e-2, 0.02  # of the largest of a column; the share of values that may be farther apart
# Rotations are left out: of initial spheres their gradients are rounding alone, of which Adam makes whole steps.
COMPARED = {"means": MEANS, "log_scales": LOG_SCALES, "logit_opacities": [LOGIT_OPACITIES]}


def losses(batches: list[BatchDone]) -> np.ndarray:
    return np.array([batch.loss for batch in batches])


def model_of(run: Run) -> dict[str, np.ndarray]:
    with run.residence.whole() as store:
        columns = {name: store.geometry[:, at].copy() for name, at in COMPARED.items()}
        return {**columns, "colour": store.colour.copy()}


def partial_budget(run: Run) -> int:
    """Bytes in which most rows can stay on the device, but not all: of a run that holds all of them."""
    with run.residence.whole() as store:
        largest = sightings(store, run.residence.cameras).largest_view
    placement = run.residence.placement
    unneeded = arena_bytes(placement.arena_slots) - arena_bytes(largest)
    return placement.device_bytes - unneeded - run.residence.rows * RESIDENT_ROW_BYTES // 5


def placements(check: Check, findings: Findings) -> None:
    """none, host and auto with some blocks resident, and the CPU, train the same model up to the order of sums."""
    scene, batches = check.scene(), check.size(25, 10, 3)
    models, curves, budget = {}, {}, check.budget
    for name in ("cpu", "none", "host", "auto"):
        options: dict[str, Any] = {"offload": "none" if name == "cpu" else name}
        options |= {"gpu_memory": budget} if name == "auto" else {}
        options |= {"device": "cpu"} if name == "cpu" else {}
        with check.open(scene, check.config(**options)) as run:
            if name == "none":
                budget = str(partial_budget(run))
            share = run.residence.tiers.resident_rows / run.residence.rows
            curves[name] = losses([batch.done for batch in advance(run, batches)])
            models[name] = model_of(run)
        line = f"{name}: {100 * share:.0f}% of the Gaussians resident, loss {curves[name][-1]:.5f}"
        findings.figure(name, {"resident": share, "losses": curves[name].tolist()}, line)
        if name == "cpu":
            continue
        off = float(np.max(np.abs(curves[name] / curves["cpu"] - 1)))
        findings.expect(f"{name}: losses as on the CPU", off < 0.01, f"{100 * off:.3f}% apart at most")
        for column, values in models[name].items():
            far = unlike(values, models["cpu"][column], CLOSE)
            findings.expect(f"{name}: {column} as on the CPU", far < FAR_SHARE, f"{far:.1e} beyond {CLOSE:g}")
    findings.expect("some blocks were resident, not all", 0 < findings.figures["auto"]["resident"] < 1, str(share))


def resume(check: Check, findings: Findings) -> None:
    """k + k images are 2k images, up to the order of sums on the device; with densification in between."""
    scene, images = check.scene(), check.size(240, 80, 16)
    growing = {"densify_from": images // 4, "densify_every": images // 4, "densify_until": images * 3 // 4}
    config = check.config(iterations=images, offload="auto", **growing)
    whole = train(check, scene, config, "whole")
    first = train(check, scene, config, "parts", stop_at=images // 2)
    second = train(check, scene, config, "parts", resumed=True)
    ours, theirs = np.concatenate([losses(first), losses(second)]), losses(whole)
    findings.expect("as many batches", len(ours) == len(theirs), f"{len(ours)} and {len(theirs)}")
    off = float(np.max(np.abs(ours / theirs - 1)))
    # Sums in another order put some rows on the other side of a threshold.
    findings.expect("losses as of an uninterrupted run", off < 0.05, f"{100 * off:.2f}% apart at most")
    counts = [batches[-1].num_gaussians for batches in (whole, second)]
    close = abs(counts[0] - counts[1]) <= 0.01 * counts[0]
    findings.expect("as many Gaussians, within 1%", close, f"{counts[0]:,} and {counts[1]:,}")
    findings.figure("losses", {"whole": theirs.tolist(), "parts": ours.tolist()})


def train(
    check: Check, scene: Scene, config: Config, folder: str, stop_at: int | None = None, resumed: bool = False
) -> list[BatchDone]:
    """As `clm train` does: growth, a checkpoint at the end, and what a finished run writes."""
    checkpoint, done = latest_checkpoint(check.folder / folder / "checkpoints") if resumed else None, []
    with check.open(scene, config, folder=folder, resume=checkpoint) as run:
        run.begin()
        while not run.schedule.over and (stop_at is None or run.schedule.image < stop_at):
            done.append(advance(run, 1)[0].done)
            if run.growth.due:
                run.growth.rebuild()
        run.saver.save()
        if run.schedule.over:
            run.files.finish()
    return done


def out_of_memory(check: Check, findings: Findings) -> None:
    """The device's memory ends in the middle of a batch: the arena shrinks, and the model is that of an undisturbed run."""
    scene, curves = small_scene(check), {}
    for disturbed in (False, True):
        events: list[Any] = []
        with open_flat(check, scene, small_store(check), check.config(offload="host"), events) as run:
            trained = advance(run, 2)
            slots = run.residence.arena.slots
            if disturbed:
                take_memory(check, run)
            trained += advance(run, 3)
            if disturbed:
                give_memory_back(check)
            trained += advance(run, 1)
            curves[disturbed] = losses([batch.done for batch in trained])
            after = run.residence.arena.slots
        warnings = [e.text for e in events if isinstance(e, Message) and "out of device memory" in e.text]
        if disturbed:
            findings.expect("the memory did end", bool(warnings), "; ".join(warnings) or "it sufficed")
            findings.expect("the arena shrank", after < slots, f"{slots:,} to {after:,} slots")
    off = float(np.max(np.abs(curves[True] / curves[False] - 1)))
    findings.expect("losses as of an undisturbed run", off < 1e-3, f"{100 * off:.4f}% apart at most")
    findings.figure("losses", {str(key): curve.tolist() for key, curve in curves.items()})


def take_memory(check: Check, run: Run) -> None:
    """Leave the device less than a view needs, but enough once the arena is smaller by a quarter."""
    if check.double:
        _fail_once(run)
        return
    import torch

    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    arena, needed = run.residence.arena.bytes, run.residence.rasterizer.peak_temporaries
    left = max(needed // 2, needed - arena // 8)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + left) / total)


def _fail_once(run: Run) -> None:
    from clm.errors import OutOfDeviceMemory

    rasterizer = run.residence.rasterizer
    real = rasterizer.compare

    def compare(*arguments: Any) -> Any:
        rasterizer.compare = real  # type: ignore[method-assign]
        raise OutOfDeviceMemory("The device ran out of memory.")

    rasterizer.compare = compare  # type: ignore[method-assign]


def give_memory_back(check: Check) -> None:
    if not check.double:
        import torch

        torch.cuda.set_per_process_memory_fraction(1.0)
